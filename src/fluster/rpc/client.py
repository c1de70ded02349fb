"""A blocking client of the Connect protocol: unary calls and server streams of protobuf messages on `http.client`.

It keeps out of the way of the program it lives in: no event loop, no signal handler, no thread, nothing shared with a
forked child. Ctrl-C ends a call at once.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse, RemoteDisconnected
from ssl import SSLCertVerificationError, SSLError
from typing import TYPE_CHECKING, TypeVar

from protobuf import Message

from fluster.errors import RemoteFault, Unreachable
from fluster.rpc.connection import Address, Connection, ConnectionPool
from fluster.rpc.errors import decode_body, decode_object

if TYPE_CHECKING:
    from fluster.rpc.trust import Trust

M = TypeVar("M", bound=Message)
T = TypeVar("T")

CALL_TIMEOUT_S = 30.0
# The server's own deadline comes first, so that its answer, and not a broken connection, is the usual way to time out.
_GRACE_S = 2.0
_FIRST_PAUSE_S, _PAUSE_GROWTH, _LONGEST_PAUSE_S = 0.05, 1.5, 0.5
# A server that had a request for so long had taken it; what only forwards to one that is gone hangs up at once.
_TAKEN_S = 0.1
_COMPRESSED, _END = 0b01, 0b10


class ConnectClient:
    """Calls the methods of one service at one address. Threads may share it; a forked child may go on using its copy.

    Every request is either a read or carries an id that makes repeating it harmless, so a call whose kept connection
    turns out to be broken is sent again, once, on a new one. Beyond that, a server that cannot be reached is asked
    again for `retry_s`, but only if it has been reached before (by this client, or as `known` says): a mistyped address
    fails at once, a restarting controller is waited for.

    Args:
        address: ``http://host:port``, ``https://host:port`` or ``host:port``.
        service: Full name of the service, ``fluster.cluster.v1.ControllerService``.
        token: Bearer token; the attribute of that name may be changed later.
        retry_s: How long calls keep trying by default.
        known: The server has been there before: a job's own controller, a cluster just started.
        trust: For https; default: the system's authorities are believed.
    """

    def __init__(
        self,
        address: str,
        service: str,
        *,
        token: str | None = None,
        retry_s: float = 10.0,
        known: bool = False,
        trust: Trust | None = None,
    ) -> None:
        self.address = Address.parse(address)
        self.token = token
        self._service = service
        self._retry_s = retry_s
        self._reached = known
        self._heard_at = -math.inf
        self._trust = trust
        self._pool = ConnectionPool(self.address, trust)

    def unary(
        self,
        method: str,
        request: Message,
        response_type: type[M],
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        retry_s: float | None = None,
    ) -> M:
        """One call.

        Args:
            method: Name of the method, ``LaunchJob``.
            request: What is sent.
            response_type: What is expected.
            timeout_s: Deadline of one try; the server is told.
            retry_s: How long a server that has been reached before may be away; default the client's.

        Raises:
            Unreachable: nobody answered. What was asked may have happened.
            TimeoutError: no answer in time.
            FlusterError: or ValueError: what the server raised.
            RuntimeError: the client is closed.
        """
        body = request.to_binary()
        reply = self._persist(retry_s, lambda: self._exchange(method, body, timeout_s))
        return _parse(reply, response_type)

    def stream(
        self,
        method: str,
        request: Message,
        response_type: type[M],
        *,
        idle_timeout_s: float | None = None,
        retry_s: float | None = None,
    ) -> Iterator[M]:
        """The messages of a server stream. Closing the iterator ends the stream.

        Only getting through to the server is tried again, as in `unary`; a stream that breaks later raises
        `Unreachable`, and how to go on is the caller's to know.

        Args:
            method: Name of the method.
            request: What is sent.
            response_type: What is expected, each.
            idle_timeout_s: Longest time between two messages; None: no limit.
            retry_s: As in `unary`.

        Raises:
            Unreachable: nobody answered, or the stream broke.
            TimeoutError: nothing came for `idle_timeout_s`.
            FlusterError: or ValueError: what the server raised.
        """
        data = request.to_binary()
        body = b"\0" + len(data).to_bytes(4, "big") + data
        connection, response = self._persist(
            retry_s, lambda: self._open(method, body, "application/connect+proto", idle_timeout_s)
        )
        try:
            with self._as_unreachable():
                _check_head(response, "application/connect+proto")
                for message in _messages(connection, response):
                    yield _parse(message, response_type)
                reusable = not response.read() and not response.will_close
        except BaseException:
            response.close()
            self._pool.discard(connection)
            raise
        self._give_back(connection, reusable=reusable)

    def clone(self) -> ConnectClient:
        """Another client of the same server, with connections of its own that can be closed alone."""
        twin = copy(self)
        twin._pool = ConnectionPool(self.address, self._trust)
        return twin

    def close_idle(self) -> None:
        """Close the connections that no call uses; the next call makes a new one."""
        self._pool.close_idle()

    def close(self) -> None:
        """Close all connections; calls under way in other threads fail. Repeating it is harmless."""
        self._pool.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._pool.closed

    @property
    def reached(self) -> bool:
        """Whether the server is known to have been there."""
        return self._reached

    @property
    def heard_at(self) -> float:
        """When, on the steady clock, any call of this client last showed that the server was there."""
        return self._heard_at

    def _persist(self, retry_s: float | None, attempt: Callable[[], T]) -> T:
        patience = Patience(self._retry_s if retry_s is None else retry_s)
        while True:
            try:
                return attempt()
            except Unreachable as error:
                if not self._reached or isinstance(error.__cause__, SSLCertVerificationError):
                    raise
                patience.pause(error)

    def _exchange(self, method: str, body: bytes, timeout_s: float) -> bytes:
        connection, response = self._open(method, body, "application/proto", timeout_s + _GRACE_S, timeout_s)
        try:
            with self._as_unreachable():
                reply = response.read()
                if response.status != 200:
                    raise decode_body(response.status, reply)
                _check_head(response, "application/proto")
        except BaseException:
            # An error's body has been read to the end as well, but errors are rare and certainty is cheap.
            response.close()
            self._pool.discard(connection)
            raise
        self._give_back(connection, reusable=not response.will_close)
        return reply

    def _open(
        self,
        method: str,
        body: bytes,
        content_type: str,
        socket_timeout_s: float | None,
        deadline_s: float | None = None,
    ) -> tuple[Connection, HTTPResponse]:
        """Send the request and read the head of the response; once more if the kept connection was broken."""
        head = self._head(method, len(body), content_type, deadline_s)
        with self._as_unreachable():
            connection = self._pool.acquire()
            try:
                return connection, self._send(connection, head, body, socket_timeout_s)
            except (ConnectionError, HTTPException):
                if not connection.reused or self._pool.closed:
                    raise
            connection = self._pool.acquire(fresh=True)
            return connection, self._send(connection, head, body, socket_timeout_s)

    def _send(self, connection: Connection, head: bytes, body: bytes, timeout_s: float | None) -> HTTPResponse:
        sent_at = time.monotonic()
        try:
            response = connection.request(head, body, timeout_s=timeout_s)
        except BaseException as error:
            self._pool.discard(connection)
            if isinstance(error, ConnectionError | HTTPException) and time.monotonic() - sent_at > _TAKEN_S:
                self._heard_at = time.monotonic()
            raise
        self._reached = True
        self._heard_at = time.monotonic()
        return response

    def _give_back(self, connection: Connection, *, reusable: bool) -> None:
        if reusable:
            self._pool.release(connection)
        else:
            self._pool.discard(connection)

    def _head(self, method: str, length: int, content_type: str, deadline_s: float | None) -> bytes:
        lines = [
            f"POST /{self._service}/{method} HTTP/1.1",
            f"Host: {self.address.authority}",
            f"Content-Type: {content_type}",
            f"Content-Length: {length}",
            "Connect-Protocol-Version: 1",
            "User-Agent: fluster",
        ]
        if deadline_s is not None:
            lines.append(f"Connect-Timeout-Ms: {max(1, min(int(deadline_s * 1000), 9_999_999_999))}")
        if self.token is not None:
            lines.append(f"Authorization: Bearer {self.token}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    @contextmanager
    def _as_unreachable(self) -> Iterator[None]:
        """What can go wrong between here and the server, as the errors this package promises."""
        try:
            yield
        except Unreachable as error:  # the server says that it is not available
            error.address = error.address or str(self.address)
            raise
        except (OSError, HTTPException) as error:
            # Without a number it is our deadline; with one (ETIMEDOUT) the network gave up on the server.
            if isinstance(error, TimeoutError) and error.errno is None:
                raise TimeoutError(f"no answer from {self.address} in time") from error
            if self._pool.closed:
                raise RuntimeError("this client is closed") from error
            raise Unreachable(f"cannot reach {self.address}: {self._why(error)}", address=str(self.address)) from error

    def _why(self, error: OSError | HTTPException) -> str:
        if isinstance(error, SSLError):
            from fluster.rpc.trust import why_untrusted

            return why_untrusted(error)
        cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, RemoteDisconnected | ConnectionResetError) and not (self.address.tls or self._reached):
            return f"{cause}; if it serves https, say https://{self.address.authority}"
        return cause


@dataclass(slots=True)
class Patience:
    """For how long, counted from the first failure or the last sign of life, and how often something is tried again."""

    window_s: float
    _since: float | None = field(default=None, init=False)
    _pause_s: float = field(default=_FIRST_PAUSE_S, init=False)

    def pause(self, error: Unreachable, *, seen_at: float = -math.inf) -> None:
        """Wait before the next try, or raise the error when there is none; `seen_at`: the last sign of life."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if seen_at > self._since:
            self._since, self._pause_s = seen_at, _FIRST_PAUSE_S
        if now + self._pause_s > self._since + self.window_s:
            raise error
        time.sleep(self._pause_s)
        self._pause_s = min(_PAUSE_GROWTH * self._pause_s, _LONGEST_PAUSE_S)


def _check_head(response: HTTPResponse, content_type: str) -> None:
    """Refuse what does not come from a Connect service."""
    if response.status != 200:
        raise decode_body(response.status, response.read())
    found = response.headers.get("content-type", "")
    if found.partition(";")[0].strip().lower() != content_type:
        raise RemoteFault(f"no Fluster service answers at this address: its content type is {found!r}")


def _messages(connection: Connection, response: HTTPResponse) -> Iterator[bytes]:
    """What the envelopes of a stream hold, up to the one that ends it."""
    while True:
        if not connection.own():
            raise ConnectionError("the stream belongs to the process this one was forked from")
        head = _read(response, 5)
        content = _read(response, int.from_bytes(head[1:], "big"))
        if head[0] & _COMPRESSED:
            raise RemoteFault("the server compressed a message although it was not offered")
        if not head[0] & _END:
            yield content
            continue
        error = json.loads(content).get("error")
        if error is not None:
            raise decode_object(error)
        return


def _read(response: HTTPResponse, length: int) -> bytes:
    data = response.read(length)
    if len(data) < length:
        raise ConnectionError("the stream broke off")
    return data


def _parse(data: bytes, kind: type[M]) -> M:
    try:
        return kind.from_binary(data)
    except ValueError as error:
        raise RemoteFault(f"the server's answer is no {kind.__name__}: {error}") from error
