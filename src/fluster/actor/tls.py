"""Encrypted connections of actors: a socket in front of a socket, for one thread that reads and others that write.

An `SSLSocket` must not be read and written at once by two threads, and who waits for bytes would keep writers out. So
the bytes are moved outside of one lock, and only turned inside of it. Who is at the other end is told by the access
key: it ends in the sha256 of the server's certificate.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from types import TracebackType
from typing import Any, Self

HELLO_BYTE = b"\x16"
"""How a TLS handshake begins; neither the native protocol nor HTTP does."""
_PIECE = 256 << 10
_RECORD = 16 << 10
_BULK_FROM = 64 << 10
_HEADER_BYTES = 5
_DONT_WAIT = int(socket.MSG_DONTWAIT)
"""No enum: of one, asking for the flag takes as long as encrypting a small call."""


class TlsSocket:
    """Looks like the socket it is in front of, as far as actors use one.

    Sending follows the rule of a stream: what was not reported as sent is sent again from there. Of bytes that are
    encrypted and did not go out yet all but the last are reported, so that the caller comes back.

    Attributes:
        encrypted: It is one of these.
        family: Of the socket.
    """

    encrypted = True

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool) -> None:
        self.family = sock.family
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        # Bound once, and without the layer of Python around the library: each step costs a small call.
        inner: Any = self._ssl._sslobj  # type: ignore[attr-defined]
        self._encrypt_small, self._take_encrypted = inner.write, self._outgoing.read
        self._give_encrypted = self._incoming.write
        self._decrypt: Callable[[int], bytes] = inner.read
        self._send_now, self._receive_now = sock.send, sock.recv
        self._turning = threading.Lock()
        self._sending = threading.Lock()
        self._plain = b""
        self._header = bytearray()
        self._record_left = 0
        self._unsent: bytes | memoryview = b""
        self._debt = 0

    def shake_hands(self, until: float) -> bytes:
        """Gets both sides to the point where they can speak; the other side's certificate (DER), if it shows one.

        Raises:
            OSError: It is no TLS, or took too long.
        """
        while True:
            try:
                self._ssl.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            if self._outgoing.pending:
                self._sock.sendall(self._outgoing.read())
            if done:
                return self._ssl.getpeercert(binary_form=True) or b""
            self._sock.settimeout(max(0.001, until - time.monotonic()))
            if not self._pump_record():
                raise ConnectionResetError("the other end closed the connection during the handshake")

    # Receiving: one thread

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Bytes; empty at the end. A large `size` takes all that has come: nothing stays where a poll does not see it.

        Raises:
            OSError: As the socket.
        """
        if size >= _BULK_FROM:
            while not self._plain:
                # A larger piece of memory would be mapped and given back each time.
                data = self._receive_now(_BULK_FROM)
                if not data:
                    return b""
                with self._turning:
                    self._give_encrypted(data)
                    try:
                        plain = self._decrypt(_RECORD)
                    except ssl.SSLWantReadError:
                        continue
                    except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                        return b""
                    # Nearly always: one record, and nothing else.
                    return plain + (self._decrypted() or b"") if self._incoming.pending else plain
            plain, self._plain = self._plain, b""
            return plain
        # Record by record: what follows a greeting must be found by whoever polls for it.
        if not self._plain:
            self._plain = self._receive_record()
        plain, self._plain = self._plain[:size], self._plain[size:]
        return plain

    def _receive_record(self) -> bytes:
        while True:
            with self._turning:
                plain = self._decrypted()
            if plain is not None:
                return plain
            if not self._pump_record():
                return b""

    def _decrypted(self) -> bytes | None:
        """What can be read of what has come; `None`: nothing yet, empty: the other end has ended it."""
        pieces: list[bytes] = []
        while self._incoming.pending:  # without it the library would look in vain, which it takes long to tell
            try:
                piece = self._decrypt(_RECORD)
            except ssl.SSLWantReadError:
                break
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                piece = b""
            if not piece:
                return b"".join(pieces)
            if not (pieces or self._incoming.pending):
                return piece
            pieces.append(piece)
        return b"".join(pieces) if pieces else None

    def _pump_record(self) -> bool:
        """Takes no more than the rest of one record."""
        if self._record_left:
            data = self._sock.recv(self._record_left)
            self._record_left -= len(data)
        else:
            data = self._sock.recv(_HEADER_BYTES - len(self._header))
            self._header += data
            if len(self._header) == _HEADER_BYTES:
                self._record_left = int.from_bytes(self._header[3:5], "big")
                self._header.clear()
        if data:
            with self._turning:
                self._incoming.write(data)
        return bool(data)

    # Sending

    def send(self, data: bytes | memoryview, flags: int = 0) -> int:
        """Sends some of it; how much is not to be given again.

        Raises:
            BlockingIOError: It takes nothing now.
            OSError: As the socket.
        """
        if not self._sending.acquire(not flags & _DONT_WAIT):
            raise BlockingIOError
        try:
            if not (self._unsent or self._debt) and isinstance(data, bytes) and len(data) <= _RECORD:
                with self._turning:
                    self._encrypt_small(data)
                    encrypted = self._take_encrypted()
                try:
                    sent = self._send_now(encrypted, flags)
                except BlockingIOError:
                    sent = 0
                if sent == len(encrypted):
                    return len(data)
                self._unsent = memoryview(encrypted)[sent:]
                return len(data) if self._flush(flags) else self._hold_back(len(data))
            if not self._flush(flags):
                raise BlockingIOError
            view = memoryview(data).cast("B")
            debt, self._debt = self._debt, 0
            piece = view[debt : debt + _PIECE]
            if piece:
                self._encrypt(piece)
            count = debt + len(piece)
            if self._flush(flags):
                return count
            return self._hold_back(count)
        finally:
            self._sending.release()

    def _hold_back(self, count: int) -> int:
        """Of what is encrypted and did not go out: its last byte is not reported yet."""
        self._debt = 1
        if count == 1:
            raise BlockingIOError
        return count - 1

    def sendall(self, data: bytes | memoryview) -> None:
        """Sends all of it; for sockets that wait."""
        view = memoryview(data).cast("B")
        while view:
            view = view[self.send(view) :]

    def sendmsg(self, pieces: Sequence[bytes | memoryview], ancillary: Iterable[Any] = (), flags: int = 0) -> int:
        """Sends some of the pieces; descriptors do not travel here."""
        assert not list(ancillary)
        first = memoryview(pieces[0]).cast("B")
        if len(first) >= _RECORD or len(pieces) == 1:
            return self.send(first, flags)
        joined = bytearray()
        for piece in pieces:
            joined += memoryview(piece).cast("B")[: _PIECE - len(joined)]
            if len(joined) >= _PIECE:
                break
        return self.send(bytes(joined), flags)

    def _encrypt(self, piece: memoryview) -> None:
        with self._turning:
            while piece:
                piece = piece[self._ssl.write(piece) :]
            self._unsent = memoryview(self._outgoing.read())

    def _flush(self, flags: int) -> bool:
        """Whether all that is encrypted has gone out."""
        while self._unsent:
            try:
                sent = self._send_now(self._unsent, flags)
            except BlockingIOError:
                return False
            self._unsent = memoryview(self._unsent)[sent:] if sent < len(self._unsent) else b""
        return True

    # As the socket

    def fileno(self) -> int:
        """Its descriptor."""
        return self._sock.fileno()

    def detach(self) -> int:
        """Lets go of its descriptor."""
        return self._sock.detach()

    def settimeout(self, seconds: float | None) -> None:
        """Of each wait."""
        self._sock.settimeout(seconds)

    def setblocking(self, blocking: bool) -> None:
        """Whether it waits."""
        self._sock.setblocking(blocking)

    def setsockopt(self, level: int, name: int, value: int) -> None:
        """Passed on."""
        self._sock.setsockopt(level, name, value)

    def getpeername(self) -> Any:
        """Of the other end."""
        return self._sock.getpeername()

    def getsockname(self) -> Any:
        """Of this end."""
        return self._sock.getsockname()

    def shutdown(self, how: int) -> None:
        """Ends it."""
        self._sock.shutdown(how)

    def close(self) -> None:
        """Lets go of it."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


AnySocket = socket.socket | TlsSocket
"""A connection of an actor's, encrypted or not."""


def server_context(certificate_file: str) -> tuple[ssl.SSLContext, str]:
    """For a server with this certificate and key (one PEM file), and the sha256 that its access key ends in.

    Raises:
        OSError: The file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.load_cert_chain(certificate_file)
    with open(certificate_file) as file:
        pem = file.read()
    end = "-----END CERTIFICATE-----"
    der = ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN CERTIFICATE-----") : pem.index(end) + len(end)])
    return context, hashlib.sha256(der).hexdigest()


def connect_tls(sock: socket.socket, pin: str, until: float) -> TlsSocket | None:
    """An encrypted connection to the server with this certificate; `None`: somebody else has the address.

    Raises:
        OSError: What answers does not speak TLS, or not in time.
    """
    encrypted = TlsSocket(sock, _client_context(), server_side=False)
    shown = encrypted.shake_hands(until)
    return encrypted if hashlib.sha256(shown).hexdigest() == pin else None


@cache
def _client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The access key, which came from the cluster, names the one certificate that is right.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
