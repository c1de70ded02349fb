"""Calls from this process to one actor server: sent once, sent again when a connection breaks, answered once.

Any threads may call. One that waits for its reply reads the connection itself, for all who wait, and hands reading on
when it has what it waited for; a thread of its own reads only for futures.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from pickle import dumps, loads
from threading import get_ident
from typing import Any

from fluster.actor import admission, pickled
from fluster.actor.admission import Admission
from fluster.actor.background import Clock, Reader, Teller, Writer
from fluster.actor.frames import Frame, Message
from fluster.actor.futures import ActorFuture
from fluster.actor.line import Line
from fluster.actor.link import Link, NotSentInTime
from fluster.actor.memory import Received
from fluster.actor.pending import NotRun, Pending, release, reply_of, set_once, too_late
from fluster.actor.pickled import ATOMS
from fluster.actor.protocol import DEFAULT_MAX_MESSAGE_BYTES, MAX_BODY_BYTES, Flag, Kind
from fluster.actor.role import Role
from fluster.actor.stream import ActorStream
from fluster.errors import ActorCallTimeout, ActorUnavailable, ResourceExhausted

_LOOK_AGAIN_S = 0.2
_CALL, _REPLY = Kind.CALL, Kind.REPLY
_QUICK_BYTES = 16 << 10


class Channel:
    """The way from this process to one server.

    Args:
        address: ``host:port``.
        access_key: Of the server.
        max_message_bytes: Of a call's arguments, and of its result.
    """

    def __init__(self, address: str, access_key: str, *, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> None:
        self._limit = max_message_bytes
        self._received = Received()
        self._ids = itertools.count(1)
        self._pending: dict[int, Pending] = {}
        self._futures: dict[int, Pending] = {}
        self._ends = threading.Condition()  # of all futures
        self._frames: deque[tuple[Link, Frame]] = deque()  # read, and not heeded yet
        # Whoever has the role of reading may take the lock of sending, never the other way round.
        self._role = Role(self._read)
        self._sending = threading.Lock()
        self._admission = Admission(self._pending)
        self._line = Line(
            address,
            access_key,
            self._received,
            max_message_bytes,
            self._pending,
            resend=self._transmit,
            on_gone=self._nobody_waits,
        )
        self._reader = Reader(self._futures, self._read_for_futures)
        self._writer = Writer(self._line, self._sending)
        self._clock = Clock(self._expire)
        self._teller = Teller()

    @property
    def gone(self) -> bool:
        """Whether the registration is known to be gone."""
        return self._line.gone is not None

    @property
    def spent(self) -> bool:
        """Whether the registration is gone and nobody waits any more."""
        return self._line.gone is not None and not self._pending

    def call(self, target: bytes, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None) -> Any:
        """Calls and waits for the result.

        Raises:
            ActorCallTimeout: It did not come in time.
            ActorUnavailable: The registration is gone; whether the call ran is unknown.
            NotRun: The registration is gone, and the call did not run.
            BaseException: What the method raised.
        """
        if timeout is None and not kwargs and not self._role.is_taken:
            for each in args:
                if type(each) not in ATOMS:
                    break
            else:
                body = target + dumps((args, kwargs), 5)
                if len(body) < _QUICK_BYTES and self._role.take():
                    return self._call_quickly(body)
        pending = self._prepare(target, args, kwargs, timeout)
        try:
            self._send(pending)
            if not pending.done:
                self._role.wait(pending, pending.deadline)
        except BaseException as error:
            self.give_up(pending, error)
            raise
        return self.result(pending)

    def _call_quickly(self, body: bytes) -> Any:
        """A small call of a thread that has the role of reading: the same as others, with less on the way."""
        pending = Pending(next(self._ids), body, 0, None)
        pending.is_plain = True
        try:
            try:
                line = self._line
                link = line.link
                if link is None or link.used or line.gone or len(self._pending) >= admission.MAX_IN_FLIGHT:
                    self._send(pending)
                else:
                    with self._sending:
                        self._pending[pending.call_id] = pending
                        pending.sent = True
                        try:
                            link.send_small(_CALL, pending.call_id, body)
                        except OSError:
                            self._broken(link)
                while not pending.done:
                    self._read(None)
            finally:
                self._role.release()
        except BaseException as error:
            self.give_up(pending, error)
            raise
        return self.result(pending)

    def submit(
        self, target: bytes, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None
    ) -> ActorFuture[Any]:
        """Calls; the result comes to the future. Arguments are taken as they are now."""
        pending = self._prepare(target, args, kwargs, timeout)
        future: ActorFuture[Any] = ActorFuture(functools.partial(self._cancel, pending), self._ends)
        pending.future = future
        self._futures[pending.call_id] = pending
        try:
            self._send(pending)
        except BaseException as error:
            self._futures.pop(pending.call_id, None)
            self.give_up(pending, error)
            raise
        if pending.deadline is not None:
            self._clock.look_at(pending.deadline)
        if not self._reader.reads:
            self._reader.start()
        return future

    def stream(
        self, target: bytes, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None
    ) -> ActorStream:
        """Calls a method that gives items."""
        pending = self._prepare(target, args, kwargs, timeout, Flag.STREAM)
        pending.items = deque()
        try:
            self._send(pending)
        except BaseException as error:
            self.give_up(pending, error)
            raise
        return ActorStream(self, pending)

    def close(self) -> None:
        """Ends the connection; calls without a reply fail."""
        with self._sending:
            self._line.leave("the connection to the actor was closed by this program")
        self._fail_all()
        for thread in (self._reader.stop(), self._writer.stop(), self._clock.close(), self._teller.close()):
            if thread is not None and thread is not threading.current_thread():
                thread.join(5.0)
        if self._role.is_mine:
            self._line.let_go()
        elif self._role.take(timeout=5.0):
            self._line.let_go()
            self._role.release()

    def abandon(self) -> None:
        """In a forked child: the parent's connection is let go of, and goes on there."""
        self._line.abandon()

    # Sending

    def _prepare(
        self, target: bytes, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None, flags: int = 0
    ) -> Pending:
        body, buffers = pickled.dump_arguments(args, kwargs)
        body = target + body
        size = len(body) + sum(each.nbytes for each in buffers) if buffers else len(body)
        if size > self._limit or len(body) > MAX_BODY_BYTES:
            limit = min(self._limit, MAX_BODY_BYTES)
            raise ResourceExhausted(
                f"the call's arguments take {size:,} bytes, more than the {limit:,} that may travel"
            )
        if self._line.gone is not None:
            raise NotRun(ActorUnavailable(self._line.gone))
        deadline = None if timeout is None else time.monotonic() + timeout
        pending = Pending(next(self._ids), body, flags, deadline)
        if buffers:
            pending.buffers = buffers
        if size >= admission.LARGE_BYTES:  # the number of calls bounds the others
            pending.size = size
        return pending

    def _send(self, pending: Pending) -> None:
        if pending.size or len(self._pending) >= admission.MAX_IN_FLIGHT:
            self._admission.enter(pending, waits=not self._role.is_mine)  # others wait for what is read here
        deadline = pending.deadline
        if deadline is None:
            self._sending.acquire()
        elif not self._sending.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise too_late()
        try:
            link = self._line.link or self._line.open(deadline)
            self._pending[pending.call_id] = pending
            if pending.sent:
                return
            pending.sent = True
            try:
                if pending.buffers or link.used:
                    self._transmit(link, pending)
                elif pending.future is None or len(self._pending) == 1:
                    left_ms = 0 if deadline is None else pending.left_ms()
                    link.send_small(_CALL, pending.call_id, pending.body, pending.flags, left_ms)
                elif link.queue_small(Kind.CALL, pending.call_id, pending.body, pending.flags, pending.left_ms()):
                    self._writer.wake()
            except NotSentInTime:
                raise too_late() from None
            except OSError:
                self._broken(link)
        finally:
            self._sending.release()
            self._fail_all_if_gone()

    def _transmit(self, link: Link, pending: Pending) -> None:
        link.free()
        if not pending.buffers:
            link.send_small(Kind.CALL, pending.call_id, pending.body, pending.flags, pending.left_ms())
            return
        message = Message(Kind.CALL, pending.call_id, pending.body, pending.buffers, pending.flags)
        goes_on = pending.future is not None or pending.items is not None
        try:
            outgoing = link.send(message, left_ms=pending.left_ms())
        except OSError:
            if goes_on:
                pending.buffers = [self._received.copy(each) for each in pending.buffers]
            raise
        if goes_on:
            # The caller goes on, and may change what it gave.
            pending.buffers, pending.slab = outgoing.snapshot(message, self._received).buffers, outgoing.slab
            if outgoing.slab is not None:
                outgoing.slab.pinned = True
                if pending.done:  # its reply was there sooner
                    self._discharge(pending)

    def _discharge(self, pending: Pending) -> None:
        """Its room is free."""
        slab, pending.slab, pending.buffers = pending.slab, None, ()
        if slab is not None:
            slab.pinned = False
        self._admission.leave(pending)

    # When the connection breaks

    def _broken(self, link: Link) -> None:
        self._line.broken(link, by_reader=self._role.is_mine)

    def _nobody_waits(self) -> None:
        """The registration is gone; `_fail_all` tells those whose calls were sent, without the lock of sending."""
        self._admission.stop()
        self._reader.stop()

    def _fail_all_if_gone(self) -> None:
        if self._line.gone is not None and self._line.link is None:
            self._fail_all()

    def _fail_all(self) -> None:
        why = self._line.gone
        assert why is not None
        while self._pending:
            try:
                _, pending = self._pending.popitem()
            except KeyError:
                break
            error = ActorUnavailable(why)  # for each its own: whoever raises one lengthens its traceback
            pending.error = error if pending.sent else NotRun(error)
            self._settle(pending)

    # Receiving

    def wait(self, pending: Pending, deadline: float | None, *, until: Callable[[], bool] | None = None) -> None:
        """Returns when the call has its reply, or `until` is true."""
        self._role.wait(pending, deadline, until=until)

    def _read(self, deadline: float | None) -> None:
        """Reads once, for all who wait."""
        line = self._line
        if line.hung_up:
            line.let_go()
        if self._frames:
            self._heed_all()
            return
        link = line.link
        if link is None:
            self._restore(deadline)
            return
        found = len(self._pending) == 1 and not self._futures and link.spin.wait()
        if not found and not self._has_come(link, deadline):
            return
        try:
            frames = link.reader.read()
        except (EOFError, OSError, ValueError, MemoryError):
            with self._sending:
                self._broken(link)
            return
        except BaseException:  # a signal's: what was read may be lost
            self._broken(link)
            raise
        if len(frames) == 1:
            self._heed(link, frames[0])
        else:
            self._frames.extend((link, frame) for frame in frames)
            self._heed_all()

    def _has_come(self, link: Link, deadline: float | None) -> bool:
        """Whether it is time to read; false when it is time to see what has become of the call.

        In the main thread a signal's handler may call the same actor, and read what is waited for here: nothing more
        would come then.

        Raises:
            ActorCallTimeout: The deadline has passed.
        """
        left_s = None if deadline is None else deadline - time.monotonic()
        if get_ident() == threading.main_thread().ident:
            longest_s = _LOOK_AGAIN_S if left_s is None else min(_LOOK_AGAIN_S, left_s)
        elif left_s is not None:
            longest_s = left_s
        else:
            return True  # to read is to wait
        if link.readable_within(longest_s):
            return True
        if left_s is not None and left_s <= 0:
            raise too_late()
        return False

    def _heed_all(self) -> None:
        # The callback of a future may come back here, and must find what is left.
        while self._frames:
            self._heed(*self._frames.popleft())

    def _restore(self, deadline: float | None) -> None:
        if not self._pending:
            return
        timeout = -1 if deadline is None else max(0.0, deadline - time.monotonic())
        if not self._sending.acquire(timeout=timeout):
            raise too_late()
        try:
            if self._line.link is None and self._pending:
                self._line.open(deadline)
        except NotRun:
            pass  # who waits is told below
        finally:
            self._sending.release()
        self._fail_all_if_gone()

    def _heed(self, link: Link, frame: Frame) -> None:
        kind = frame.kind
        if kind == _REPLY or kind == Kind.ERROR or kind == Kind.END:
            link.replies += 1
            pending = self._pending.pop(frame.call_id, None)
            if pending is not None:
                pending.frame = frame
                if pending.is_plain and not self._admission.blocked:
                    pending.done = True
                else:
                    self._settle(pending)
            if frame.buffers:
                self._quietly(link.acknowledge)
                self._quietly(link.free)
        elif kind == Kind.ITEM:
            pending = self._pending.get(frame.call_id)
            if pending is not None and pending.items is not None and frame.acknowledged == pending.number + 1:
                pending.number += 1
                pending.items.append(frame)
                release(pending.wake)
        elif kind == Kind.FREE:
            link.freed(frame.call_id)
        elif kind == Kind.DROP:
            link.reader.borrowed.drop(frame.call_id)
        elif kind == Kind.BYE:
            self._line.shuts_down(f"the actor's server at {self._line.address} shuts down")

    def _settle(self, pending: Pending) -> None:
        """The call has its reply, or never gets one."""
        pending.done = True
        if pending.buffers or pending.size or self._admission.blocked:
            self._discharge(pending)
        future = pending.future
        if future is not None:
            self._futures.pop(pending.call_id, None)
            pending.future = None
            self._resolve(pending, future)
        elif pending.wake is not None:
            release(pending.wake)

    def _resolve(self, pending: Pending, future: ActorFuture[Any]) -> None:
        value: Any = None
        error: BaseException | None = None
        try:
            value = self.result(pending)
        except NotRun as gone:
            error = gone.error
        except BaseException as raised:
            # Without the way up to here, which refers to the future: its arguments would be kept for long.
            error = BaseException.with_traceback(raised, None)
        with self._ends:
            listened = future.settle(value, error)
        if listened and future.wake():
            self._teller.tell(future)

    def result(self, pending: Pending) -> Any:
        """What came of a call that is over; raises as `reply_of`."""
        frame = pending.frame
        if frame is None:
            raise pending.error or ActorCallTimeout("the call was given up")
        pending.frame = None
        if frame.kind != _REPLY:
            return reply_of(frame)
        try:
            return loads(frame.body, buffers=frame.buffers)
        except Exception as error:
            raise pickled.not_rebuilt("the result", error) from error

    # Giving up

    def credit(self, pending: Pending) -> None:
        """Says how many items of a stream were consumed."""
        link = self._line.link
        if link is not None:
            self._quietly(lambda: link.credit(pending.call_id, pending.consumed))

    def give_up(self, pending: Pending, error: BaseException) -> None:
        """Nobody waits for it any more."""
        pending.done = True
        if self._pending.pop(pending.call_id, None) is None:
            self._discharge(pending)  # if it was not sent; else that was done
            return
        self._discharge(pending)
        link = self._line.link
        if link is not None and not isinstance(error, NotRun):
            self._quietly(lambda: link.cancel(pending.call_id))

    def _cancel(self, pending: Pending) -> None:
        self._futures.pop(pending.call_id, None)
        self.give_up(pending, ActorCallTimeout("cancelled"))

    def _quietly(self, send: Callable[[], None]) -> None:
        """What may fail to be sent: the connection's end is noticed by whoever reads it."""
        try:
            send()
        except OSError:
            pass

    # For futures

    def _read_for_futures(self) -> None:
        while self._futures:
            self._role.take(timeout=-1)
            try:
                while self._futures:
                    self._read(None)
            finally:
                self._role.release()

    def _expire(self) -> float | None:
        """Ends the futures that are due; gives the next deadline."""
        now = time.monotonic()
        for pending in list(self._futures.values()):
            if pending.deadline is not None and pending.deadline <= now:
                self._futures.pop(pending.call_id, None)
                self.give_up(pending, ActorCallTimeout(""))
                if pending.future is not None:
                    set_once(pending.future.set_exception, too_late())
        return min((p.deadline for p in list(self._futures.values()) if p.deadline is not None), default=None)
