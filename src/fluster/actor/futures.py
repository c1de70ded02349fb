"""`ActorFuture`: the result of a call that nobody waits for yet."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

PENDING: Final = "PENDING"
"""State of a future without an end, as `concurrent.futures` calls it."""
FINISHED: Final = "FINISHED"


class _Waiter:
    """Wakes one thread that waits for one future."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()

    def add_result(self, _future: Future[Any]) -> None:
        """It has an end."""
        self.lock.release()

    add_exception = add_cancelled = add_result


class ActorFuture(Future[T], Generic[T]):
    """A `concurrent.futures.Future` that can also be awaited.

    `cancel` gives the call up: one that has not begun does not run, a coroutine is cancelled, a synchronous method that
    runs goes on to its end.

    One object where a `Future` is a dozen: it can share its condition with others, waits by a lock of its own, and has
    lists of callbacks and waiters only when it needs them. That makes it four times as fast, most of it in the garbage
    collector.

    Args:
        on_cancel: Called once, when it is cancelled.
        condition: Shared with other futures; `None`: one of its own.
    """

    _state = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _listened = False
    _on_cancel: Callable[[], None] | None = None

    def __init__(
        self, on_cancel: Callable[[], None] | None = None, condition: threading.Condition | None = None
    ) -> None:
        self._condition = threading.Condition() if condition is None else condition
        self._on_cancel = on_cancel

    def __getattr__(self, name: str) -> Any:
        if name not in ("_waiters", "_done_callbacks"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._listened = True  # with the condition held, as `concurrent.futures` does whatever it does with them
        value: list[Any] = []
        setattr(self, name, value)
        return value

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self).__await__()

    def cancel(self) -> bool:
        """Whether nobody will get its result; false if it has one."""
        if not super().cancel():
            return False
        with self._condition:
            first = self._state == "CANCELLED"
            if first:  # else `concurrent.futures.wait` would go on waiting for it
                self.set_running_or_notify_cancel()
        if first:
            self._cancelled()
        return True

    def result(self, timeout: float | None = None) -> T:
        """What the call returned.

        Raises:
            TimeoutError: It has no end yet.
            CancelledError: It was cancelled.
            BaseException: What the call raised.
        """
        if self._state != FINISHED:
            self._wait(timeout)
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment] # else a cycle through the traceback
        value: T = self._result
        return value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised; `None` if it returned.

        Raises:
            TimeoutError: It has no end yet.
            CancelledError: It was cancelled.
        """
        if self._state != FINISHED:
            self._wait(timeout)
        return self._exception

    def set_result(self, result: T) -> None:
        """For whoever made it."""
        self._end(result, None)

    def set_exception(self, exception: BaseException | None) -> None:
        """For whoever made it."""
        self._end(None, exception)

    def settle(self, value: Any, error: BaseException | None) -> bool:
        """It returned, or raised; with the condition held. Whether `tell` is to be called, without it."""
        if self._state != PENDING:  # cancelled meanwhile
            return False
        self._result, self._exception = value, error
        self._state = FINISHED
        if self._on_cancel is not None:
            self._on_cancel = None
        return self._listened

    def tell(self) -> None:
        """Wakes who waits, and calls back who asked for it."""
        if self.wake():
            self._invoke_callbacks()

    def wake(self) -> bool:
        """Wakes who waits; whether somebody is to be called back, too."""
        with self._condition:
            for waiter in self._waiters:
                if self._exception is None:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            return bool(self._done_callbacks)

    def _cancelled(self) -> None:
        on_cancel, self._on_cancel = self._on_cancel, None
        if on_cancel is not None:
            on_cancel()

    def _end(self, value: Any, error: BaseException | None) -> None:
        with self._condition:
            if self._state != PENDING:
                raise InvalidStateError(f"{self._state}: {self!r}")
            listened = self.settle(value, error)
        if listened:
            self.tell()

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
        if self._state != FINISHED:
            raise CancelledError
