"""Tasks of a pool: a function, its arguments as they travel, and where the result goes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from fluster.actor.futures import FINISHED, PENDING, ActorFuture
from fluster.pool.wire import Mode


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

    def cancel(self) -> object:
        """Nobody wants the result, or nobody will work it out."""
        ...


class TaskFuture(ActorFuture[Any]):
    """A task whose result a future gets."""

    # What most have in common costs them nothing.
    mode: int = Mode.ITEM
    size = deaths = 0
    alone = sent = False

    def __init__(
        self,
        function: Function,
        payload: Any,
        condition: threading.Condition,
        on_cancelled: Callable[[TaskFuture], None],
        *,
        mode: int = Mode.ITEM,
        size: int = 0,
    ) -> None:
        self._condition = condition
        self._on_cancelled = on_cancelled
        self.function = function
        self.payload = payload
        if mode:
            self.mode = mode
        if size:
            self.size = size

    def running(self) -> bool:
        """Whether a worker has it."""
        return self.sent and not self.done()

    def settle(self, value: Any, error: BaseException | None) -> bool:
        """It returned, or raised; with the condition held. Whether `tell` is to be called, without it."""
        # As every future does it, written out: this runs once for each task, and calling the base costs a third of it.
        self.payload = None
        if self._state != PENDING:  # cancelled meanwhile
            return False
        self._result = value
        if error is not None:
            self._exception = error
        self._state = FINISHED
        return self._listened

    def _cancelled(self) -> None:
        self._on_cancelled(self)

    def fail(self, error: BaseException) -> None:
        """It never gets to its end."""
        with self._condition:
            listened = self.settle(None, error)
        if listened:
            self.tell()
