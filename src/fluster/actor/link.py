"""A connection to an actor server that is open: what the challenge says, frames in, frames out."""

from __future__ import annotations

import array
import hmac
import os
import secrets
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Sequence

from fluster.actor.frames import FrameReader, Message, Outgoing, lay_out, send_pieces, skip, small_frame
from fluster.actor.memory import Received, Slabs
from fluster.actor.protocol import (
    ANSWER,
    CHALLENGE,
    HEADER,
    NONCE_BYTES,
    VERDICT,
    VERSION,
    Hello,
    Kind,
    Verdict,
    caller_proof,
    server_proof,
    socket_name,
)
from fluster.actor.spin import Spin
from fluster.actor.tls import AnySocket, TlsSocket, connect_tls
from fluster.rpc.trust import split_pin

CONNECT_TIMEOUT_S = 10.0
_MAX_PIECES = 64
_QUEUE_BYTES = 32 << 10
_IDLE_S, _INTERVAL_S, _PROBES = 3, 2, 3
"""The kernel's own pings: a host that answers none is given up after 9 s. A process that is busy still answers."""


class Impostor(ConnectionError):
    """What answered does not have the server's key: the address belongs to somebody else by now."""


class Refused(ConnectionError):
    """The server does not accept the key."""


class NotSentInTime(Exception):
    """The other end takes nothing at the moment; the connection is as good as before."""


class Link:
    """One open connection.

    Attributes:
        reader: Used by whoever reads.
        used: Slabs of the server that may be in use here.
        replies: How many replies came here; counted by whoever reads.
        resumed: The server knew the session.
        known: Of the calls that were asked about, whether the server knows them.
        on_same_host: It is a Unix socket.
        spin: Used by whoever reads.
    """

    def __init__(
        self,
        sock: AnySocket,
        access_key: str,
        session: bytes,
        open_calls: Sequence[int] | None,
        received: Received,
        max_message_bytes: int,
        deadline: float = float("inf"),
    ) -> None:
        """`open_calls`: resume the session, with these; `None`: a new one."""
        self.on_same_host = sock.family == socket.AF_UNIX
        self._sock = sock
        until = min(deadline, time.monotonic() + CONNECT_TIMEOUT_S)
        self.resumed, self.known = _prove(sock, access_key, session, open_calls, until)
        self.reader = FrameReader(sock, received, max_message_bytes)
        self.used = self.reader.borrowed.used
        self.replies = 0
        self._lock = threading.Lock()
        self._slabs = Slabs() if self.on_same_host else None
        self._acknowledged = 0
        self._closed = False
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        self.spin = Spin(poll.poll)
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._rest: list[bytes | memoryview] = []  # of a frame that did not go out in time

    def send_small(self, kind: int, call_id: int = 0, body: bytes = b"", flags: int = 0, left_ms: int = 0) -> None:
        """Sends a frame without buffers.

        Raises:
            OSError: The connection is broken.
        """
        with self._lock:
            if self._queue or self._rest:
                self._flush(_until(left_ms))
            self._acknowledged = number = self.replies & 0xFFFFFFFF
            frame = HEADER.pack(len(body), 0, kind, flags, call_id, number, left_ms) + body
            if left_ms:
                self._send_in_time([frame], _until(left_ms), begun=False)
            elif (sent := self._sock.send(frame)) < len(frame):
                self._sock.sendall(frame[sent:])

    def cancel(self, call_id: int) -> None:
        """Says that nobody waits for a call any more, now or with the next frame: does not wait itself.

        Raises:
            OSError: The connection is broken.
        """
        self._queue.append(small_frame(Kind.CANCEL, call_id, acknowledged=self.replies & 0xFFFFFFFF))
        if self._lock.acquire(blocking=False):
            try:
                self._flush(0.0)
            except NotSentInTime:
                pass
            finally:
                self._lock.release()

    def queue_small(self, kind: int, call_id: int, body: bytes, flags: int, left_ms: int) -> bool:
        """Keeps a frame for the next `flush`, or for whatever else is sent; whether it is the first.

        Raises:
            OSError: The connection is broken.
        """
        number = self.replies & 0xFFFFFFFF
        self._queue.append(HEADER.pack(len(body), 0, kind, flags, call_id, number, left_ms) + body)
        first = len(self._queue) == 1  # asked afterwards: a flush may just have taken what was there before
        self._queued_bytes += len(body)
        if self._queued_bytes > _QUEUE_BYTES:
            self.flush()
            return False
        return first

    @property
    def has_queue(self) -> bool:
        """Whether something waits for `flush`."""
        return bool(self._queue)

    def flush(self) -> None:
        """Sends what was kept.

        Raises:
            OSError: The connection is broken.
        """
        with self._lock:
            self._flush()

    def credit(self, call_id: int, consumed: int) -> None:
        """Says how many items of a stream were consumed."""
        with self._lock:
            if self._rest:
                self._flush()
            self._sock.sendall(small_frame(Kind.CREDIT, call_id, acknowledged=consumed))

    def send(self, message: Message, *, left_ms: int = 0) -> Outgoing:
        """Sends a message with buffers; returns how.

        Raises:
            OSError: The connection is broken.
        """
        with self._lock:
            until = _until(left_ms)
            self._flush(until)
            self._acknowledged = number = self.replies & 0xFFFFFFFF
            outgoing = lay_out(message, self._slabs, acknowledged=number, left_ms=left_ms)
            while self._slabs is not None and self._slabs.dropped:
                self._queue.append(small_frame(Kind.DROP, self._slabs.dropped.pop()))
            if until is None:
                self._flush()
                self._send_all(outgoing)
                return outgoing
            try:
                self._flush(until)
                self._send_in_time(outgoing.pieces, until, outgoing, begun=False)
            except NotSentInTime:
                if outgoing.slab is not None and not outgoing.begun:
                    outgoing.slab.lent = False
                raise
        return outgoing

    def acknowledge(self) -> None:
        """Lets the server forget the replies that came: worth a frame when they were large."""
        with self._lock:
            if self._acknowledged != self.replies:
                if self._rest:
                    self._flush()
                self._acknowledged = number = self.replies & 0xFFFFFFFF
                self._sock.sendall(small_frame(Kind.ACK, acknowledged=number))

    def free(self) -> None:
        """Tells the server which of its memory is not used here any more."""
        for number in self.reader.borrowed.freed():
            self.send_small(Kind.FREE, number)

    def freed(self, number: int) -> None:
        """The server does not use this slab any more."""
        with self._lock:
            if self._slabs is not None:
                self._slabs.give_back(number)

    def readable_within(self, seconds: float) -> bool:
        """Whether something has come in time."""
        # One of its own: the handler of a signal may wait here too while it is being waited.
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000))

    def hang_up(self, *, bye: bool = False) -> None:
        """Ends the connection; who reads or writes it notices. `bye`: nobody comes back for what is open."""
        try:
            if bye:
                self._sock.send(small_frame(Kind.BYE), socket.MSG_DONTWAIT)
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        """Ends the connection and lets go of it. For whoever reads: its descriptor may be another file's soon."""
        self.hang_up()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._slabs is not None:
                self._slabs.close()
            self.reader.close()
            self._sock.close()

    def abandon(self) -> None:
        """In a forked child: lets go of the descriptor; the parent's connection goes on."""
        let_go(self._sock)

    def _flush(self, until: float | None = None) -> None:
        if self._rest:
            rest, self._rest = self._rest, []
            self._send_in_time(rest, until)
        frames: list[bytes] = []
        while self._queue:  # to which other threads add
            frames.append(self._queue.popleft())
        self._queued_bytes = 0
        if frames and until is None:
            self._sock.sendall(b"".join(frames))
        elif frames:
            self._rest.append(b"".join(frames))
            self._flush(until)

    def _send_in_time(
        self,
        pieces: list[bytes | memoryview],
        until: float | None,
        outgoing: Outgoing | None = None,
        *,
        begun: bool = True,
    ) -> None:
        """Sends as far as it goes in time; what was begun goes on before the next frame, what was not is forgotten.

        Raises:
            NotSentInTime: It did not go out in time.
            OSError: The connection is broken.
        """
        while pieces:
            ancillary = []
            if outgoing is not None and outgoing.descriptor is not None:
                ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [outgoing.descriptor])))
            try:
                sent = self._sock.sendmsg(pieces[:_MAX_PIECES], ancillary, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if self._writable_within(until):
                    continue
                if begun:
                    self._rest = [bytes(piece) for piece in pieces]  # their owner may change them now
                raise NotSentInTime from None
            begun = True
            if outgoing is not None:
                outgoing.begun = True
            if outgoing is not None and outgoing.descriptor is not None and outgoing.slab is not None:
                outgoing.slab.close_descriptor()
                outgoing.descriptor = None
            skip(pieces, sent)

    def _writable_within(self, until: float | None) -> bool:
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        return bool(poll.poll(None if until is None else max(0.0, until - time.monotonic()) * 1000))

    def _send_all(self, outgoing: Outgoing) -> None:
        pieces = outgoing.pieces
        if outgoing.descriptor is None and len(pieces) == 1:
            self._sock.sendall(pieces[0])
            return
        send_pieces(self._sock, outgoing)


def _until(left_ms: int) -> float | None:
    return time.monotonic() + left_ms / 1000 if left_ms else None


def let_go(sock: AnySocket) -> None:
    """Closes the descriptor without a word to the other end, and whoever else uses the socket."""
    try:
        os.close(sock.detach())
    except OSError:
        pass


def connect(address: str, access_key: str, *, same_host: bool, deadline: float) -> AnySocket:
    """A socket to the server: a Unix socket where it can be reached by one, else TCP, encrypted where the key says so.

    Raises:
        ConnectionRefusedError: Nobody listens there.
        OSError: It cannot be reached.
    """
    if same_host and (sock := _connect_here(access_key)) is not None:
        return sock
    host, _, port = address.rpartition(":")
    timeout = max(0.001, min(CONNECT_TIMEOUT_S, deadline - time.monotonic()))
    sock = socket.create_connection((host.strip("[]"), int(port)), timeout=timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
        # What was sent and is not acknowledged counts as a ping too.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(CONNECT_TIMEOUT_S * 1000))
    pin = split_pin(access_key)[1]
    return sock if pin is None else _encrypted(sock, pin, time.monotonic() + timeout)


def _encrypted(sock: socket.socket, pin: str, until: float) -> TlsSocket:
    try:
        encrypted = connect_tls(sock, pin, until)
        if encrypted is None:
            raise Impostor("what answers at the actor's address does not show the actor's certificate")
    except BaseException:
        sock.close()
        raise
    return encrypted


def _connect_here(access_key: str) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_TIMEOUT_S)
        sock.connect(socket_name(access_key))
    except OSError:  # another machine, another network namespace, or another kernel
        sock.close()
        return None
    return sock


def _prove(
    sock: AnySocket, access_key: str, session: bytes, open_calls: Sequence[int] | None, until: float
) -> tuple[bool, list[bool]]:
    """The challenge, both ways, as the caller; then whether the session was resumed, and which calls are known."""
    sock.settimeout(max(0.001, until - time.monotonic()))
    hello = Hello(open_calls is not None, session, secrets.token_bytes(NONCE_BYTES))
    sock.sendall(hello.to_bytes())
    version, nonce, proof = CHALLENGE.unpack(receive_exactly(sock, CHALLENGE.size, until))
    if version != VERSION:
        raise Refused(f"the actor server speaks version {version} of the protocol, this program {VERSION}")
    if not hmac.compare_digest(proof, server_proof(access_key, hello, nonce)):
        raise Impostor("what answers at the actor's address is not the actor's server")
    asked = list(open_calls or ())
    answer = ANSWER.pack(caller_proof(access_key, hello, nonce), len(asked))
    sock.sendall(answer + struct.pack(f"<{len(asked)}Q", *asked))
    (verdict,) = VERDICT.unpack(receive_exactly(sock, VERDICT.size, until))
    if verdict not in (Verdict.OPENED, Verdict.RESUMED):
        raise Refused("the actor server does not accept this caller's key")
    resumed = verdict == Verdict.RESUMED
    known = [bool(each) for each in receive_exactly(sock, len(asked), until)] if resumed else [False] * len(asked)
    sock.settimeout(None)
    return resumed, known


def receive_exactly(sock: AnySocket, size: int, until: float | None = None) -> bytes:
    """So many bytes.

    Args:
        sock: Blocking, or with a timeout of its own.
        size: In bytes.
        until: All of them must be there by then, however slowly they drip.

    Raises:
        ConnectionResetError: The other end closed before.
        TimeoutError: It took too long.
    """
    received = bytearray()
    while len(received) < size:
        if until is not None:
            sock.settimeout(max(0.001, until - time.monotonic()))
        piece = sock.recv(size - len(received))
        if not piece:
            raise ConnectionResetError("the other end closed the connection in the middle of its greeting")
        received += piece
        if until is not None and time.monotonic() > until:
            raise TimeoutError("the greeting took too long")
    return bytes(received)
