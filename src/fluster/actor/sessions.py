"""The calls of one caller: each runs once, however often it is sent, and its reply is kept until it has arrived."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fluster.actor import pickled
from fluster.actor.frames import Frame, Message
from fluster.actor.hosted import Hosted, Method, refused
from fluster.actor.protocol import HEADER, MAX_BODY_BYTES, STREAM_WINDOW, TARGET, Flag, Kind, ProtocolError
from fluster.actor.types import CURRENT
from fluster.errors import ActorCallTimeout, ActorNotFound, RemoteError, ResourceExhausted

if TYPE_CHECKING:
    from fluster.actor.lanes import Lane, LoopThread, Work
    from fluster.actor.memory import Slab
    from fluster.actor.peers import Peer

_TARGET_BYTES = TARGET.size

Resolve = Callable[[bytes], tuple[Hosted, Method]]
"""Gives the method that a target names; raises `ActorNotFound`, or an AttributeError that refuses it."""


class Session:
    """One caller, over however many connections, one after the other.

    Args:
        resolve: Finds methods.
        loop: Where coroutines run.
        lock: Of its own.
        max_message_bytes: Of a result.

    Attributes:
        peer: Its present connection.
        turn: How often it came back.
        silent_since: When it lost its last one; `None` while it has one.
    """

    def __init__(self, resolve: Resolve, loop: LoopThread, lock: threading.Lock, max_message_bytes: int) -> None:
        self.peer: Peer | None = None
        self.turn = 0
        self.silent_since: float | None = time.monotonic()
        self._resolve = resolve
        self._loop = loop
        self._lock = lock
        self.limit = min(max_message_bytes, MAX_BODY_BYTES)
        self._calls: dict[int, Call] = {}

    @property
    def busy(self) -> bool:
        """Whether a call of it waits or runs."""
        with self._lock:
            return any(not call.done for call in self._calls.values())

    def resume(self, open_calls: list[int]) -> list[bool]:
        """The caller comes back: which of its calls without a reply are known here.

        What else is kept has arrived, or nobody wants it. What its earlier connection still brings is not heeded: the
        caller sends it again.
        """
        with self._lock:
            before, self.peer = self.peer, None
            self.silent_since = time.monotonic()  # until it is told: it may be gone by then
            self.turn += 1
            wanted = set(open_calls)
            unwanted = [self._calls.pop(call_id) for call_id in list(self._calls) if call_id not in wanted]
            known = [call_id in self._calls for call_id in open_calls]
        for call in unwanted:
            call.cancel()
            call.release()
        if before is not None:
            before.hang_up()
        return known

    def attach(self, peer: Peer, turn: int) -> None:
        """Goes on with this connection, once the caller knows; what it may not have got is sent again.

        Not if the caller has come back over another one since then, which `turn` tells.
        """
        with self._lock:
            if turn != self.turn:
                return
            self.peer, self.silent_since = peer, None
            for call in list(self._calls.values()):
                call.resend(peer)

    def lost(self, peer: Peer) -> None:
        """The connection is gone."""
        with self._lock:
            if self.peer is peer:
                self.peer = None
                self.silent_since = time.monotonic()

    def forget(self) -> None:
        """The caller will not come back: what waits is not run, what runs is cancelled where it can be."""
        with self._lock:
            calls = list(self._calls.values())
            self._calls.clear()
        for call in calls:
            call.cancel()
            call.release()

    def take(self, peer: Peer, frame: Frame) -> tuple[Lane, Work] | None:
        """Heeds a frame; gives what is to be run, and where."""
        if peer is not self.peer:
            return None
        if frame.kind == Kind.CALL:
            if frame.acknowledged != peer.acknowledged:
                self._acknowledge(peer, frame.acknowledged)
            return self._begin(peer, frame, bool(frame.flags & Flag.STREAM))
        match frame.kind:
            case Kind.ACK:
                self._acknowledge(peer, frame.acknowledged)
            case Kind.FREE:
                peer.freed(frame.call_id)
            case Kind.DROP:
                peer.reader.borrowed.drop(frame.call_id)
            case Kind.CANCEL:
                self._cancel(frame.call_id)
            case Kind.CREDIT:
                return self._credit(frame.call_id, frame.acknowledged)
            case Kind.BYE:
                self.forget()
        return None

    def reply(self, call: Call, message: Message) -> None:
        """The end of a call: kept, and sent if there is a connection."""
        with self._lock:
            call.done = True
            if call.cancelled or self._calls.get(call.call_id) is not call:
                self._calls.pop(call.call_id, None)
                call.release()
                return
            peer = self.peer
            if peer is not None:
                peer.sent.append(call.call_id)
                call.reply, call.slab = peer.send(message)
            elif message.buffers:
                copies = [memoryview(bytes(each)) for each in message.buffers]
                call.reply = Message(message.kind, message.call_id, message.body, copies)
            else:
                call.reply = message

    def reply_small(self, call: Call, kind: int, body: bytes) -> None:
        """The same for a reply without buffers."""
        frame = HEADER.pack(len(body), 0, kind, 0, call.call_id, 0, 0) + body
        with self._lock:
            call.done = True
            if call.cancelled or self._calls.get(call.call_id) is not call:
                self._calls.pop(call.call_id, None)
                return
            call.reply = frame
            peer = self.peer
            if peer is not None:
                peer.sent.append(call.call_id)
                peer.send_small(frame)

    def item(self, call: Stream, message: Message, number: int) -> None:
        """Sends an item of a stream."""
        with self._lock:
            if self.peer is not None and not call.cancelled:
                _unpin(self.peer.send(message, number))

    def fail(self, call: Call, error: BaseException, flags: int = 0) -> None:
        """The end of a call that raised, or could not be run."""
        self.reply(call, Message(Kind.ERROR, call.call_id, pickled.dump_thrown(error), flags=flags))

    def refuse(self, peer: Peer, frame: Frame, error: Exception) -> None:
        """The call of a frame that is not read: its caller comes back over another connection, and is told."""
        with self._lock:
            if frame.kind != Kind.CALL or frame.call_id in self._calls or peer is not self.peer:
                return
            call = self._calls[frame.call_id] = Call(self, frame)
            call.done = True
            call.reply = Message(Kind.ERROR, frame.call_id, pickled.dump_thrown(error))

    def _begin(self, peer: Peer, frame: Frame, streams: bool) -> tuple[Lane, Work] | None:
        call = Stream(self, frame) if streams else Call(self, frame)
        with self._lock:
            if peer is not self.peer or self._calls.setdefault(frame.call_id, call) is not call:
                return None  # sent twice; its reply comes, or has been sent again
        try:
            hosted, method = self._resolve(call.target())
            if method.streams is not streams:
                raise _wrong_way(method)
        except ProtocolError:
            with self._lock:
                del self._calls[frame.call_id]
            raise
        except BaseException as error:  # whatever the actor's attributes do when they are looked at
            self.fail(call, error, Flag.NOT_RUN if isinstance(error, ActorNotFound) else 0)
            return None
        call.hosted, call.method = hosted, method
        if method.in_loop:
            call.stop = self._loop.spawn(call.run_async)
            return None
        return hosted.lane, call

    def _acknowledge(self, peer: Peer, number: int) -> None:
        with self._lock:
            # Frames that were made at the same time may come in another order: an older number says nothing.
            ahead = (number - peer.acknowledged) & 0xFFFFFFFF
            if ahead > len(peer.sent):
                return
            peer.acknowledged = number
            for _ in range(ahead):
                call = self._calls.pop(peer.sent.popleft(), None)
                if call is not None:
                    call.release()

    def _cancel(self, call_id: int) -> None:
        with self._lock:
            call = self._calls.get(call_id)
        if call is not None:
            call.cancel()

    def _credit(self, call_id: int, consumed: int) -> tuple[Lane, Work] | None:
        with self._lock:
            call = self._calls.get(call_id)
        return call.credit(consumed) if isinstance(call, Stream) else None


class Call:
    """One call, from its frame to the arrival of its reply.

    Attributes:
        done: It has its reply.
        cancelled: Nobody waits for the reply.
        reply: What was or will be sent, in memory that nobody changes.
        slab: Where its large buffers lie.
        stop: Cancels its coroutine.
    """

    __slots__ = (
        "_body",
        "_borrows",
        "_buffers",
        "call_id",
        "cancelled",
        "deadline",
        "done",
        "hosted",
        "method",
        "reply",
        "session",
        "slab",
        "stop",
    )

    def __init__(self, session: Session, frame: Frame) -> None:
        self.session = session
        self.call_id = frame.call_id
        self.deadline = time.monotonic() + frame.left_ms / 1000 if frame.left_ms else None
        self.done = self.cancelled = False
        self.reply: Message | bytes | None = None
        self.stop: Callable[[], None] | None = None
        self.hosted: Hosted
        self.method: Method
        self._body: bytes | memoryview | None = frame.body
        self._buffers: Sequence[memoryview] = frame.buffers
        self._borrows = bool(frame.buffers)
        self.slab: Slab | None = None

    def target(self) -> bytes:
        """What is called; the body keeps the arguments alone.

        Raises:
            ProtocolError: The body is none of a call.
        """
        body = self._body
        if body is None or len(body) < _TARGET_BYTES:
            raise ProtocolError("a call without a target came")
        end = _TARGET_BYTES + TARGET.unpack_from(body)[0]
        self._body = body[end:]
        return bytes(body[_TARGET_BYTES:end])

    def run(self) -> None:
        """Runs it in a lane's thread."""
        if (self.cancelled or self.deadline is not None or self.hosted.gone) and not self._may_begin():
            return
        try:
            function, args, kwargs = self._prepared()
            value = function(*args, **kwargs)
        except BaseException as error:
            args = kwargs = None
            self._raised(error)
        else:
            del args, kwargs, function
            if type(value) in pickled.ATOMS and not self._borrows:
                body = pickle.dumps(value, 5)
                if len(body) <= self.session.limit:
                    self.session.reply_small(self, Kind.REPLY, body)
                    return
            self._returned(value)

    async def run_async(self) -> None:
        """Runs it in the event loop."""
        if not self._may_begin():
            return
        try:
            function, args, kwargs = self._prepared()
            left_s = None if self.deadline is None else self.deadline - time.monotonic()
            limit = asyncio.timeout(left_s)
            try:
                async with limit:
                    value = await function(*args, **kwargs)
            except TimeoutError:
                if limit.expired():  # else it is the method's own
                    raise ActorCallTimeout("the call's deadline passed while it ran") from None
                raise
        except asyncio.CancelledError as error:
            args = kwargs = None
            self._raised(error)
        except BaseException as error:
            args = kwargs = None
            self._raised(error)
        else:
            del args, kwargs, function
            self._returned(value)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.cancelled = True
        if self.stop is not None:
            self.stop()

    def resend(self, peer: Peer) -> None:
        """Sends what there is of a reply."""
        if self.reply is not None:
            peer.sent.append(self.call_id)
            if isinstance(self.reply, bytes):
                peer.send_small(self.reply)
            else:
                _unpin(peer.send(self.reply))

    def release(self) -> None:
        """Its reply has arrived, or nobody wants it."""
        self.reply = None
        if self.slab is not None:
            self.slab.pinned, self.slab = False, None

    def _may_begin(self) -> bool:
        if self.cancelled:
            self._drop_arguments()
            self.session.fail(self, ActorCallTimeout("the call was cancelled before it began"))
            return False
        if self.deadline is not None and time.monotonic() > self.deadline:
            self._drop_arguments()
            self.session.fail(self, ActorCallTimeout("the call's deadline passed before it began"))
            return False
        if self.hosted.gone:
            self._drop_arguments()
            self.session.fail(self, _unregistered(self.hosted), Flag.NOT_RUN)
            return False
        return True

    def _prepared(self) -> tuple[Callable[..., Any], Any, Any]:
        body, buffers = self._body, self._buffers
        self._body, self._buffers = None, ()
        assert body is not None
        try:
            args, kwargs = pickle.loads(body, buffers=buffers)
        except Exception as error:
            raise RemoteError(
                f"the arguments of {self.method.name} cannot be rebuilt in the actor: {type(error).__name__}: {error}"
            ) from error
        hosted, method = self.hosted, self.method
        if method.takes_context:
            args = (hosted.context, *args)
        CURRENT.set(hosted.context)
        return getattr(hosted.actor, method.name), args, kwargs

    def _drop_arguments(self) -> None:
        self._body, self._buffers = None, ()

    def _returned(self, value: Any) -> None:
        self._free_arguments()
        self.session.reply(self, dumped(Kind.REPLY, self.call_id, value, self.session.limit))

    def _raised(self, error: BaseException) -> None:
        content = pickled.dump_thrown(error)
        # What it refers to, arguments among others, is not needed any more.
        BaseException.with_traceback(error, None)  # its class may refuse to have attributes set
        del error
        self._free_arguments()
        self.session.reply(self, Message(Kind.ERROR, self.call_id, content))

    def _free_arguments(self) -> None:
        peer = self.session.peer
        if peer is not None and self._borrows:
            peer.free()


class Stream(Call):
    """A call whose method gives items: it goes on in steps, as far as the caller has consumed what came before."""

    __slots__ = ("_consumed", "_iterator", "_parked", "_parking", "_sent", "_unconsumed", "_wake")

    def __init__(self, session: Session, frame: Frame) -> None:
        super().__init__(session, frame)
        self._iterator: Iterator[Any] | None = None
        self._unconsumed: deque[tuple[int, Message]] = deque()
        self._sent = self._consumed = 0
        self._parked = False
        self._parking = threading.Lock()
        self._wake: asyncio.Event | None = None

    def run(self) -> None:
        """One step: items as far as they are wanted, unless something else waits for the thread."""
        try:
            if self._iterator is None:
                if not self._may_begin():
                    return
                function, args, kwargs = self._prepared()
                self._iterator = iter(function(*args, **kwargs))
            CURRENT.set(self.hosted.context)
            while not self.cancelled:
                if self._sent - self._consumed >= STREAM_WINDOW and self._park():
                    return
                self._give(next(self._iterator))
                if self.hosted.lane.has_work and not self.hosted.lane.closed:
                    self.hosted.lane.push(self)
                    return
            self._close()
            self._returned(None)
        except StopIteration:
            self._returned(None)
        except BaseException as error:
            self._raised(error)

    async def run_async(self) -> None:
        """All of it, in the event loop."""
        self._wake = asyncio.Event()
        if not self._may_begin():
            return
        try:
            function, args, kwargs = self._prepared()
            items: AsyncIterator[Any] = function(*args, **kwargs)
            async for item in items:
                self._give(item)
                while self._sent - self._consumed >= STREAM_WINDOW:
                    self._wake.clear()
                    await self._wake.wait()
        except BaseException as error:
            self._raised(error)
        else:
            self._returned(None)

    def cancel(self) -> None:
        """Ends it at its next item."""
        super().cancel()
        if self.stop is None and self._unparked():
            self.hosted.lane.push(self)

    def credit(self, consumed: int) -> tuple[Lane, Work] | None:
        """The caller has consumed so many."""
        self._consumed = max(self._consumed, consumed)
        while self._unconsumed and self._unconsumed[0][0] <= consumed:
            self._unconsumed.popleft()
        if self._wake is not None:
            self.session._loop.call(self._wake.set)
        elif self._unparked():
            return self.hosted.lane, self
        return None

    def resend(self, peer: Peer) -> None:
        """Sends what is not known to have arrived."""
        for number, message in list(self._unconsumed):  # which the generator's thread lengthens meanwhile
            _unpin(peer.send(message, number))
        super().resend(peer)

    def _close(self) -> None:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()

    def _park(self) -> bool:
        """Waits for credit; false if it came just now."""
        self._parked = True
        wanted = self._sent - self._consumed < STREAM_WINDOW or self.cancelled
        # Whoever gave credit in this moment may have seen to it that another thread goes on.
        return not (wanted and self._unparked())

    def _unparked(self) -> bool:
        """Whether it is the calling thread that is to go on with it: one of those that try."""
        with self._parking:
            parked, self._parked = self._parked, False
        return parked

    def _give(self, item: Any) -> None:
        self._sent += 1
        message = dumped(Kind.ITEM, self.call_id, item, self.session.limit)
        if message.kind == Kind.ERROR:
            raise pickled.load_thrown(message.body)
        if message.buffers:
            # A copy: the generator may change what it gave, and the item may have to be sent again.
            message.buffers = [memoryview(bytes(each)) for each in message.buffers]
        self._unconsumed.append((self._sent, message))
        self.session.item(self, message, self._sent)

    def _returned(self, value: Any) -> None:
        self._free_arguments()
        self.session.reply(self, Message(Kind.END, self.call_id, b""))


def dumped(kind: int, call_id: int, value: Any, limit: int) -> Message:
    """A value to be sent; an ERROR if it cannot be, or takes more bytes than `limit`."""
    try:
        body, buffers = pickled.dump(value)
    except BaseException as error:  # whatever its class does when it is pickled
        return Message(Kind.ERROR, call_id, pickled.dump_thrown(pickled.unpicklable_result(value, error)))
    message = Message(kind, call_id, body, buffers)
    if message.size > limit:
        excess = ResourceExhausted(f"the result takes {message.size:,} bytes, more than the {limit:,} that may travel")
        return Message(Kind.ERROR, call_id, pickled.dump_thrown(excess))
    return message


def _wrong_way(method: Method) -> AttributeError:
    if method.streams:
        return refused(f"{method.name} gives a stream: call proxy.{method.name}.stream(...)")
    return refused(f"{method.name} gives no stream: call it as proxy.{method.name}(...)")


def _unpin(sent: tuple[Message, Slab | None]) -> None:
    """What it was sent from is kept anyway."""
    if sent[1] is not None:
        sent[1].pinned = False


def _unregistered(hosted: Hosted) -> Exception:
    return ActorNotFound(hosted.name, f"actor {hosted.name!r} was unregistered")
