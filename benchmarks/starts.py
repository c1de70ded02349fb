"""How long an attempt takes from the request to the first line of user code, warm and in a fresh interpreter.

python benchmarks/starts.py [--starts 50]
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cloudpickle

from fluster.cluster.worker.cgroup import find_cgroups
from fluster.cluster.worker.process_runtime import ProcessRuntime
from fluster.cluster.worker.runtime import AttemptStart, Limits
from fluster.rpc.gen.fluster.cluster.v1.types_pb import Outcome

# The spare of the next attempt is forked in between, as between the jobs of a user.
_BETWEEN_S = 0.05


def main() -> None:
    """Prints one row for each way to start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=50)
    asyncio.run(_compare(parser.parse_args().starts))


async def _compare(starts: int) -> None:
    print(f"median of {starts} in ms           first line of user code   start() returned   end known")
    for enforcement in ("auto", "none"):
        for label, environment in (("forked", {}), ("fresh interpreter", {"PYTHONHASHSEED": "0"})):
            groups = find_cgroups(f"benchmark-{os.getpid()}", enforcement=enforcement)
            runtime = ProcessRuntime(f"benchmark-{os.getpid()}", cgroups=groups)
            await runtime.prepare()
            try:
                rows = await _measure(runtime, starts, {**os.environ, **environment})
            finally:
                await runtime.close()
            first, started, ended = (statistics.median(column) * 1000 for column in zip(*rows, strict=True))
            name = f"{label}, cgroups {runtime.enforcement}"
            print(f"{name:<32} {first:>24.1f} {started:>18.1f} {ended:>11.1f}")


def _clock_in_the_job() -> Callable[[], float]:
    def clock() -> float:
        import time

        return time.clock_gettime(time.CLOCK_MONOTONIC)

    return clock


async def _measure(
    runtime: ProcessRuntime, starts: int, environment: dict[str, str]
) -> list[tuple[float, float, float]]:
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for number in range(starts):
            await asyncio.sleep(_BETWEEN_S)
            directory = Path(root, f"a{number}")
            directory.mkdir()
            (directory / "entrypoint").write_bytes(cloudpickle.dumps((_clock_in_the_job(), (), {})))
            limits = Limits(memory_bytes=1 << 30)
            asked = time.clock_gettime(time.CLOCK_MONOTONIC)
            await runtime.start(AttemptStart(f"a{number}", directory, None, environment, directory, limits=limits))
            started = time.clock_gettime(time.CLOCK_MONOTONIC)
            await runtime.wait(f"a{number}")
            ended = time.clock_gettime(time.CLOCK_MONOTONIC)
            kind = Outcome.from_binary((directory / "result").read_bytes()).kind
            assert kind is not None
            assert kind.field == "value", kind
            rows.append((cloudpickle.loads(kind.value) - asked, started - asked, ended - asked))
    return rows


if __name__ == "__main__":
    main()
