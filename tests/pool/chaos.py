"""A pool whose workers are killed one after the other, as long as there is work.

    python -m tests.pool.chaos [--tasks 20000] [--workers 4] [--every 1.0]

Run it in the repository's root; the tests run a short form of it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import threading
import time

from tests.pool.functions import square_slowly, until

from fluster import Cluster, LocalCluster, ResourceConfig
from fluster.pool import PoolStats, WorkerPool


def run(cluster: Cluster, *, tasks: int, workers: int, every_s: float, kills: int | None = None) -> PoolStats:
    """All results are right, no task fails, no more is charged than was killed, and the pool is back at its size."""
    over = threading.Event()
    killed: list[int] = []
    dice = random.Random(1)
    resources = ResourceConfig.with_cpu(cpu=0.1, memory="100MB")
    with WorkerPool(cluster, workers, resources, max_retries=1_000) as pool:
        pool.wait_for_workers(timeout=30)

        def kill() -> None:
            while not over.wait(every_s) and (kills is None or len(killed) < kills):
                pids = [worker.pid for worker in pool._dispatcher.workers if worker.pid]
                with contextlib.suppress(ProcessLookupError, IndexError):
                    os.kill(pid := dice.choice(pids), signal.SIGKILL)
                    killed.append(pid)

        killer = threading.Thread(target=kill, name="test-killer")
        killer.start()
        try:
            results = [future.result(timeout=60) for future in pool.map(square_slowly, range(tasks))]
        finally:
            over.set()
            killer.join()
        assert results == [x * x for x in range(tasks)]
        pool.wait_for_workers(timeout=20)
        stats = pool.stats()
    assert killed
    assert (stats.done, stats.failed, stats.queued, stats.running, stats.workers) == (tasks, 0, 0, 0, workers), stats
    assert stats.retried <= len(killed), (stats, killed)
    return stats


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description="Runs tasks while their workers are killed.")
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--every", type=float, default=1.0, help="seconds from one kill to the next")
    given = parser.parse_args()
    with LocalCluster(cpu=4) as cluster:
        began = time.monotonic()
        stats = run(cluster, tasks=given.tasks, workers=given.workers, every_s=given.every)
        print(f"{stats} after {time.monotonic() - began:.1f} s")
        until(lambda: not any(job.status == "running" for job in cluster.list_jobs()))


if __name__ == "__main__":
    main()
