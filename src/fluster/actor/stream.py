"""`ActorStream`: what a generator method of an actor gives, as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fluster.actor.pending import Pending, reply_of
from fluster.actor.protocol import Kind
from fluster.errors import ActorCallTimeout

if TYPE_CHECKING:
    from fluster.actor.transport import Channel

_CREDIT_EVERY = 8


class ActorStream:
    """The items of a stream, as they come. A `for` loop over it, or `close`, ends it."""

    def __init__(self, channel: Channel, pending: Pending) -> None:
        self._channel = channel
        self._pending = pending
        self._over = False

    @property
    def done(self) -> bool:
        """Whether no more items come than have come."""
        return self._pending.done

    def __iter__(self) -> ActorStream:
        return self

    def __next__(self) -> Any:
        pending, channel = self._pending, self._channel
        if self._over:
            raise StopIteration
        items = pending.items
        assert items is not None
        try:
            channel.wait(pending, pending.deadline, until=lambda: bool(items))
        except BaseException as error:
            self._over = True
            channel.give_up(pending, error)
            raise
        if not items:
            self._over = True
            if pending.frame is not None and pending.frame.kind == Kind.END:
                raise StopIteration
            channel.result(pending)
            raise StopIteration
        frame = items.popleft()
        pending.consumed += 1
        if pending.consumed % _CREDIT_EVERY == 0 and not pending.done:
            channel.credit(pending)
        return reply_of(frame)

    def close(self) -> None:
        """The rest is not wanted."""
        if not self._over:
            self._over = True
            self._channel.give_up(self._pending, ActorCallTimeout("closed"))

    def __enter__(self) -> ActorStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
