"""Calls of actors over HTTP/1.1, by curl and other languages: one accepted socket, one thread, no event loop."""

from __future__ import annotations

import hmac
import io
import ipaddress
import logging
import secrets
import socket
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from fluster.actor.http_wire import Ended, Head, Refused, Wire
from fluster.actor.tls import AnySocket, TlsSocket
from fluster.rpc.errors import WireError, refusal

_log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024 * 1024
"""Of one request, also once unpacked."""
UNAUTHENTICATED = "the actor server's bearer is needed: none came, or it is wrong"

_SERVICE_PATH = "/fluster.actor.v1.ActorService/"
_CONTENT_TYPES = frozenset(("application/json", "application/proto"))
# The application has no use for them. Answers go uncompressed: on loopback there is nothing to gain.
_KEPT_HERE = frozenset(("authorization", "accept-encoding", "content-type", "content-length"))
_NEEDS_EXTRA = "this actor cannot be called over HTTP: its environment lacks the extra `fluster-cluster[server]`"

_Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Calls(Protocol):
    """What an HTTP connection needs of the actor server."""

    @property
    def bearer(self) -> str:
        """What a caller must present: ``Authorization: Bearer <it>``. While it is empty nobody is let in."""

    def call(
        self,
        actor: str,
        method: str,
        call_id: str,
        load: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]],
        dump: Callable[[Any], Any],
    ) -> Any:
        """Runs the method and waits for `dump` of what it returns. The same `call_id` never runs twice.

        Args:
            actor: An endpoint id or a registered name.
            method: As the caller wrote it.
            call_id: The caller's, or a random one.
            load: Gives the arguments; to be called in the thread that runs the method. What it raises is to be
                raised here as it is.
            dump: What becomes of the result; to be called in that thread too: a later call may change the result.

        Raises:
            ActorNotFound: No such actor; its `name` is `actor`. (With another name it is the method's own.)
            AttributeError: With an attribute ``refused = True``: there is no such method, or none for callers.
            BaseException: Whatever the method raised.
        """


def available() -> bool:
    """Whether the `server` extra is there; asking loads nothing of it."""
    return find_spec("connectrpc") is not None


def serve_connection(
    sock: AnySocket,
    first: bytes,
    calls: Calls,
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
    stopping: Callable[[], bool],
) -> None:
    """Serves requests on one connection until the peer closes it, a limit is broken or `stopping()`.

    For a thread of its own. A call that runs is waited for and answered, also when the server stops meanwhile; every
    other wait ends within 0.25 s of that.

    Args:
        sock: An accepted TCP socket; closed at the end.
        first: What was read of it already.
        calls: Where calls go.
        max_body_bytes: Of a request, also once unpacked.
        stopping: Whether the server is being stopped; asked often.
    """
    with sock:
        try:
            _Connection(sock, first, calls, max_body_bytes, stopping).serve()
        except Ended:
            pass


class _Connection:
    def __init__(
        self,
        sock: AnySocket,
        first: bytes,
        calls: Calls,
        max_body_bytes: int,
        stopping: Callable[[], bool],
    ) -> None:
        try:
            # Else the last packet of a long answer would wait for the peer's acknowledgement of the one before.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peer, _ = _address(sock.getpeername())
            self._own, self._port = _address(sock.getsockname())
        except OSError as error:  # the peer is gone
            raise Ended from error
        self._encrypted = isinstance(sock, TlsSocket)
        self._wire = Wire(sock, first, stopping)
        self._calls = calls
        self._max_body_bytes = max_body_bytes
        self._stopping = stopping
        self._application: _Application | None = None

    def serve(self) -> None:
        head: Head | None = None
        try:
            while True:
                head = None
                head = self._wire.read_head()
                self._check(head)
                application = self._load()
                body = self._wire.read_body(head, self._max_body_bytes)
                status, headers, answer = self._run(application, head, body)
                last = self._stopping() or not head.keep_alive
                self._wire.send(_response(status, headers, answer, last=last))
                if last:
                    return
        except Refused as refused:
            self._refuse(head, refused)

    def _check(self, head: Head) -> None:
        """Before anything of the body is read.

        Raises:
            Refused: The request is not for this server, or not from somebody who may ask.
        """
        if not (self._encrypted or _is_loopback(self._peer)):
            raise _forbidden("without TLS, calls over HTTP are taken from this machine's loopback address only")
        host = head.headers.get("host", "")
        if not self._is_own(_host_of(host)):
            raise _forbidden("the Host header names none of this server's names")
        origin = head.headers.get("origin")
        if origin is not None and origin.lower() != f"{self._scheme}://{host}".lower():
            raise _forbidden("requests from other origins are refused")
        if head.method != "POST":
            raise Refused(405, refusal("invalid_argument", "RPCs are POST requests"), {"allow": "POST"})
        if head.headers.get("content-type", "").partition(";")[0].strip().lower() not in _CONTENT_TYPES:
            text = "the content type of an RPC is application/json or application/proto"
            raise Refused(415, refusal("invalid_argument", text))
        if not self._is_known(head.headers.get("authorization", "")):
            raise Refused(401, refusal("unauthenticated", UNAUTHENTICATED), {"www-authenticate": "Bearer"})
        # What is passed in URLs ends up in logs and histories: RPCs take nothing there.
        if head.query or not head.path.startswith(_SERVICE_PATH):
            text = f"there is {_SERVICE_PATH}Call and HealthCheck, and nothing else"
            raise Refused(404, WireError("unimplemented", text, "unimplemented"))

    @property
    def _scheme(self) -> str:
        return "https" if self._encrypted else "http"

    def _is_own(self, host: str) -> bool:
        """Whether the Host header is no name that somebody else's DNS has led here."""
        return host in ("localhost", self._own) or _is_loopback(host)

    def _is_known(self, authorization: str) -> bool:
        scheme, _, presented = authorization.partition(" ")
        wanted = self._calls.bearer
        same = hmac.compare_digest(presented.strip().encode("latin-1"), wanted.encode())
        return same and bool(wanted) and scheme.lower() == "bearer"

    def _load(self) -> _Application:
        if self._application is None:
            try:
                # By name: what imports this module must not seem to import the extra.
                service = import_module("fluster.actor.http_service")
            except ImportError as error:
                _log.warning("%s (%s)", _NEEDS_EXTRA, error)
                raise Refused(501, WireError("unimplemented", _NEEDS_EXTRA, "unimplemented")) from error
            self._application = service.application(self._calls, read_max_bytes=self._max_body_bytes)
        return self._application

    def _run(self, application: _Application, head: Head, body: bytes) -> tuple[str, Mapping[str, str], bytes]:
        """Status line, headers and body of the answer."""
        complaints = io.StringIO()  # the application writes about what it did not expect, and then tells the caller
        started: list[tuple[str, list[tuple[str, str]]]] = []
        environ = self._environ(head, body, complaints)
        try:
            answer = b"".join(application(environ, lambda status, headers, *_: started.append((status, headers))))
        except Exception as error:
            raise _internal(head, error) from error
        if complaints.getvalue():
            raise _internal(head, complaints.getvalue())
        status, headers = started[-1]
        return status, dict(headers), answer

    def _environ(self, head: Head, body: bytes, complaints: io.StringIO) -> dict[str, Any]:
        """The request as WSGI has it (PEP 3333)."""
        environ: dict[str, Any] = {
            f"HTTP_{name.upper().replace('-', '_')}": value
            for name, value in head.headers.items()
            if name not in _KEPT_HERE and "_" not in name  # an underscore would make two headers one
        }
        return environ | {
            "REQUEST_METHOD": head.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": head.path,
            "QUERY_STRING": "",
            "SERVER_NAME": self._own,
            "SERVER_PORT": self._port,
            "SERVER_PROTOCOL": f"HTTP/1.{head.minor}",
            "REMOTE_ADDR": self._peer,
            "CONTENT_TYPE": head.headers["content-type"],
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": self._scheme,
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": complaints,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }

    def _refuse(self, head: Head | None, refused: Refused) -> None:
        # The path only: a query may hold what must not be written down.
        what = f"{head.method[:20]} {head.path[:200]}" if head is not None else "a request"
        _log.info("refused %s from %s: %s", what, self._peer, refused.error.reason)
        status = f"{refused.status} {HTTPStatus(refused.status).phrase}"
        headers = {"content-type": "application/json", **refused.headers}
        answer = _response(status, headers, refused.error.to_json(), last=True)
        if head is not None and head.method == "HEAD":
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        self._wire.send(answer)
        self._wire.linger()


def _response(status: str, headers: Mapping[str, str], body: bytes, *, last: bool) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items())]
    lines += [f"content-length: {len(body)}", *(["connection: close"] if last else [])]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _internal(head: Head, failure: Exception | str) -> Refused:
    """What nobody expected: the log has it, the caller gets an id to find it by."""
    request_id = secrets.token_hex(8)
    cause = failure if isinstance(failure, Exception) else None
    _log.error("%s failed (request %s)%s", head.path, request_id, "" if cause else f": {failure}", exc_info=cause)
    text = f"internal error; the actor's log has the details under request {request_id}"
    return Refused(500, WireError("internal", text, "internal", {"request_id": request_id}))


def _forbidden(text: str) -> Refused:
    return Refused(403, refusal("not_permitted", text))


def _address(name: Any) -> tuple[str, str]:
    """IP address and port of a socket's name; of a Unix socket's, which is a path, neither."""
    return (str(name[0]), str(name[1])) if isinstance(name, tuple) else ("", "")


def _is_loopback(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def _host_of(host_header: str) -> str:
    """Without the port and the brackets of an IPv6 address."""
    host, colon, port = host_header.rpartition(":")
    if not colon or not port.isdigit():
        host = host_header
    return host.removeprefix("[").removesuffix("]").lower()
