"""What the benchmarks of actors and pools share: peers in interpreters of their own, and figures compared in one run.

Nothing to run by hand. `python -m benchmarks.actors` and `python -m benchmarks.pool` start this file once per peer,
under the peer's interpreter: `PYTHON peers.py ray|dask` serves one request a line on its standard input. It needs
nothing but the standard library and the peer. A peer runs in a network and a process namespace of its own, with only
loopback: it listens nowhere else, and whatever it started ends with it. That takes root; without it the peer is left
out and a line says so.

    python3 -m venv VENV && VENV/bin/pip install ray "dask[distributed]" numpy
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Protocol

NAMESPACE = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
START_S = 60.0
REQUEST_S = 60.0
"""Slow peers need a second or two; one that hangs is dropped."""
SETTLE_S = 1.5
"""A fresh interpreter takes the place of an actor's: whoever is next does not pay for it."""
STORE_BYTES = 800_000_000
LARGEST_BYTES = 100_000_000

Measure = Callable[[], float]


# Measuring: the same functions here and in a peer


def median_s(call: Callable[[], object], count: int) -> float:
    """Median seconds of a call, one after the other."""
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def per_second(run: Callable[[], object], count: int) -> float:
    """How many a second, when `run` does so many."""
    started = time.perf_counter()
    run()
    return count / (time.perf_counter() - started)


def gigabytes_per_second(send: Callable[[Any], object], megabytes: int) -> float:
    """Of sending an array of random floats, median of several calls after one that warms up."""
    array = random_floats(megabytes)
    send(array)
    return megabytes / 1e3 / median_s(lambda: send(array), sends_of(megabytes))


def sends_of(megabytes: int) -> int:
    """How often an array is sent in a round."""
    return max(5, min(50, 200 // megabytes))


def random_floats(megabytes: int) -> Any:
    """An array of random float64."""
    return importlib.import_module("numpy").random.default_rng(0).random(megabytes * 1_000_000 // 8)


# Comparing


@dataclass(frozen=True, slots=True)
class Target:
    """`of` is to be `times` as fast as `against`; below 1 it may be so much slower."""

    of: str
    against: str
    times: float


@dataclass(frozen=True, slots=True)
class Work:
    """One thing that several can do. Each measure gives its figure of one round, in `unit`."""

    name: str
    unit: str
    measures: dict[str, Measure]
    targets: tuple[Target, ...] = ()

    @property
    def is_time(self) -> bool:
        """Whether less is better."""
        return self.unit in ("us", "ms")


@dataclass(frozen=True, slots=True)
class Compared:
    """The medians over the rounds of a work."""

    work: Work
    figures: dict[str, float]

    def times_as_fast(self, target: Target) -> float | None:
        """`None` where one of the two was not measured."""
        of, against = self.figures.get(target.of), self.figures.get(target.against)
        if of is None or against is None:
            return None
        return against / of if self.work.is_time else of / against

    def as_json(self) -> dict[str, object]:
        """Figures and ratios."""
        ratios = [
            {"of": t.of, "against": t.against, "times_as_fast": round(ratio, 3), "target": t.times}
            for t in self.work.targets
            if (ratio := self.times_as_fast(t)) is not None
        ]
        figures = {name: round(figure, 3) for name, figure in self.figures.items()}
        return {"work": self.work.name, "unit": self.work.unit, "figures": figures, "ratios": ratios}

    def lines(self) -> Iterator[str]:
        """For a person to read."""
        yield f"{self.work.name} ({self.work.unit})"
        for name, figure in self.figures.items():
            yield f"  {name:<58}{figure:>12,.{0 if figure >= 1000 else 1 if figure >= 20 else 2}f}"
        for target in self.work.targets:
            ratio = self.times_as_fast(target)
            if ratio is not None:
                yield f"    {target.of} against {target.against}: {_verdict(ratio, target.times)}"


def _verdict(ratio: float, target: float) -> str:
    met = "" if ratio >= target else "   BELOW"
    if target >= 1:
        return f"{ratio:.1f} x as fast (aimed at: >= {target:g} x){met}"
    return f"{1 / ratio:.2f} x its cost (aimed at: <= {1 / target:g} x){met}"


def compare(works: Sequence[Work], *, rounds: int, seconds: float) -> list[Compared]:
    """Medians over interleaved rounds, after one that is not counted; no round begins after so many seconds."""
    until = time.monotonic() + seconds
    found: dict[tuple[str, str], list[float]] = {}
    broken: set[tuple[str, str]] = set()
    for number in range(rounds + 1):
        if number > 1 and time.monotonic() > until:
            say(f"{number - 1} of {rounds} rounds: the time is up")
            break
        for work in works:
            for name in work.measures:
                key = (work.name, name)
                try:
                    figure = work.measures[name]() if key not in broken else None
                except PeerError as error:
                    say(f"{name} was not measured: {work.name}: {error}")
                    broken.add(key)
                    continue
                if number > 0 and figure is not None:
                    found.setdefault(key, []).append(figure)
    return [
        Compared(work, {n: statistics.median(found[work.name, n]) for n in work.measures if (work.name, n) in found})
        for work in works
    ]


def show(compared: Iterable[Compared], *, as_json: bool) -> None:
    """Prints all."""
    if as_json:
        print(json.dumps([each.as_json() for each in compared]))
        return
    for each in compared:
        print("\n".join(each.lines()))


def say(line: str) -> None:
    """For whoever watches."""
    print(line, file=sys.stderr, flush=True)


def options(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The flags of every benchmark with peers."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ray-python", metavar="PATH", help="an interpreter with ray (and numpy)")
    parser.add_argument("--dask-python", metavar="PATH", help="an interpreter with dask[distributed]")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seconds", type=float, default=90.0, help="no round begins after so many")
    parser.add_argument("--json", action="store_true")
    return parser


# A peer, seen from the benchmark


class PeerError(Exception):
    """A peer did not start, did not answer in time, or failed."""


class Peer:
    """A running peer: it is asked for one figure at a time."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._process = process
        self._errors = errors
        self._receive(START_S)

    def ask(self, what: str, *arguments: int) -> float:
        """The figure it measured. Raises: PeerError."""
        assert self._process.stdin is not None
        try:
            print(json.dumps([what, *arguments]), file=self._process.stdin, flush=True)
        except OSError:
            raise PeerError(self._last_words()) from None
        return self._receive(REQUEST_S)

    def _receive(self, seconds: float) -> float:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            self._process.kill()
            raise PeerError(f"no answer within {seconds:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(self._last_words())
        return float(line)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else "it ended without a word"


@contextmanager
def peer(name: str, python: str | None) -> Iterator[Peer | None]:
    """A peer that runs until the block is left; `None`, and a line that says why, where it cannot."""
    if python is None:
        say(f"{name} is left out: no --{name}-python")
        yield None
        return
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryDirectory(prefix="peer-") as directory:
        try:
            process = _start(name, python, errors, directory)
        except OSError as error:
            say(f"{name} is left out: {error}")
            yield None
            return
        try:
            yield _greeted(name, process, errors)
        finally:
            _end(process)


def _start(name: str, python: str, errors: IO[str], directory: str) -> subprocess.Popen[str]:
    inside = 'ip link set lo up && exec "$@"'
    settings = {
        "TMPDIR": directory,
        "PYTHONSAFEPATH": "1",  # the files beside this one are not modules of the peer
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return subprocess.Popen(
        [*NAMESPACE, "sh", "-c", inside, "sh", python, __file__, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env={**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, **settings},
    )


def _greeted(name: str, process: subprocess.Popen[str], errors: IO[str]) -> Peer | None:
    try:
        return Peer(process, errors)
    except PeerError as error:
        say(f"{name} is left out: {error}")
        return None


def _end(process: subprocess.Popen[str]) -> None:
    """At the end of its input it leaves; its namespace ends with it."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.close()
    except BrokenPipeError:
        pass
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def asked(of: Peer | None, name: str, what: str, *arguments: int) -> dict[str, Measure]:
    """A measure of a peer, if it is there."""
    return {name: lambda: of.ask(what, *arguments)} if of is not None else {}


# A peer, seen from itself


class Calculator:
    """The actor of every contestant."""

    def add(self, a: int, b: int) -> int:
        """The small call."""
        return a + b

    def length(self, array: Any) -> int:
        """Takes an array, and gives next to nothing."""
        return len(array)


def nothing(_: object) -> None:
    """The task that does nothing."""


class Served(Protocol):
    """What a peer measures is the methods that take numbers and give a figure."""

    def close(self) -> None:
        """Everything ends."""


class RayPeer:
    """Ray with two processors, without its dashboard."""

    def __init__(self) -> None:
        self._ray: Any = importlib.import_module("ray")
        self._ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=STORE_BYTES,
            _temp_dir=tempfile.gettempdir(),
        )
        self._calculators = self._ray.remote(Calculator)
        self._task = self._ray.remote(nothing)
        self._actor = self._calculators.remote()
        self._ray.get(self._actor.add.remote(1, 2))

    def call(self, count: int) -> float:
        """Median microseconds of a call that is waited for."""
        return 1e6 * median_s(lambda: self._ray.get(self._actor.add.remote(1, 2)), count)

    def outstanding(self, count: int) -> float:
        """Calls a second, all under way before the first is waited for."""
        return per_second(lambda: self._ray.get([self._actor.add.remote(i, i) for i in range(count)]), count)

    def touch(self) -> float:
        """Fills the store once, so that none of its pages is new afterwards."""
        array = random_floats(LARGEST_BYTES // 1_000_000)
        held = [self._ray.put(array) for _ in range(STORE_BYTES // LARGEST_BYTES - 1)]
        return float(self._ray.get(self._actor.length.remote(held[0])))

    def array(self, megabytes: int) -> float:
        """Gigabytes a second of an argument."""
        return gigabytes_per_second(lambda array: self._ray.get(self._actor.length.remote(array)), megabytes)

    def start(self) -> float:
        """Milliseconds from the creation of an actor to the answer to its first call."""
        started = time.perf_counter()
        actor = self._calculators.remote()
        self._ray.get(actor.add.remote(1, 2))
        taken = time.perf_counter() - started
        self._ray.kill(actor)
        time.sleep(SETTLE_S)
        return 1e3 * taken

    def tasks(self, count: int) -> float:
        """Tasks a second that do nothing."""
        return per_second(lambda: self._ray.get([self._task.remote(i) for i in range(count)]), count)

    def close(self) -> None:
        """Ends its processes."""
        self._ray.shutdown()


class DaskPeer:
    """Dask with two worker processes of one thread, without its dashboard."""

    def __init__(self) -> None:
        distributed: Any = importlib.import_module("distributed")
        self._cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
        self._client = distributed.Client(self._cluster)
        self._actor = self._client.submit(Calculator, actor=True).result()

    def call(self, count: int) -> float:
        """Median microseconds of a call that is waited for."""
        return 1e6 * median_s(lambda: self._actor.add(1, 2).result(), count)

    def outstanding(self, count: int) -> float:
        """Calls a second, all under way before the first is waited for."""

        def run() -> None:
            for future in [self._actor.add(i, i) for i in range(count)]:
                future.result()

        return per_second(run, count)

    def tasks(self, count: int) -> float:
        """Tasks a second that do nothing."""
        return per_second(lambda: self._client.gather(self._client.map(nothing, range(count), pure=False)), count)

    def close(self) -> None:
        """Ends its processes."""
        self._client.close()
        self._cluster.close()


PEERS: dict[str, Callable[[], Served]] = {"ray": RayPeer, "dask": DaskPeer}


def serve(name: str) -> None:
    """Answers one request a line until its input ends. What a peer prints goes to standard error."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        served = PEERS[name]()
        try:
            print(0, file=answers, flush=True)
            for line in sys.stdin:
                what, *arguments = json.loads(line)
                print(getattr(served, what)(*arguments), file=answers, flush=True)
        finally:
            served.close()


if __name__ == "__main__":
    serve(sys.argv[1])
