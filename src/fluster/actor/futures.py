"""`ActorFuture`: the result of a call that nobody waits for yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class ActorFuture(Future[T], Generic[T]):
    """A `concurrent.futures.Future` that can also be awaited.

    `cancel` gives the call up: one that has not begun does not run, a coroutine is cancelled, a synchronous method that
    runs goes on to its end.
    """

    def __init__(self, on_cancel: Callable[[], None] | None = None) -> None:
        super().__init__()
        self._on_cancel = on_cancel

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self).__await__()

    def cancel(self) -> bool:
        """Whether nobody will get its result; false if it has one."""
        cancelled = super().cancel()
        on_cancel, self._on_cancel = self._on_cancel, None
        if cancelled and on_cancel is not None:
            # Else `concurrent.futures.wait` would not count it as done.
            self.set_running_or_notify_cancel()
            on_cancel()
        return cancelled
