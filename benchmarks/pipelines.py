"""How long a pipeline of four shards takes on Fluster and beside it in fray's LocalClient, and where the time goes.

ZEPHYR_PYTHON benchmarks/pipelines.py       (Zephyr's interpreter; FLUSTER_SERVER_PYTHON names the daemons')
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from fray.local_backend import LocalClient
from fray.types import ResourceConfig
from zephyr.context import ZephyrContext
from zephyr.dataset import Dataset
from zephyr.runners import InlineRunner, SubprocessRunner

from fluster import LocalCluster
from fluster.integrations.fray import FlusterClient


def count_group(key: int, rows: Iterator[object]) -> list[int]:
    """How many rows of a key there are."""
    return [key, sum(1 for _ in rows)]


def time_phases(name: str, client: Any, runner: Callable[[], Any]) -> None:
    """Prints seconds of each phase of two pipelines on one pool."""
    seconds = []

    def lap(action: Callable[[], Any]) -> None:
        began = time.monotonic()
        action()
        seconds.append(time.monotonic() - began)

    rows = Dataset.from_list(list(range(4))).flat_map(lambda shard: range(shard, 10_000, 4))
    counted = rows.group_by(lambda row: row % 7, reducer=count_group)
    with tempfile.TemporaryDirectory() as storage:
        context = ZephyrContext(
            client=client,
            max_workers=4,
            resources=ResourceConfig(cpu=1, ram="1g"),
            coordinator_resources=ResourceConfig(cpu=1, ram="1g"),
            chunk_storage_prefix=storage,
            stage_runner_factory=runner,
        )
        for action in (context.start, lambda: context.execute(counted), lambda: context.execute(counted)):
            lap(action)
        lap(context.shutdown)
    start, first, second, shutdown = seconds
    print(
        f"{name:34} start {start:6.2f}  first {first:6.2f}  second {second:6.2f}  shutdown {shutdown:6.2f}", flush=True
    )


def main() -> None:
    """One line for each."""
    time_phases("LocalClient, shards in threads", LocalClient(), InlineRunner)
    with LocalCluster(cpu=8) as cluster:
        client = FlusterClient(cluster)
        time_phases("Fluster, shards in workers", client, InlineRunner)
        time_phases("Fluster, a program for each shard", client, SubprocessRunner)


if __name__ == "__main__":
    main()
