"""Cuts what comes on a socket into frames, and lays out those to be sent."""

from __future__ import annotations

import array
import socket
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from fluster.actor.memory import SHARED_FROM_BYTES, Borrowed, Received, Slab, Slabs, copy_into, layout
from fluster.actor.protocol import BUFFER, HEADER, IN_STREAM, LAST_KIND, MAX_BUFFERS, SLAB, Flag, ProtocolError
from fluster.actor.tls import AnySocket, TlsSocket

_CHUNK = 64 << 10
_DIRECT_BYTES = 32 << 10
"""So much of one piece is received where it belongs, without a stop between."""
_HEADER_BYTES = HEADER.size
_ANCILLARY_BYTES = socket.CMSG_SPACE(16 * array.array("i").itemsize)
_MAX_DESCRIPTORS = 64
_MAX_PIECES = 64


@dataclass(slots=True, eq=False)
class Frame:
    """One frame as it came.

    Attributes:
        kind: A `Kind`.
        flags: Bits of `Flag`.
        call_id: What it is about.
        acknowledged: Replies of this connection that its sender has; of a CREDIT: items it has consumed.
        left_ms: Until the call's deadline; 0: none.
        body: For a call: target and arguments.
        buffers: Out of band, in order, all writable.
    """

    kind: int
    flags: int
    call_id: int
    acknowledged: int
    left_ms: int
    body: bytes | memoryview
    buffers: list[memoryview]


class TooLarge(ProtocolError):
    """A message beyond the limit comes; the connection cannot go on, because it is not read.

    Attributes:
        frame: Its header.
    """

    def __init__(self, frame: Frame, limit: int) -> None:
        super().__init__(f"it takes more than the {limit:,} bytes that the other side accepts")
        self.frame = frame


class FrameReader:
    """Reads one connection. One thread at a time.

    Args:
        sock: A blocking socket, or one that raises `BlockingIOError` when there is nothing.
        received: Where large buffers go.
        max_message_bytes: Of body and buffers of a frame.
    """

    def __init__(self, sock: AnySocket, received: Received, max_message_bytes: int) -> None:
        self.borrowed = Borrowed()
        self._sock = sock
        self._passes_descriptors = sock.family == socket.AF_UNIX
        # What is encrypted has to be turned first: there is nothing to be received in place.
        self._direct_from = sys.maxsize if isinstance(sock, TlsSocket) else _DIRECT_BYTES
        self._received = received
        self._limit = max_message_bytes
        self._rest = b""
        self._descriptors: deque[int] = deque()
        self._frame: Frame | None = None
        self._head: memoryview | None = None  # table and body of a frame that did not come in one piece
        self._buffer_count = 0
        self._to_fill: deque[memoryview] = deque()
        self._frames: list[Frame] = []

    def read(self) -> list[Frame]:
        """What one look at the socket completes; may be nothing.

        Raises:
            EOFError: The other end has closed.
            ProtocolError: What came is no frame.
            OSError: The connection is broken; `BlockingIOError`: nothing has come.
        """
        if self._to_fill and len(self._to_fill[0]) >= self._direct_from:
            assert isinstance(self._sock, socket.socket)
            count = self._sock.recv_into(self._to_fill[0])
            if count == 0:
                raise EOFError
            self._filled(count)
        else:
            data = self._receive()
            if not (self._rest or self._to_fill) and len(data) >= _HEADER_BYTES:
                # Nearly always: one frame, and nothing else.
                size, count, kind, flags, call_id, acknowledged, left_ms = HEADER.unpack_from(data)
                if count == 0 and size + _HEADER_BYTES == len(data) and not flags & Flag.SLAB and 0 < kind <= LAST_KIND:
                    return [Frame(kind, flags, call_id, acknowledged, left_ms, data[_HEADER_BYTES:], [])]
            self._feed(data)
        frames, self._frames = self._frames, []
        return frames

    def close(self) -> None:
        """Descriptors that came and were not asked for."""
        while self._descriptors:
            socket.close(self._descriptors.popleft())

    def _receive(self) -> bytes:
        if not self._passes_descriptors:
            data = self._sock.recv(_CHUNK)
        else:
            assert isinstance(self._sock, socket.socket)
            data, ancillary, _, _ = self._sock.recvmsg(_CHUNK, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    descriptors = array.array("i")
                    descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
                    self._descriptors.extend(descriptors)
                    if len(self._descriptors) > _MAX_DESCRIPTORS:
                        raise ProtocolError("descriptors came that no frame asked for")
        if not data:
            raise EOFError
        return data

    def _feed(self, data: bytes) -> None:
        position = 0
        if self._to_fill:
            view = memoryview(data)
            while self._to_fill and position < len(data):
                count = min(len(self._to_fill[0]), len(data) - position)
                self._to_fill[0][:count] = view[position : position + count]
                position += count
                self._filled(count)
        elif self._rest:
            data, self._rest = self._rest + data, b""
        while not self._to_fill and len(data) - position >= _HEADER_BYTES:
            position = self._start(data, position)
        if position < len(data):
            self._rest = data[position:]

    def _start(self, data: bytes, position: int) -> int:
        """Begins the frame at this position; returns where what it took of `data` ends."""
        header: tuple[int, int, int, int, int, int, int] = HEADER.unpack_from(data, position)
        body_bytes, count, kind, flags, call_id, acknowledged, left_ms = header
        if not 0 < kind <= LAST_KIND or count > MAX_BUFFERS:
            raise ProtocolError("what came is no frame, or one beyond the limits")
        position += _HEADER_BYTES
        head_bytes = body_bytes + count * BUFFER.size + (SLAB.size if flags & Flag.SLAB else 0)
        frame = Frame(kind, flags, call_id, acknowledged, left_ms, b"", [])
        if body_bytes > self._limit:
            raise TooLarge(frame, self._limit)
        end = position + head_bytes
        if end <= len(data):
            if head_bytes == body_bytes:
                frame.body = data[position:end]
                self._frames.append(frame)
                return end
            self._begin_buffers(frame, count, memoryview(data)[position:end])
        else:
            self._frame, self._buffer_count = frame, count
            self._head = self._received.take(head_bytes)
            here = len(data) - position
            self._head[:here] = memoryview(data)[position:]
            self._to_fill.append(self._head[here:])
            return len(data)
        view = memoryview(data)
        while self._to_fill and end < len(data):
            count = min(len(self._to_fill[0]), len(data) - end)
            self._to_fill[0][:count] = view[end : end + count]
            end += count
            self._filled(count)
        return end

    def _filled(self, count: int) -> None:
        """So much of the first piece to fill is there."""
        piece = self._to_fill.popleft()
        if count < len(piece):
            self._to_fill.appendleft(piece[count:])
        elif not self._to_fill:
            frame, head = self._frame, self._head
            assert frame is not None
            self._frame = self._head = None
            if head is None:
                self._frames.append(frame)
            else:
                self._begin_buffers(frame, self._buffer_count, head)

    def _begin_buffers(self, frame: Frame, count: int, head: memoryview) -> None:
        """Table and body are there: makes room for the buffers, or finishes the frame."""
        position, number = 0, 0
        if frame.flags & Flag.SLAB:
            number = self._take_slab(*SLAB.unpack_from(head))
            position = SLAB.size
        total = len(head)
        for offset in range(position, position + count * BUFFER.size, BUFFER.size):
            size, where = BUFFER.unpack_from(head, offset)
            total += size
            if total > self._limit:
                raise TooLarge(frame, self._limit)
            if where == IN_STREAM:
                piece = self._received.take(size)
                frame.buffers.append(piece)
                if size:
                    self._to_fill.append(piece)
            else:
                frame.buffers.append(self._borrow(number, where, size))
        frame.body = head[position + count * BUFFER.size :]
        if self._to_fill:
            self._frame = frame
        else:
            self._frames.append(frame)

    def _take_slab(self, number: int, size: int) -> int:
        if not self.borrowed.knows(number):
            if not self._descriptors:
                raise ProtocolError("shared memory was named that did not come")
            try:
                self.borrowed.add(number, size, self._descriptors.popleft())
            except ValueError as error:
                raise ProtocolError(str(error)) from None
        return number

    def _borrow(self, number: int, offset: int, size: int) -> memoryview:
        try:
            return self.borrowed.view(number, offset, size)
        except ValueError as error:
            raise ProtocolError(str(error)) from None


@dataclass(slots=True)
class Message:
    """What a frame is made of, as often as it has to be sent.

    Attributes:
        kind: A `Kind`.
        flags: Bits of `Flag`; `SLAB` is not among them.
        call_id: What it is about.
        body: The whole body.
        buffers: Out of band.
    """

    kind: int
    call_id: int
    body: bytes
    buffers: Sequence[memoryview] = ()
    flags: int = 0

    @property
    def size(self) -> int:
        """Bytes of body and buffers."""
        return len(self.body) + sum(each.nbytes for each in self.buffers)


@dataclass(slots=True)
class Outgoing:
    """A frame ready to be sent: pieces in order, and the descriptor that goes with the first.

    Attributes:
        slab: Where its large buffers lie.
        offsets: Where each of its buffers lies in the slab; `IN_STREAM`: not there.
        begun: Some of it was sent.
    """

    pieces: list[bytes | memoryview]
    descriptor: int | None = None
    slab: Slab | None = None
    offsets: Sequence[int] = ()
    begun: bool = False

    def snapshot(self, message: Message, memory: Received) -> Message:
        """The message with memory that its owner cannot change: the slab's, which must be pinned, or a copy.

        What is to be sent is then taken from there.
        """
        buffers = [
            memory.copy(each)
            if self.slab is None or offset == IN_STREAM
            else memoryview(self.slab.mapping)[offset : offset + each.nbytes]
            for each, offset in zip(message.buffers, self.offsets, strict=True)
        ]
        in_stream = [each for each, place in zip(buffers, self.offsets, strict=True) if place == IN_STREAM]
        self.pieces[1:] = [each for each in in_stream if each.nbytes]
        return Message(message.kind, message.call_id, message.body, buffers, message.flags)


def small_frame(
    kind: int, call_id: int = 0, body: bytes = b"", *, flags: int = 0, acknowledged: int = 0, left_ms: int = 0
) -> bytes:
    """A frame without buffers."""
    return HEADER.pack(len(body), 0, kind, flags, call_id, acknowledged, left_ms) + body


def lay_out(message: Message, slabs: Slabs | None, *, acknowledged: int = 0, left_ms: int = 0) -> Outgoing:
    """The frame of a message; large buffers are copied into a slab if there is one to be had."""
    buffers = message.buffers
    if not buffers:
        return Outgoing(
            [
                small_frame(
                    message.kind,
                    message.call_id,
                    message.body,
                    flags=message.flags,
                    acknowledged=acknowledged,
                    left_ms=left_ms,
                )
            ]
        )
    large = [index for index, each in enumerate(buffers) if each.nbytes >= SHARED_FROM_BYTES] if slabs else []
    offsets, size = layout(buffers[index].nbytes for index in large)
    slab = slabs.take(size) if slabs is not None and large else None
    places = [IN_STREAM] * len(buffers)
    if slab is not None:
        target = memoryview(slab.mapping)
        for index, offset in zip(large, offsets, strict=True):
            copy_into(target[offset : offset + buffers[index].nbytes], buffers[index])
            places[index] = offset
    flags = message.flags | (Flag.SLAB if slab is not None else 0)
    head = bytearray(
        HEADER.pack(len(message.body), len(buffers), message.kind, flags, message.call_id, acknowledged, left_ms)
    )
    if slab is not None:
        head += SLAB.pack(slab.number, slab.size)
    for each, place in zip(buffers, places, strict=True):
        head += BUFFER.pack(each.nbytes, place)
    head += message.body
    pieces: list[bytes | memoryview] = [bytes(head)]
    pieces += [each for each, place in zip(buffers, places, strict=True) if place == IN_STREAM and each.nbytes]
    descriptor = slab.descriptor if slab is not None and slab.descriptor >= 0 else None
    return Outgoing(pieces, descriptor, slab, places)


def send_pieces(sock: AnySocket, outgoing: Outgoing) -> None:
    """Sends a frame, its descriptor with the first piece; takes off what went, also when it cannot go on.

    Raises:
        OSError: The connection is broken; `BlockingIOError`: it takes no more now.
    """
    pieces = outgoing.pieces
    while pieces:
        ancillary = []
        if outgoing.descriptor is not None:
            rights = array.array("i", [outgoing.descriptor])
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, rights))
        sent = sock.sendmsg(pieces[:_MAX_PIECES], ancillary)
        if outgoing.descriptor is not None and outgoing.slab is not None:
            outgoing.slab.close_descriptor()
            outgoing.descriptor = None
        skip(pieces, sent)


def skip(pieces: list[bytes | memoryview], count: int) -> None:
    """Takes the first `count` bytes off."""
    while count:
        size = len(pieces[0]) if isinstance(pieces[0], bytes) else pieces[0].nbytes
        if count < size:
            pieces[0] = memoryview(pieces[0])[count:]
            return
        count -= size
        del pieces[0]
