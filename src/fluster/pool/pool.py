"""`WorkerPool`: runs functions on workers of a cluster."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from fluster.actor.futures import PENDING, ActorFuture
from fluster.cluster.types import Entrypoint, EnvironmentConfig, JobRequest, ResourceConfig, RetryPolicy
from fluster.cluster.validation import check_int, check_name
from fluster.pool.executor import run_worker
from fluster.pool.fleet import Fleet
from fluster.pool.outgoing import Outgoing
from fluster.pool.stats import PoolStats
from fluster.pool.stream import TaskStream
from fluster.pool.tasks import Function, TaskFuture
from fluster.pool.wire import are_numbers

if TYPE_CHECKING:
    from fluster.cluster.client import Cluster

T = TypeVar("T")
S = TypeVar("S")

_log = logging.getLogger(__name__)

SILENCE_S: Final = 60.0
"""A worker that has not heard of its pool for so long ends: whoever launched it was killed."""
PROGRESS_EVERY_S: Final = 0.1
MAX_WORKERS: Final = 10_000
_AT_ONCE = 512
_NO_RETRY = RetryPolicy(max_failures=0, max_preemptions=0)


class WorkerPool:
    """Workers that run functions. Each is a job of one task, a process of its own; the constructor launches them.

    ```python
    with WorkerPool(cluster, 4) as pool:
        squares = [future.result() for future in pool.map(square, range(100))]
    ```

    Functions run on the main thread of a worker, one at a time. Tasks that are submitted before workers are there wait.
    A worker that dies is replaced, and what it had is run again: a task may run more than once. Any threads may use a
    pool; a forked child may not.

    Args:
        cluster: Where the workers run.
        num_workers: How many.
        resources: Of each worker.
        environment: Of each worker.
        name_prefix: The jobs are named ``{name_prefix}-{index}``. Pools with the same prefix share nothing.
        max_retries: A task whose workers die is tried again so often.
        progress: Called with `stats()` when that has changed, from one thread, at most ten times a second, and at the
            end. With tqdm: ``progress=lambda stats: bar.update(stats.finished - bar.n)``.

    Raises:
        ValueError: A value breaks its rule.
        FlusterError: The workers could not be launched.
    """

    def __init__(
        self,
        cluster: Cluster,
        num_workers: int,
        resources: ResourceConfig | None = None,
        environment: EnvironmentConfig | None = None,
        name_prefix: str = "worker",
        *,
        max_retries: int = 3,
        progress: Callable[[PoolStats], object] | None = None,
    ) -> None:
        size = check_int(num_workers, "num_workers", low=1, high=MAX_WORKERS)
        check_name(name_prefix, "name_prefix")
        resources = resources if resources is not None else ResourceConfig.with_cpu()
        if resources.num_tasks != 1:
            raise ValueError("a worker is one process: say how many by num_workers, and give resources for one")
        if progress is not None and not callable(progress):
            raise ValueError(
                f"progress must be called with the pool's stats, a {type(progress).__name__} cannot be;"
                " with a bar of tqdm: progress=lambda stats: bar.update(stats.finished - bar.n)"
            )
        environment = environment if environment is not None else EnvironmentConfig()
        # Short enough to be an actor's name whatever the prefix is.
        name = f"{name_prefix[:64].rstrip('./_-')}-pool-{secrets.token_hex(8)}"
        entrypoint = Entrypoint.from_callable(run_worker, name, SILENCE_S)

        def request(index: int) -> JobRequest:
            return JobRequest(f"{name_prefix}-{index}", entrypoint, resources, environment, _NO_RETRY)

        self._cluster = cluster
        self._pid = os.getpid()
        self._closed = False
        # A workspace is a copy: what was not in it, or has changed since, is found by value only.
        by_value = cluster._surroundings() is None or environment.workspace is not None
        self._outgoing = Outgoing(project_by_value=by_value)
        self._fleet = Fleet(cluster, name, request, size, check_int(max_retries, "max_retries", low=0, high=1_000_000))
        self._dispatcher = self._fleet.dispatcher
        self._progress = progress
        self._fleet.start()
        cluster._on_close(self._abort)
        self._reporter: threading.Thread | None = None
        if progress is not None:
            self._reporter = threading.Thread(target=self._report, name="fluster-pool-progress", daemon=True)
            self._reporter.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Whoever was interrupted does not want the rest.
        self.shutdown(cancel_futures=kind is not None)

    def __repr__(self) -> str:
        stats = self.stats()
        return f"<WorkerPool: {stats.workers} workers, {stats.queued} tasks queued, {stats.running} running>"

    @property
    def size(self) -> int:
        """How many workers are there now."""
        return self.stats().workers

    def stats(self) -> PoolStats:
        """The pool at this moment."""
        return self._dispatcher.stats()

    def wait_for_workers(self, min_workers: int | None = None, timeout: float = 60.0) -> None:
        """Returns once there are at least so many workers.

        Args:
            min_workers: `None`: all.
            timeout: Seconds.

        Raises:
            TimeoutError: There were fewer; the message says what the others wait for.
            JobFailed: They end before they are there, again and again.
            RuntimeError: The pool was shut down.
        """
        deadline = time.monotonic() + timeout
        dispatcher = self._dispatcher
        with dispatcher.changed:
            while True:
                wanted = self._fleet.target if min_workers is None else min_workers
                size = sum(not worker.leaving for worker in dispatcher.workers)
                if size >= wanted:
                    return
                if self._fleet.failure is not None:
                    raise self._fleet.failure
                if self._closed:
                    raise RuntimeError("the pool was shut down")
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                dispatcher.changed.wait(min(left, 0.5))
        reason = self._fleet.why_not()
        text = f"{size} of {wanted} workers were there after {timeout:g} s"
        raise TimeoutError(f"{text}; {reason}" if reason else text)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> ActorFuture[T]:
        """Runs ``fn(*args, **kwargs)`` on a worker. Function and arguments are taken as they are now.

        Raises:
            TypeError: Something cannot be pickled; the message names it.
            ResourceExhausted: The arguments are too large.
            RuntimeError: The pool was shut down.
        """
        self._check_open()
        function = self._outgoing.function(fn)
        mode, payload, size = self._outgoing.call(fn, args, kwargs)
        dispatcher = self._dispatcher
        future = TaskFuture(function, payload, dispatcher.settled, dispatcher.cancelled, mode=mode, size=size)
        dispatcher.add((future,))
        return future

    def map(self, fn: Callable[[S], T], items: Iterable[S]) -> list[ActorFuture[T]]:
        """Runs the function once for each item; futures in their order. They are taken as they are now.

        An item that cannot be pickled fails its own future.

        Raises:
            TypeError: The function cannot be pickled; the message names what is in the way.
            RuntimeError: The pool was shut down.
        """
        return self._futures(fn, items, star=False)

    def starmap(self, fn: Callable[..., T], items: Iterable[Iterable[Any]]) -> list[ActorFuture[T]]:
        """The same with ``fn(*item)``."""
        return self._futures(fn, items, star=True)

    def imap(
        self, fn: Callable[[S], T], items: Iterable[S], *, ordered: bool = True, max_in_flight: int | None = None
    ) -> TaskStream[T]:
        """Results one after the other, of items that may have no end.

        Items are taken only as results are consumed: at most `max_in_flight` of them have been taken whose results have
        not. What a task raises is raised in its place; iterating may go on behind it. Closing the iterator, or losing
        the last reference to it, cancels what is queued.

        Args:
            fn: Called with each item.
            items: Taken by the thread that iterates over the results.
            ordered: Results come in the order of the items; else as soon as they are there.
            max_in_flight: Default: as many as keep the workers busy, at least four to a worker.

        Raises:
            TypeError: The function cannot be pickled; the message names what is in the way.
            RuntimeError: The pool was shut down.
        """
        self._check_open()
        if max_in_flight is not None:
            check_int(max_in_flight, "max_in_flight", low=1, high=10_000_000)
        function = self._outgoing.function(fn)

        def payloads(batch: list[Any]) -> list[Any]:
            with self._outgoing.pickling():
                return list(self._outgoing.items(fn, batch, star=False))

        return TaskStream(
            iter(items), function, payloads, self._dispatcher, self._check_open, ordered, max_in_flight,
            lambda: self._fleet.target,
        )  # fmt: skip

    def as_executor(self) -> Executor:
        """The pool as a `concurrent.futures.Executor`; shutting that down leaves the pool as it is."""
        from fluster.pool.as_executor import PoolExecutor

        return PoolExecutor(self)

    def scale_to(self, num_workers: int) -> None:
        """Changes how many workers there are, and returns at once. Idle ones go first; tasks that run are finished."""
        self._check_open()
        self._fleet.scale_to(check_int(num_workers, "num_workers", low=0, high=MAX_WORKERS))

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        """Takes no more tasks, lets those there are come to their end, then ends the workers. Repeating is harmless.

        Args:
            wait: Return when all that is done; else it goes on in the background.
            cancel_futures: Cancel tasks that no worker has.
        """
        if os.getpid() != self._pid:
            return
        self._closed = True
        if cancel_futures or not self._fleet.target:
            for task in self._dispatcher.queued():
                task.cancel()
        self._fleet.close()
        if wait:
            try:
                self._fleet.join()
            except BaseException:  # Ctrl-C: what runs is given up
                self._fleet.abort()
                raise
            if self._reporter is not None and self._reporter is not threading.current_thread():
                self._reporter.join()

    def _futures(self, fn: Callable[..., Any], items: Iterable[Any], *, star: bool) -> list[ActorFuture[Any]]:
        self._check_open()
        function = self._outgoing.function(fn)
        futures: list[ActorFuture[Any]] = []
        left = iter(items)
        while chunk := list(islice(left, _AT_ONCE)):
            if not star and are_numbers(chunk):  # the most common way is the short one
                condition, on_cancelled = self._dispatcher.settled, self._dispatcher.cancelled
                tasks = [TaskFuture(function, item, condition, on_cancelled) for item in chunk]
                self._dispatcher.add(tasks)
            else:
                tasks = self._tasks(fn, function, chunk, star)
                self._dispatcher.add([task for task in tasks if task._state == PENDING])
            futures += tasks
        return futures

    def _tasks(self, fn: Callable[..., Any], function: Function, items: list[Any], star: bool) -> list[TaskFuture]:
        tasks = []
        condition, on_cancelled = self._dispatcher.settled, self._dispatcher.cancelled
        failed = 0
        with self._outgoing.pickling():
            for payload in self._outgoing.items(fn, items, star=star):
                if isinstance(payload, Exception):
                    failed += 1
                    task = TaskFuture(function, None, condition, on_cancelled)
                    task.fail(payload)
                else:
                    mode, content, size = payload
                    task = TaskFuture(function, content, condition, on_cancelled, mode=mode, size=size)
                tasks.append(task)
        if failed:
            self._dispatcher.count_failed(failed)
        return tasks

    def _abort(self) -> None:
        """The cluster is being closed."""
        if os.getpid() == self._pid:
            self._closed = True
            self._fleet.abort()
            self._fleet.join()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the pool was shut down: it takes no more tasks")
        if os.getpid() != self._pid:
            raise RuntimeError("the pool belongs to the process that made it; make another one in this process")

    def _report(self) -> None:
        """Calls the user's hook."""
        assert self._progress is not None
        news, last = self._dispatcher.news, None
        while True:
            over = self._fleet.over
            if not over:
                news.wait()
            news.clear()
            stats = self.stats()
            if stats != last:
                last = stats
                try:
                    self._progress(stats)
                except Exception:
                    _log.exception("the pool's progress hook failed and is not called any more")
                    return
            if over:
                return
            time.sleep(PROGRESS_EVERY_S)
