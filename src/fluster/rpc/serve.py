"""Serves Connect services on uvicorn's HTTP in the running event loop (extra `server`)."""

from __future__ import annotations

import asyncio
import ipaddress
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, TypedDict

from connectrpc.code import Code
from connectrpc.codec import Codec, proto_binary_codec
from connectrpc.compression import Compression
from connectrpc.compression.gzip import GzipCompression
from connectrpc.errors import ConnectError
from uvicorn.config import Config
from uvicorn.server import ServerState

from fluster.rpc.codecs import JsonCodec
from fluster.rpc.edge import EdgeProtocol, edge_protocol
from fluster.rpc.errors import WireError, encode, refusal
from fluster.rpc.gate import STOPPING, Application, Authenticate, Gate, request_id, stopping
from fluster.rpc.handshake import Handshake

if TYPE_CHECKING:
    from ssl import SSLContext

    from connectrpc.interceptor import Interceptor
    from connectrpc.request import RequestContext

    _Context = RequestContext[Any, Any]

READ_MAX_BYTES = 4 * 1024 * 1024
# Longer than clients keep idle connections (60 s): the client is the one that closes.
_KEEP_ALIVE_S = 75
_CLOSE_S = 1.0
# Of the event loop: what an accepted connection takes to have its protocol, and an aborted one to close its socket.
_TURNS = 5


class ConnectOptions(TypedDict):
    """Keyword arguments of a generated ``…ServiceASGIApplication``."""

    interceptors: Iterable[Interceptor]
    read_max_bytes: int | None
    compressions: Iterable[Compression] | None
    codecs: Iterable[Codec] | None


def connect_options(*, read_max_bytes: int = READ_MAX_BYTES) -> ConnectOptions:
    """How every service of Fluster is served: ``ControllerServiceASGIApplication(service, **connect_options())``.

    Errors go through the one table, messages over `read_max_bytes` (also once unpacked) are refused, and JSON with a
    field that does not exist is refused by the field's name.
    """
    return ConnectOptions(
        interceptors=[_Errors()],
        read_max_bytes=read_max_bytes,
        compressions=[_Gzip(level=1)],
        codecs=[proto_binary_codec(), JsonCodec()],
    )


class RpcServer:
    """Services on one port of the running event loop.

    Args:
        applications: Generated ASGI applications, made with `connect_options`.
        authenticate: Gets the headers (lower-case names), says who asks, or None; see `gate.bearer` and
            `gate.current_identity`.
        host: Name or address to bind.
        port: 0: any.
        hosts: What a Host header may name besides loopback and `host`.
        refused: Told of each refused request: the error, the path, the client's address.
        ssl_context: For https.
        public: What anybody may GET, by path: PEM certificates.
    """

    def __init__(
        self,
        applications: Sequence[Application],
        authenticate: Authenticate,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        hosts: Iterable[str] = (),
        refused: Callable[[WireError, str, str], None] | None = None,
        ssl_context: SSLContext | None = None,
        public: Mapping[str, bytes] | None = None,
    ) -> None:
        self._gate = Gate(
            applications,
            authenticate,
            hosts=[*hosts, host],
            any_address=_is_wildcard(host),
            refused=refused,
            public=public,
        )
        self._host = host
        self._port = port
        self._ssl_context = ssl_context
        self._state = ServerState()
        self._protocol = edge_protocol()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The bound one, once started."""
        return self._port

    async def start(self) -> int:
        """Listen; returns the bound port.

        Raises:
            OSError: the port is taken, or the host is none of this machine's.
        """
        config = Config(
            self._gate,
            http=self._protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        config.load()
        # uvicorn's own Server would take over the signals of the process, exit it when the port is taken, and wake up
        # ten times a second. Host and port, never a ready socket: one made without IPPROTO_TCP keeps Nagle's algorithm
        # on in asyncio, 40 ms for each call.
        self._server = await asyncio.get_running_loop().create_server(
            lambda: self._make_protocol(config), host=self._host, port=self._port, backlog=2048
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self._port

    def _make_protocol(self, config: Config) -> asyncio.Protocol:
        def make() -> EdgeProtocol:
            return self._protocol(config=config, server_state=self._state, app_state={})

        return make() if self._ssl_context is None else Handshake(make, self._ssl_context, self._protocol.strangers)

    async def stop(self, *, grace_s: float = 0.1) -> None:
        """Stop listening, end what runs after `grace_s` (long polls and streams too), close all connections.

        Callers of what was ended are told `unavailable` and ask again. Repeating it is harmless.
        """
        server, self._server = self._server, None
        if server is None:
            return
        self._protocol.strangers.stop()
        # asyncio forgets, open, what it has accepted when its server closes before the transport is made.
        for listener in server.sockets:
            asyncio.get_running_loop().remove_reader(listener)
        await _turns()
        server.close()
        await self._gate.drain(grace_s)
        for connection in list(self._state.connections):
            connection.shutdown()  # at once, or when its response is written
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                while self._state.connections or self._state.tasks:
                    await asyncio.sleep(0.005)
        for connection in list(self._state.connections):
            connection.transport.abort()
        self._protocol.strangers.abort()
        for task in list(self._state.tasks):
            task.cancel()
        await _turns()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await server.wait_closed()


async def _turns() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)


class _Errors:
    """Turns what handlers raise into what callers may see."""

    async def intercept_unary(
        self, call_next: Callable[[Any, _Context], Awaitable[Any]], request: Any, ctx: _Context
    ) -> Any:
        try:
            return await call_next(request, ctx)
        except (Exception, asyncio.CancelledError) as error:
            shown = _for_caller(error, ctx)
            if shown is None:
                raise
            raise shown from error

    async def intercept_server_stream(
        self, call_next: Callable[[Any, _Context], AsyncIterator[Any]], request: Any, ctx: _Context
    ) -> AsyncIterator[Any]:
        messages = call_next(request, ctx)
        try:
            async with aclosing(messages):  # type: ignore[type-var]
                async for message in messages:
                    yield message
        except (Exception, asyncio.CancelledError) as error:
            shown = _for_caller(error, ctx)
            if shown is None:
                raise
            raise shown from error


class _Gzip(GzipCompression):
    """Gzip of one member: the library's loop over members takes quadratic time on a body of thousands of empty ones."""

    def decompress(self, data: bytes | bytearray | memoryview, read_max_bytes: int | None = None) -> bytes:
        limit = READ_MAX_BYTES if read_max_bytes is None else read_max_bytes
        decompressor = zlib.decompressobj(wbits=31)
        out = decompressor.decompress(data, limit + 1)
        if len(out) > limit:
            raise ConnectError(Code.RESOURCE_EXHAUSTED, f"message is larger than configured max {limit}")
        if not decompressor.eof or decompressor.unused_data:
            raise ConnectError(Code.INVALID_ARGUMENT, "the body is not one whole gzip member")
        return out


def _for_caller(error: Exception | asyncio.CancelledError, ctx: _Context) -> ConnectError | None:
    """What to raise instead; None: the error itself."""
    if isinstance(error, ConnectError):
        return None
    if isinstance(error, asyncio.CancelledError):  # by the caller's deadline or departure, or by stop()
        return _connect_error(refusal("unavailable", STOPPING)) if stopping() else None
    return _connect_error(encode(error, doing=ctx.method.name, request_id=request_id()))


def _connect_error(error: WireError) -> ConnectError:
    return ConnectError(Code(error.code), error.message, details=[error.info()])


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return not host
