"""A pool as `concurrent.futures` knows executors."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluster.pool.pool import WorkerPool


class PoolExecutor(Executor):
    """Submits to a pool, and ends without ending it."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._futures: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `WorkerPool.submit`."""
        self._check_open()
        future = self._pool.submit(fn, *args, **kwargs)
        with self._lock:
            self._futures.add(future)
        return future

    def map(
        self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        """Results in order; all tasks are submitted at once.

        Args:
            fn: Called with an item of each.
            iterables: As many items as the shortest has are taken, now.
            timeout: Seconds from now for each result to be there.
            chunksize: Not needed: tasks travel together as it is useful.

        Raises:
            TimeoutError: By the iterator.
        """
        self._check_open()
        deadline = None if timeout is None else time.monotonic() + timeout
        futures: list[Any] = self._pool.starmap(fn, zip(*iterables, strict=False))
        with self._lock:
            self._futures.update(futures)
        return _results(futures, deadline)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more tasks; the pool does.

        Args:
            wait: Until those submitted here have their end.
            cancel_futures: Cancel those that no worker has.
        """
        with self._lock:
            self._closed = True
            futures = list(self._futures)
        if cancel_futures:
            for future in futures:
                if not future.running():
                    future.cancel()
        if wait:
            _wait(futures)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the executor was shut down: it takes no more tasks")


def _wait(futures: list[Future[Any]]) -> None:
    wait(futures)


def _results(futures: list[Future[Any]], deadline: float | None) -> Iterator[Any]:
    futures.reverse()
    try:
        while futures:
            # Not kept here while the caller has the result.
            yield futures.pop().result(None if deadline is None else deadline - time.monotonic())
    finally:
        for future in futures:
            if not future.running():
                future.cancel()
