"""The virtual clock: whatever happens next is the next entry of one queue."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from heapq import heappop, heappush
from typing import Any, Generic, TypeVar

T = TypeVar("T")

START = 1_000_000.0
"""Unix seconds at which every simulation begins."""


class Timer:
    """Something that is to happen; `cancel` makes it nothing. Once it has happened nothing is left of it either."""

    __slots__ = ("action", "when")

    def __init__(self, when: float, action: Callable[[], None]) -> None:
        self.when = when
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """It does not happen; repeating is harmless."""
        self.action = None


class Clock:
    """Virtual time. What is due at one moment happens in the order in which it was asked for.

    Attributes:
        now: Unix seconds.
        fired: How much has happened.
    """

    def __init__(self) -> None:
        self.now = START
        self.fired = 0
        self._queue: list[tuple[float, int, Timer]] = []
        self._count = 0

    def __call__(self) -> float:
        """Unix seconds."""
        return self.now

    def at(self, when: float, action: Callable[[], None]) -> Timer:
        """Lets something happen then, or now when that is past."""
        if when < self.now:
            when = self.now
        timer = Timer(when, action)
        self._count += 1
        heappush(self._queue, (when, self._count, timer))
        return timer

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Lets something happen in so many seconds."""
        return self.at(self.now + seconds, action)

    def run(self, until: float) -> None:
        """Lets everything happen that is due until then."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            when, _, timer = heappop(queue)
            action, timer.action = timer.action, None
            if action is not None:
                self.now = when
                self.fired += 1
                action()
        self.now = max(self.now, until)


class Outcome(Generic[T]):
    """What somebody waits for: set once, with a value or an error; awaited by at most one `Task`."""

    __slots__ = ("_error", "_set", "_value", "_waiter")

    def __init__(self) -> None:
        self._set = False
        self._value: T | None = None
        self._error: Exception | None = None
        self._waiter: Callable[[], None] | None = None

    def give(self, value: T) -> None:
        """It went well; what comes after the first is ignored."""
        self._resolve(value, None)

    def fail(self, error: Exception) -> None:
        """It did not."""
        self._resolve(None, error)

    def _resolve(self, value: T | None, error: Exception | None) -> None:
        if not self._set:
            self._set, self._value, self._error = True, value, error
            if self._waiter is not None:
                self._waiter()

    def __await__(self) -> Generator[Any, None, T]:
        """Waits for it."""
        if not self._set:
            yield self
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def then(self, waiter: Callable[[], None]) -> None:
        """Calls `waiter` once it is set."""
        self._waiter = waiter


class Task:
    """A coroutine that awaits `Outcome`s under the virtual clock."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = work
        self.done = False
        self._step()

    def cancel(self) -> None:
        """It goes no further."""
        if not self.done:
            self.done = True
            self._work.close()

    def _step(self) -> None:
        if self.done:
            return
        try:
            awaited: Outcome[Any] = self._work.send(None)
        except StopIteration:
            self.done = True
        else:
            awaited.then(self._step)


async def sleep(clock: Clock, seconds: float) -> None:
    """Returns in so many seconds."""
    over: Outcome[None] = Outcome()
    clock.after(seconds, lambda: over.give(None))
    await over
