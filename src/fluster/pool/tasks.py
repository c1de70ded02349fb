"""Tasks of a pool: a function, its arguments as they travel, and where the result goes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, Final, Protocol

from fluster.actor.futures import ActorFuture

PENDING: Final = "PENDING"
"""State of a task without an end, as `concurrent.futures` calls it."""
_FINISHED: Final = "FINISHED"


class Timing:
    """How long a function takes, as far as is known.

    Attributes:
        answered: How many of its tasks came back.
        seconds: What one takes, the latest ones counting most.
    """

    __slots__ = ("answered", "seconds")

    def __init__(self) -> None:
        self.answered = 0
        self.seconds = 0.0

    def learn(self, count: int, seconds: float) -> None:
        """So many took so long together."""
        each = seconds / count
        self.seconds = each if not self.answered else 0.6 * self.seconds + 0.4 * each
        self.answered += count


class Function:
    """A function as it travels; once to each worker.

    Attributes:
        function_id: In its pool.
        name: For messages.
        content: The pickle.
        timing: Shared by functions made in one place, whatever they enclose.
    """

    __slots__ = ("__weakref__", "content", "function_id", "name", "timing")

    def __init__(self, function_id: int, name: str, content: bytes, timing: Timing) -> None:
        self.function_id = function_id
        self.name = name
        self.content = content
        self.timing = timing


class Task(Protocol):
    """One call.

    Attributes:
        function: What is called.
        mode: What the payload is; see `wire.Mode`.
        payload: Its arguments, as they travel.
        size: Bytes of the payload, 0 when few.
        deaths: How many workers it is charged with.
        alone: Its worker gets nothing beside it: one that had it died.
        sent: A worker has it.
    """

    function: Function
    mode: int
    payload: Any
    size: int
    deaths: int
    alone: bool
    sent: bool
    _state: str

    def settle(self, value: Any, error: BaseException | None) -> bool:
        """It returned, or raised; with the pool's condition held. Whether `tell` is to be called, without it."""
        ...

    def tell(self) -> None:
        """Tells who listens."""
        ...

    def fail(self, error: BaseException) -> None:
        """It never gets to its end."""
        ...


class _Waiter:
    """Wakes one thread that waits for one future."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()

    def add_result(self, _future: Future[Any]) -> None:
        """It returned."""
        self.lock.release()

    add_exception = add_cancelled = add_result


class TaskFuture(ActorFuture[Any]):
    """A task whose result a future gets.

    One object where a `Future` is a dozen: it shares its condition with the others of its pool, waits by a lock of its
    own, and has lists of callbacks and waiters only when it needs them. That makes it four times as fast, most of it in
    the garbage collector.
    """

    _state = PENDING
    _result = _exception = None
    _listened = False
    size = deaths = 0
    alone = sent = False

    def __init__(
        self,
        function: Function,
        mode: int,
        payload: Any,
        size: int,
        condition: threading.Condition,
        on_cancelled: Callable[[TaskFuture], None],
    ) -> None:
        self._condition = condition
        self._on_cancelled = on_cancelled
        self.function = function
        self.mode = mode
        self.payload = payload
        if size:
            self.size = size

    def __getattr__(self, name: str) -> Any:
        if name not in ("_waiters", "_done_callbacks"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._listened = True  # with the condition held, as `concurrent.futures` does whatever it does with them
        value: list[Any] = []
        setattr(self, name, value)
        return value

    def running(self) -> bool:
        """Whether a worker has it."""
        return self.sent and not self.done()

    def cancel(self) -> bool:
        """Whether nobody will get its result; false if it has one. What a worker has goes on to its end."""
        if not Future.cancel(self):
            return False
        with self._condition:
            first = self._state == "CANCELLED"
            if first:  # else `concurrent.futures.wait` would go on waiting for it
                self.set_running_or_notify_cancel()
        if first:
            self._on_cancelled(self)
        return True

    def result(self, timeout: float | None = None) -> Any:
        """What the task returned.

        Raises:
            TimeoutError: It has no end yet.
            CancelledError: It was cancelled.
            BaseException: What the task raised.
        """
        if self._state != _FINISHED:
            self._wait(timeout)
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment] # else a cycle through the traceback
        return self._result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the task raised; `None` if it returned.

        Raises:
            TimeoutError: It has no end yet.
            CancelledError: It was cancelled.
        """
        if self._state != _FINISHED:
            self._wait(timeout)
        return self._exception

    def settle(self, value: Any, error: BaseException | None) -> bool:
        """It returned, or raised; with the condition held. Whether `tell` is to be called, without it."""
        self.payload = None
        if self._state != PENDING:  # cancelled meanwhile
            return False
        self._result, self._exception = value, error
        self._state = _FINISHED
        return self._listened

    def fail(self, error: BaseException) -> None:
        """It never gets to its end."""
        with self._condition:
            listened = self.settle(None, error)
        if listened:
            self.tell()

    def tell(self) -> None:
        """Wakes who waits, and calls back who asked for it."""
        with self._condition:
            for waiter in self._waiters:
                if self._exception is None:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
        self._invoke_callbacks()

    def _wait(self, timeout: float | None) -> None:
        waiter: Any = _Waiter()
        with self._condition:
            if self._state == PENDING:
                self._waiters.append(waiter)
            else:
                waiter.lock.release()
        if not waiter.lock.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            with self._condition:
                if self._state == PENDING:
                    self._waiters.remove(waiter)
                    raise TimeoutError
        if self._state != _FINISHED:
            raise CancelledError
