"""A native connection as the server sees it: sends without ever waiting, and keeps what could not be sent yet."""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING

from fluster.actor.frames import FrameReader, Message, Outgoing, lay_out, send_pieces, small_frame
from fluster.actor.link import let_go
from fluster.actor.memory import Received, Slab, Slabs
from fluster.actor.protocol import Kind
from fluster.actor.tls import AnySocket

if TYPE_CHECKING:
    from fluster.actor.reactor import Reactor
    from fluster.actor.sessions import Session

_log = logging.getLogger(__name__)

_BATCH_BYTES = 64 << 10


class Peer:
    """One connection.

    Attributes:
        session: Whose calls come here.
        reader: Used by the leader.
        sent: Calls whose replies were sent here and are not known to have arrived, in order. Guarded by the session.
        acknowledged: How many have been known to arrive.
    """

    def __init__(
        self,
        sock: AnySocket,
        session: Session,
        reactor: Reactor,
        received: Received,
        max_message_bytes: int,
    ) -> None:
        sock.setblocking(False)
        self.session = session
        self.reader = FrameReader(sock, received, max_message_bytes)
        self.sent: deque[int] = deque()
        self.acknowledged = 0
        self.fileno = sock.fileno()
        self._sock = sock
        self._memory = received
        self._reactor = reactor
        self._lock = threading.Lock()
        self._slabs = Slabs() if sock.family == socket.AF_UNIX else None
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._backlog: deque[Outgoing] = deque()
        self._closed = False

    def send_small(self, frame: bytes) -> None:
        """Sends a frame without buffers, now or with the next flush of a leader that has more to run."""
        later = self._reactor.batches
        with self._lock:
            if not (later or self._batch or self._backlog or self._closed):
                try:
                    sent = self._sock.send(frame)
                except BlockingIOError:
                    sent = 0
                except OSError:  # its reader sees that it is broken
                    return
                if sent < len(frame):
                    self._backlog.append(Outgoing([frame[sent:]]))
                    self._reactor.want_to_write(self, True)
                return
            self._batch.append(frame)
            self._batch_bytes += len(frame)
            first = len(self._batch) == 1
            if not later or self._batch_bytes > _BATCH_BYTES:
                self._flush()
                return
        if first:
            self._reactor.send_later(self)

    def send(self, message: Message, number: int = 0) -> tuple[Message, Slab | None]:
        """Sends a message; returns it as it can be sent again, with the slab that is then pinned."""
        if not message.buffers:
            frame = small_frame(message.kind, message.call_id, message.body, flags=message.flags, acknowledged=number)
            self.send_small(frame)
            return message, None
        with self._lock:
            self._flush()
            outgoing = lay_out(message, None if self._closed else self._slabs, acknowledged=number)
            if outgoing.slab is not None:
                outgoing.slab.pinned = True
            snapshot = outgoing.snapshot(message, self._memory)
            if not self._closed:
                self._announce_drops()
                self._write(outgoing)
            return snapshot, outgoing.slab

    def free(self) -> None:
        """Tells the caller, with the next reply, which of its memory is not used here any more."""
        for number in self.reader.borrowed.freed():
            with self._lock:
                self._batch.append(small_frame(Kind.FREE, number))
                first = len(self._batch) == 1
            if first:
                self._reactor.send_later(self)

    def freed(self, number: int) -> None:
        """The caller does not use this slab any more."""
        with self._lock:
            if self._slabs is not None:
                self._slabs.give_back(number)

    @property
    def unsent(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._backlog or self._batch)

    def flush(self) -> None:
        """Sends what waits, as far as it goes."""
        with self._lock:
            self._flush()

    def close(self) -> None:
        """Ends the connection."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._backlog.clear()
            self._batch.clear()
            if self._slabs is not None:
                self._slabs.close()
            self.reader.close()
            try:
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            self._sock.close()
        self.session.lost(self)

    def hang_up(self) -> None:
        """Ends the connection; whoever reads it notices, and lets go of it."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def abandon(self) -> None:
        """In a forked child: the connection is the parent's."""
        let_go(self._sock)

    def _announce_drops(self) -> None:
        while self._slabs is not None and self._slabs.dropped:
            self._write(Outgoing([small_frame(Kind.DROP, self._slabs.dropped.pop())]))

    def _flush(self) -> None:
        if self._closed:
            return
        if self._batch:
            batch, self._batch, self._batch_bytes = self._batch, [], 0
            frame = batch[0] if len(batch) == 1 else b"".join(batch)
            self._write(Outgoing([frame]))
        elif self._backlog:
            self._drain()

    def _write(self, outgoing: Outgoing) -> None:
        """Sends, or keeps what does not go yet; what it lies in is changed by nobody."""
        if self._backlog:
            self._backlog.append(outgoing)
            self._drain()
            return
        if not self._push(outgoing):
            self._backlog.append(outgoing)
            self._reactor.want_to_write(self, True)

    def _drain(self) -> None:
        while self._backlog:
            if not self._push(self._backlog[0]):
                return
            self._backlog.popleft()
        self._reactor.want_to_write(self, False)

    def _push(self, outgoing: Outgoing) -> bool:
        """Whether all of it was sent; a broken connection swallows everything, and its reader notices."""
        pieces = outgoing.pieces
        try:
            if outgoing.descriptor is None and len(pieces) == 1:
                sent = self._sock.send(pieces[0])
                if sent == len(pieces[0]):
                    return True
                pieces[0] = memoryview(pieces[0])[sent:]
                return False
            send_pieces(self._sock, outgoing)
        except BlockingIOError:
            return False
        except OSError as error:
            _log.debug("a reply could not be sent: %s", error)
            pieces.clear()
        return True
