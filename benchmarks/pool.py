"""Tasks that do nothing on two workers, beside a process pool and, where they are installed, Ray and Dask.

    python -m benchmarks.pool [--ray-python PATH] [--dask-python PATH] [--rounds 5] [--json]

Run it in the repository's root. All contestants take turns, and each figure is the median of its rounds. The slower
ones get fewer tasks: what counts is how many a second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context

from benchmarks.peers import Peer, Target, Work, asked, compare, nothing, options, peer, per_second, show

from fluster import LocalCluster, ResourceConfig, WorkerPool

WORKERS = 2
TASKS = 40_000
EXECUTOR_TASKS = 4_000
RAY_TASKS = 2_000
DASK_TASKS = 300


def mapped(pool: WorkerPool) -> float:
    """Tasks a second, with a future for each."""

    def run() -> None:
        for future in pool.map(nothing, range(TASKS)):
            future.result()

    return per_second(run, TASKS)


def streamed(pool: WorkerPool, *, ordered: bool) -> float:
    """Tasks a second, with results as they come."""
    return per_second(lambda: deque(pool.imap(nothing, range(TASKS), ordered=ordered), maxlen=0), TASKS)


def executed(executor: ProcessPoolExecutor) -> float:
    """Tasks a second of the standard library, one at a time to a process, as in a pool of workers."""
    return per_second(lambda: deque(executor.map(nothing, range(EXECUTOR_TASKS)), maxlen=0), EXECUTOR_TASKS)


def work(pool: WorkerPool, executor: ProcessPoolExecutor, ray: Peer | None, dask: Peer | None) -> Work:
    """What is compared."""
    measures: dict[str, Callable[[], float]] = {
        "Fluster, map": lambda: mapped(pool),
        "Fluster, imap": lambda: streamed(pool, ordered=True),
        "Fluster, imap unordered": lambda: streamed(pool, ordered=False),
        "ProcessPoolExecutor.map, chunksize 1": lambda: executed(executor),
        **asked(ray, "Ray", "tasks", RAY_TASKS),
        **asked(dask, "Dask", "tasks", DASK_TASKS),
    }
    targets = [
        Target(of, against, times)
        for of in ("Fluster, map", "Fluster, imap")
        for against, times in (("Ray", 100), ("ProcessPoolExecutor.map, chunksize 1", 5))
    ]
    return Work(f"tasks that do nothing on {WORKERS} workers", "tasks/s", measures, tuple(targets))


def main() -> None:
    """Measures and prints."""
    given = options(__doc__, rounds=5).parse_args()
    with ExitStack() as stack:
        ray = stack.enter_context(peer("ray", given.ray_python))
        dask = stack.enter_context(peer("dask", given.dask_python))
        executor = stack.enter_context(ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")))
        cluster = stack.enter_context(LocalCluster(cpu=4))
        pool = stack.enter_context(WorkerPool(cluster, WORKERS, ResourceConfig.with_cpu(cpu=1, memory="1GB")))
        pool.wait_for_workers()
        compared = compare([work(pool, executor, ray, dask)], rounds=given.rounds, seconds=given.seconds)
    show(compared, as_json=given.json)


if __name__ == "__main__":
    main()
