"""As much of HTTP as the fuzzer speaks to a controller: several requests at once, answers in their order."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import BinaryIO

STREAMS = ("FetchLogs", "GetBlob")
WAIT = (*STREAMS, "WaitJobs", "SyncWorker", "ListEvents")
"""These may be asked to wait for what does not come."""
LONGEST_WAIT_MS = 5
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Request:
    """One call: `body` is the message, without what a stream puts around it."""

    rpc: str
    body: bytes
    token: str
    as_json: bool

    def to_bytes(self) -> bytes:
        """As it is sent."""
        encoding = "json" if self.as_json else "proto"
        body = self.body
        if self.rpc in STREAMS:
            encoding, body = f"connect+{encoding}", b"\0" + len(body).to_bytes(4, "big") + body
        lines = (
            f"POST /fluster.cluster.v1.ControllerService/{self.rpc} HTTP/1.1",
            "host: 127.0.0.1",
            f"content-type: application/{encoding}",
            f"content-length: {len(body)}",
            f"connect-timeout-ms: {LONGEST_WAIT_MS if self.rpc in WAIT else 20_000}",
            *((f"authorization: Bearer {self.token}",) if self.token else ()),
        )
        return "\r\n".join((*lines, "", "")).encode() + body


class Connection:
    """A connection that is made when it is needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None
        self._answers: BinaryIO | None = None

    def close(self) -> None:
        """Ends it; the next request makes another one."""
        for each in (self._answers, self._socket):
            if each is not None:
                each.close()
        self._socket = self._answers = None

    def send(self, requests: list[Request]) -> list[tuple[int, bytes]]:
        """Status and content of each answer. What a server leaves unanswered after it said "close" is sent again.

        Raises:
            OSError: It ended before that, or took too long.
        """
        found: list[tuple[int, bytes]] = []
        while len(found) < len(requests):
            if self._socket is None:
                self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=_TIMEOUT_S)
                self._answers = self._socket.makefile("rb")
            self._socket.sendall(b"".join(each.to_bytes() for each in requests[len(found) :]))
            goes_on = True
            while goes_on and len(found) < len(requests):
                status, content, goes_on = self._answer()
                found.append((status, content))
            if not goes_on:
                self.close()
        return found

    def _answer(self) -> tuple[int, bytes, bool]:
        status = int(self._line().split()[1])
        length, chunked, goes_on = 0, False, True
        while line := self._line().lower():
            name, _, value = line.partition(b": ")
            length = int(value) if name == b"content-length" else length
            chunked |= name == b"transfer-encoding" and value == b"chunked"
            goes_on &= not (name == b"connection" and value == b"close")
        if not chunked:
            return status, self._bytes(length), goes_on
        pieces = []
        while size := int(self._line(), 16):
            pieces.append(self._bytes(size))
            self._line()
        self._line()
        return status, b"".join(pieces), goes_on

    def _line(self) -> bytes:
        assert self._answers is not None
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the controller ended the connection in the middle of an answer")
        return line.rstrip(b"\r\n")

    def _bytes(self, count: int) -> bytes:
        assert self._answers is not None
        content = self._answers.read(count)
        if len(content) < count:
            raise ConnectionResetError("the controller ended the connection in the middle of an answer")
        return content
