"""Reads HTTP/1.1 requests from a blocking socket and sends answers: strictly, with a bound on every size and wait."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fluster.actor.tls import AnySocket
from fluster.rpc.errors import WireError, refusal

HEAD_TIMEOUT_S = 10.0
BODY_TIMEOUT_S = 60.0
IDLE_TIMEOUT_S = 75.0
"""Between two requests. Longer than clients keep idle connections (60 s): the client is the one that closes."""
SEND_TIMEOUT_S = 60.0
"""Without any of an answer being taken."""
LINGER_S = 2.0
"""What a refused peer still sends is thrown away for so long: closing on unread bytes would destroy the answer."""
MAX_HEAD_BYTES = 64 * 1024
_MAX_CHUNK_LINE = 1024
_POLL_S = 0.25  # how often a wait looks whether the server stops
_PIECE = 256 * 1024

# Bare line feeds end the head too, so that such a request is refused at once instead of waited for.
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REQUEST_LINE = re.compile(rf"({_TOKEN.pattern}) (/[!-~]*) HTTP/1\.([01])")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")


class Ended(Exception):
    """The connection is over without another answer: the peer is gone or too slow, or the server stops."""


class Refused(Exception):
    """A request is answered with an error, and the connection closed: what follows on it was not read.

    Attributes:
        status: HTTP status.
        error: What the body says.
        headers: Of the answer, besides those every answer has.
    """

    status: int
    error: WireError
    headers: Mapping[str, str]

    def __init__(self, status: int, error: WireError, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error
        self.headers = headers or {}


@dataclass(frozen=True, slots=True)
class Head:
    """Of a request. `headers` have lower-case names; what came twice is joined by commas."""

    method: str
    path: str
    query: str
    minor: int  # of the version: HTTP/1.minor
    headers: Mapping[str, str] = field(repr=False)  # one of them is a secret

    @property
    def keep_alive(self) -> bool:
        """Whether the peer may send another request."""
        options = self.headers.get("connection", "").lower()
        return self.minor == 1 and "close" not in (option.strip() for option in options.split(","))


class Wire:
    """The bytes of one connection, both ways.

    Args:
        sock: Connected; its timeout is changed.
        first: What was read of it before.
        stopping: Whether to give up waiting for the peer.
    """

    def __init__(self, sock: AnySocket, first: bytes, stopping: Callable[[], bool]) -> None:
        self._sock = sock
        self._stopping = stopping
        self._pending = bytearray(first)
        self._head_deadline: float | None = time.monotonic() + HEAD_TIMEOUT_S
        sock.settimeout(_POLL_S)

    def read_head(self) -> Head:
        """The next request's head: within 10 s of the connection's start, or later of its own first byte.

        Raises:
            Refused: It is too large, or no HTTP/1.1.
        """
        if self._head_deadline is None and not self._pending:
            self._pending += self._receive(time.monotonic() + IDLE_TIMEOUT_S)
        deadline = self._head_deadline or time.monotonic() + HEAD_TIMEOUT_S
        self._head_deadline = None
        seen = 0
        while True:
            while self._pending.startswith(b"\r\n"):  # may precede a request
                del self._pending[:2]
            if (end := _HEAD_END.search(self._pending, max(0, seen - 3), MAX_HEAD_BYTES)) is not None:
                break
            seen = len(self._pending)
            if seen >= MAX_HEAD_BYTES:
                raise Refused(431, refusal("resource_exhausted", "the request's head is over 64 KiB"))
            self._pending += self._receive(deadline)
        raw = bytes(self._pending[: end.start()])
        terminator = end[0]
        del self._pending[: end.end()]
        if terminator != b"\r\n\r\n":
            raise _bad("lines end with CR LF")
        return _parse_head(raw.decode("latin-1"))

    def read_body(self, head: Head, limit: int) -> bytes:
        """The body that belongs to `head`, within 60 s; asks for it where the peer waits to be asked.

        Raises:
            Refused: It is over `limit` bytes, or its framing is none.
        """
        length = _body_length(head)
        if length is not None and length > limit:
            raise _too_large(limit)
        if (expected := head.headers.get("expect")) is not None:
            if expected.lower() != "100-continue":
                raise Refused(417, refusal("invalid_argument", "the only expectation that is met is 100-continue"))
            if head.minor == 1 and length != 0 and not self._pending:
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        deadline = time.monotonic() + BODY_TIMEOUT_S
        body = bytearray()
        if length is None:
            self._take_chunks(body, limit, deadline)
        else:
            self._take(body, length, deadline)
        return bytes(body)

    def send(self, answer: bytes) -> None:
        """Sends all of it."""
        rest = memoryview(answer)
        deadline = time.monotonic() + SEND_TIMEOUT_S
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
            except TimeoutError:
                if self._stopping() or time.monotonic() >= deadline:
                    raise Ended from None
                continue
            except OSError as error:
                raise Ended from error
            deadline = time.monotonic() + SEND_TIMEOUT_S

    def linger(self) -> None:
        """Says that nothing more is sent, and throws away what comes until the peer closes, for 2 s at most."""
        deadline = time.monotonic() + LINGER_S
        try:
            self._sock.shutdown(socket.SHUT_WR)
            while True:
                self._receive(deadline)
        except (OSError, Ended):
            pass

    def _take_chunks(self, body: bytearray, limit: int, deadline: float) -> None:
        while size := self._chunk_size(deadline):
            if len(body) + size > limit:
                raise _too_large(limit)
            self._take(body, size, deadline)
            if self._line(0, deadline):
                raise _bad("a chunk is as long as it says")
        trailers = MAX_HEAD_BYTES
        while line := self._line(trailers, deadline):
            trailers -= len(line)

    def _chunk_size(self, deadline: float) -> int:
        found = _CHUNK_SIZE.fullmatch(self._line(_MAX_CHUNK_LINE, deadline))
        if found is None:
            raise _bad("a chunk starts with its size in hexadecimal digits")
        return int(found[1], 16)

    def _line(self, limit: int, deadline: float) -> bytes:
        """One line without its end, of `limit` bytes at most."""
        seen = 0
        while (end := self._pending.find(b"\r\n", max(0, seen - 1), limit + 2)) < 0:
            seen = len(self._pending)
            if seen >= limit + 2:
                raise _bad(f"a line between chunks has at most {limit} bytes")
            self._pending += self._receive(deadline)
        line = bytes(self._pending[:end])
        del self._pending[: end + 2]
        return line

    def _take(self, body: bytearray, size: int, deadline: float) -> None:
        """Moves `size` bytes to the end of `body`."""
        wanted = len(body) + size
        body += self._pending[:size]
        del self._pending[:size]
        while (missing := wanted - len(body)) > 0:
            piece = self._receive(deadline)
            body += piece[:missing]
            self._pending += piece[missing:]

    def _receive(self, deadline: float) -> bytes:
        while not self._stopping() and time.monotonic() < deadline:
            try:
                piece = self._sock.recv(_PIECE)
            except TimeoutError:
                continue
            except OSError as error:
                raise Ended from error
            if not piece:
                break
            return piece
        raise Ended


def _parse_head(text: str) -> Head:
    lines = text.split("\r\n")
    if any(_CONTROL.search(line) for line in lines):
        raise _bad("a head has no control characters")
    found = _REQUEST_LINE.fullmatch(lines[0])
    if found is None:
        raise _bad("a request starts with a line like 'POST /path HTTP/1.1'")
    path, _, query = found[2].partition("?")
    return Head(found[1], path, query, int(found[3]), _parse_headers(lines[1:]))


def _parse_headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name):
            raise _bad("a header is a line like 'name: value'")
        key, value = name.lower(), value.strip(" \t")
        # Two keys or two hosts are nobody's: joined, they match nothing.
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers


def _body_length(head: Head) -> int | None:
    """Bytes of the body; None: it comes in chunks."""
    coding, length = head.headers.get("transfer-encoding"), head.headers.get("content-length")
    if coding is not None:
        if coding.lower() != "chunked" or length is not None or head.minor == 0:
            raise _bad("a body is either of a known length or chunked, and nothing else")
        return None
    if length is None:
        return 0
    if not (length.isascii() and length.isdigit() and len(length) <= 18):
        raise _bad("content-length is one number of bytes")
    return int(length)


def _bad(rule: str) -> Refused:
    return Refused(400, refusal("invalid_argument", f"not HTTP/1.1 as it is understood here: {rule}"))


def _too_large(limit: int) -> Refused:
    return Refused(429, refusal("resource_exhausted", f"a request may have at most {limit} bytes"))
