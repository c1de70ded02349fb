"""Where connections come in: uvicorn's HTTP/1.1 protocol with the bounds it lacks, on time, headers and strangers."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_TIMEOUT_S = 10.0
BODY_TIMEOUT_S = 60.0
MAX_HEAD_BYTES = 64 * 1024
MAX_STRANGERS = 512

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 33\r\nconnection: close\r\n\r\nthe request's head is over 64 KiB"
)


class _Phase(Enum):
    HEAD = "head"  # waiting for a whole head
    BODY = "body"  # waiting for a whole body
    DONE = "done"  # nothing is owed: a request runs, or the connection is kept for the next


class Stranger(Protocol):
    """A connection that nothing has authenticated on."""

    @property
    def transport(self) -> Any:
        """What carries it."""
        ...


class Strangers:
    """Those of one server. When there are too many the oldest goes."""

    def __init__(self) -> None:
        self.stopped = False
        self._waiting: dict[Stranger, None] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._waiting)

    def admit(self, stranger: Stranger) -> bool:
        """Counts it; false: the server has stopped, and it was sent away."""
        if self.stopped:
            stranger.transport.abort()
            return False
        self._waiting[stranger] = None
        if len(self._waiting) > MAX_STRANGERS:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.transport.abort()
        return True

    def leave(self, stranger: Stranger) -> None:
        """It is none any more, or is gone."""
        self._waiting.pop(stranger, None)

    def stop(self) -> None:
        """What is still being accepted is sent away from now on."""
        self.stopped = True

    def abort(self) -> None:
        """Sends all away."""
        for stranger in list(self._waiting):
            stranger.transport.abort()


class EdgeProtocol(HttpToolsProtocol):
    """One connection.

    A head has to arrive within 10 s of the connection or of its own first byte, a body within 60 s. What is not body
    (heads, chunk sizes, trailers) may be 64 KiB per request beyond what the body itself brings. Of the connections
    that have not authenticated yet only the youngest 512 stay.
    """

    # Each server has its own (`edge_protocol`).
    strangers: Strangers

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False  # an access log would keep what people mistakenly put into URLs
        self.app_state = {**self.app_state, "connection": self}
        self._phase = _Phase.HEAD
        self._armed: _Phase | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0  # of this request's lines, as parsed
        self._excess = 0  # received, and not body
        self._too_large = False

    def authenticated(self) -> None:
        """Somebody known speaks here: this connection no longer counts as a stranger."""
        self.strangers.leave(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock, and drop the oldest stranger when there are too many."""
        super().connection_made(_Joined(transport, self.loop))  # type: ignore[arg-type]
        if self.strangers.admit(self):
            self._rearm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self.strangers.leave(self)
        self._phase = _Phase.DONE
        self._rearm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, then see what is still owed."""
        if self._phase is _Phase.DONE:
            # Also for the line breaks that may precede a request, of which the parser says nothing.
            self._phase = _Phase.HEAD
        self._excess += len(data)
        super().data_received(data)
        if self._excess > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._too_large = True
            self.send_400_response("")
        if self.transport.is_closing():
            self._phase = _Phase.DONE
        self._rearm()

    def on_message_begin(self) -> None:
        """A request starts."""
        self._phase = _Phase.HEAD
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer of a chunked body."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._phase = _Phase.BODY
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body; it may bring as much framing as it has bytes."""
        self._excess = max(0, self._excess - 2 * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        self._phase = _Phase.DONE
        self._armed = None  # what follows in the same packet is another request with a clock of its own
        self._excess = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse and close."""
        if self._too_large:
            self.transport.write(_TOO_LARGE)
            self.transport.close()
        else:
            super().send_400_response(msg)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._too_large = True
            raise ValueError("head too large")  # makes the parser give up, which ends in send_400_response

    def _rearm(self) -> None:
        if self._phase is self._armed:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed = self._phase
        if self._phase is not _Phase.DONE:
            seconds = HEAD_TIMEOUT_S if self._phase is _Phase.HEAD else BODY_TIMEOUT_S
            self._timer = self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        self.transport.abort()


class _Joined:
    """A transport that sends the head of a response together with the body, when that follows at once.

    uvicorn writes them apart: two system calls here, and two packets that wake the caller twice.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def write(self, data: bytes) -> None:
        """Send, a head within this turn of the event loop or the next."""
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n"):
            self._head = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        """Close once all is sent."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def edge_protocol() -> type[EdgeProtocol]:
    """The protocol of one server: its strangers are counted apart from other servers'."""
    return type("EdgeProtocol", (EdgeProtocol,), {"strangers": Strangers()})
