"""What a request passes before it reaches a service: host, origin, method, content type and token, in this order."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import itertools
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fluster.rpc.errors import WireError, is_refusal, refusal, refusal_by_status
from fluster.rpc.trust import split_pin

if TYPE_CHECKING:
    from fluster.rpc.edge import EdgeProtocol

_log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Authenticate = Callable[[Mapping[str, str]], object | None]
T = TypeVar("T")

UNAUTHENTICATED = "a valid bearer token is needed: none came, or it is wrong or no longer valid"
STOPPING = "the server is stopping"

_CONTENT_TYPES = frozenset(
    ("application/json", "application/proto", "application/connect+json", "application/connect+proto")
)
_COMPRESSED, _END = 0b01, 0b10  # bits of an envelope's first byte
_STATUS = {"unauthenticated": 401, "not_permitted": 403, "unavailable": 503}


class Application(Protocol):
    """A connectrpc ASGI application."""

    @property
    def path(self) -> str:
        """``/package.Service``."""

    def __call__(self, scope: Any, receive: Any, send: Any, /) -> Awaitable[None]:
        """Serve one request."""


@dataclass(slots=True)
class _Call:
    identity: object
    gate: Gate
    scope: Scope
    request_id: str
    told: bool = False
    handled: bool = False


_ID_HEADER = b"x-request-id"
_HERE = secrets.token_hex(5).encode()
_numbers = itertools.count(1)
_call: ContextVar[_Call] = ContextVar("fluster_rpc_call")


def current_identity(kind: type[T]) -> T:
    """Who asks, as `authenticate` said; for handlers only."""
    call = _call.get()
    call.handled = True
    identity = call.identity
    if not isinstance(identity, kind):
        raise TypeError(f"the caller is a {type(identity).__name__}, not a {kind.__name__}")
    return identity


def identity_or_none(kind: type[T]) -> T | None:
    """Who asks, or None where nobody was recognized yet; for those who are told of refused requests."""
    call = _call.get(None)
    return call.identity if call is not None and isinstance(call.identity, kind) else None


def refusal_is_told() -> None:
    """The handler's side has noted this refused request: the gate need not."""
    _call.get().told = True


def request_id() -> str:
    """By which the caller and the log name this request: every answer has it as `x-request-id`; for handlers."""
    call = _call.get(None)
    return call.request_id if call is not None else ""


def current_peer() -> str:
    """The address that the request came from, as the kernel says: what a proxy claims is not heeded."""
    return _peer(_call.get().scope)


def stopping() -> bool:
    """Whether the server that runs this handler is being stopped."""
    call = _call.get(None)
    return call is not None and call.gate.stopping


def bearer(headers: Mapping[str, str]) -> str | None:
    """The bearer token among headers with lower-case names, without the pin that it may carry."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return split_pin(token.strip())[0] or None if scheme.lower() == "bearer" else None


def client_names() -> frozenset[str]:
    """The URIs in the certificate that the caller's connection showed, which our authority signed; for handlers."""
    scope = _call.get().scope
    connection: EdgeProtocol | None = scope.get("state", {}).get("connection")
    shown = connection.transport.get_extra_info("peercert") if connection is not None else None
    return frozenset(value for kind, value in (shown or {}).get("subjectAltName", ()) if kind == "URI")


class Gate:
    """An ASGI application in front of the services.

    Args:
        applications: Served by the path each of them names.
        authenticate: Gets the headers (lower-case names), says who asks, or None.
        hosts: Names and addresses besides the loopback ones that a Host header may name. A foreign one means that a
            browser was led here by somebody's DNS.
        any_address: Accept every IP address as Host: for servers bound to all addresses. A rebound DNS name is none.
        refused: Told of each refusal: the error, the path, the client's address. Of those by a handler unless
            `refusal_is_told`.
        public: What anybody may GET, by path: PEM certificates.
    """

    def __init__(
        self,
        applications: Sequence[Application],
        authenticate: Authenticate,
        *,
        hosts: Iterable[str] = (),
        any_address: bool = False,
        refused: Callable[[WireError, str, str], None] | None = None,
        public: Mapping[str, bytes] | None = None,
    ) -> None:
        self.stopping = False
        self._public = public or {}
        self._applications = {application.path: application for application in applications}
        self._authenticate = authenticate
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        self._any_address = any_address
        self._refused = refused
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        headers = _headers(scope["headers"])
        error, status = self._check_edge(scope, headers)
        if error is None and scope["method"] in ("GET", "HEAD"):
            if scope["path"] == "/healthz":
                await _respond(send, 200, b"ok", b"text/plain; charset=utf-8")
                return
            if (content := self._public.get(scope["path"])) is not None:
                await _respond(send, 200, content, b"application/x-pem-file")
                return
        identity: object | None = None
        if error is None:
            error, status = _check_request(scope, headers)
        if error is None:
            identity = None if _token_in_url(scope) else self._authenticate(headers)
            if identity is None:
                error, status = refusal("unauthenticated", UNAUTHENTICATED), 401
        if error is not None:
            await self._refuse(scope, send, error, status)
            return
        connection: EdgeProtocol | None = scope.get("state", {}).get("connection")
        if connection is not None:
            connection.authenticated()
        await self._serve(scope, headers, receive, send, identity)

    async def drain(self, grace_s: float) -> None:
        """Refuse what comes, let what runs finish for `grace_s`, then end it as unavailable."""
        self.stopping = True
        if self._tasks and grace_s > 0:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in self._tasks:
            task.cancel()

    async def _serve(
        self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send, identity: object
    ) -> None:
        application = self._applications.get(scope["path"].rpartition("/")[0])
        if application is None:
            await _respond(send, 404, b"no such service", b"text/plain; charset=utf-8")
            return
        name = _new_id()
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        call = _Call(identity, self, scope, name.decode())
        streams = _content_type(headers).startswith("application/connect+")
        _call.set(call)

        async def watched(message: Any) -> None:
            # What the RPC library refuses by itself: a body it cannot take, an RPC there is not.
            if message["type"] == "http.response.start":
                if is_refusal(message["status"]) and not call.told:
                    call.told = True
                    self._tell(refusal_by_status(message["status"]), scope["path"], _peer(scope), call.request_id)
                message["headers"] = [*message["headers"], (_ID_HEADER, name)]
            elif streams and not (call.handled or call.told) and (error := _refusal_by_end(message.get("body", b""))):
                # Of a stream it says 200 in any case.
                call.told = True
                self._tell(error, scope["path"], _peer(scope), call.request_id)
            await send(message)

        try:
            await application(scope, receive, watched)
        except asyncio.CancelledError:
            if not self.stopping:
                raise
        finally:
            self._tasks.discard(task)

    def _check_edge(self, scope: Scope, headers: Mapping[str, str]) -> tuple[WireError | None, int]:
        if self.stopping:
            return refusal("unavailable", STOPPING), 503
        host = headers.get("host", "")
        if not self._known(host):
            return refusal("not_permitted", "the Host header names none of this server's names"), 421
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"{scope['scheme']}://{host}".lower():
            return refusal("not_permitted", "requests from other origins are refused"), 403
        return None, 200

    def _known(self, host_header: str) -> bool:
        host = _host_of(host_header)
        if host in self._hosts:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return self._any_address or address.is_loopback

    async def _refuse(self, scope: Scope, send: Send, error: WireError, status: int) -> None:
        name = _new_id()
        self._tell(error, scope["path"], _peer(scope), name.decode())
        await _respond(send, status, error.to_json(), b"application/json", (_ID_HEADER, name))

    def _tell(self, error: WireError, path: str, peer: str, name: str) -> None:
        # The path only: a query may hold what must not be written down.
        _log.info("refused %s from %s: %s (request %s)", path[:200], peer, error.reason, name)
        if self._refused is not None:
            self._refused(error, path, peer)


def _check_request(scope: Scope, headers: Mapping[str, str]) -> tuple[WireError | None, int]:
    if scope["method"] != "POST":
        return refusal("invalid_argument", "RPCs are POST requests"), 405
    if _content_type(headers) not in _CONTENT_TYPES:
        return refusal("invalid_argument", "the content type of an RPC is application/json or application/proto"), 415
    return None, 200


def _content_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _refusal_by_end(envelope: bytes) -> WireError | None:
    """The refusal that ends a stream of which no handler has seen the request; `None`: this is no such end."""
    if not envelope or not envelope[0] & _END:
        return None
    content = envelope[5:]
    error = json.loads(gzip.decompress(content) if envelope[0] & _COMPRESSED else content).get("error")
    if error is None or error["code"] in ("canceled", "deadline_exceeded", "unavailable"):
        return None
    return WireError(error["code"], "what was sent is no request of a stream", "other")


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        # Two tokens or two hosts are nobody's: joined, they match nothing.
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    if not client:
        return "unknown"
    host, port = client[0], client[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host_of(host_header: str) -> str:
    """Without the port and the brackets of an IPv6 address."""
    host, colon, port = host_header.rpartition(":")
    if not colon or not port.isdigit():
        host = host_header
    return host.removeprefix("[").removesuffix("]").lower()


def _token_in_url(scope: Scope) -> bool:
    query = scope.get("query_string", b"").lower()
    return any(word in query for word in (b"token", b"authorization", b"bearer"))


def _new_id() -> bytes:
    """Unlike those of other processes and times; what a caller calls its request is its own matter."""
    return b"%b-%x" % (_HERE, next(_numbers))


async def _respond(send: Send, status: int, body: bytes, content_type: bytes, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
