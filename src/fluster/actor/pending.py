"""A call without a reply yet, and what becomes of the reply."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import InvalidStateError
from typing import Any

from fluster.actor import pickled
from fluster.actor.frames import Frame
from fluster.actor.futures import ActorFuture
from fluster.actor.memory import Slab
from fluster.actor.protocol import Flag, Kind
from fluster.errors import ActorCallTimeout


class NotRun(Exception):
    """The registration is gone, and it is certain that nothing of the call was run.

    Attributes:
        error: What the caller is told if there is no other registration.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Pending:
    """A call that has no reply yet. What few calls need is set on those alone.

    Attributes:
        is_plain: It is small, and the thread that made it reads its reply: nothing is to be freed, nobody to be woken.
    """

    is_plain = False
    sent = False
    done = False
    frame: Frame | None = None
    error: BaseException | None = None
    future: ActorFuture[Any] | None = None
    items: deque[Frame] | None = None
    number = 0
    consumed = 0
    slab: Slab | None = None
    wake: threading.Lock | None = None
    size = 0
    admitted = False
    buffers: Sequence[memoryview] = ()

    def __init__(self, call_id: int, body: bytes, flags: int, deadline: float | None) -> None:
        self.call_id = call_id
        self.body = body
        self.flags = flags
        self.deadline = deadline

    def left_ms(self) -> int:
        """Until its deadline, at least 1; 0: it has none."""
        if self.deadline is None:
            return 0
        return max(1, min(0xFFFFFFFF, int((self.deadline - time.monotonic()) * 1000)))


def reply_of(frame: Frame) -> Any:
    """What a reply carries.

    Raises:
        NotRun: Nothing was run, because the registration is gone.
        BaseException: What the method raised.
    """
    if frame.kind == Kind.ERROR:
        error = pickled.load_thrown(frame.body)
        try:
            if frame.flags & Flag.NOT_RUN and isinstance(error, Exception):
                raise NotRun(error)
            raise error
        finally:
            del error  # else it would refer to itself, and keep the arguments of all callers up to here
    if frame.kind == Kind.END:
        return None
    try:
        return pickled.load(frame.body, frame.buffers)
    except Exception as error:
        raise pickled.not_rebuilt("the result", error) from error


def set_once(setter: Callable[[Any], None], value: Any) -> None:
    """Whoever cancelled it in this moment is first."""
    try:
        setter(value)
    except InvalidStateError:
        pass


def release(wake: threading.Lock | None) -> bool:
    """Whether there was somebody to wake."""
    if wake is None:
        return False
    try:
        wake.release()
    except RuntimeError:  # woken already
        pass
    return True


def too_late() -> ActorCallTimeout:
    """What a caller gets when time is over."""
    return ActorCallTimeout("the call's deadline passed before its reply came")
