"""Serves a Connect service on a thread of the test's process, in the way Fluster's daemons do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from ssl import SSLContext
from types import TracebackType
from typing import Any, Self, TypeVar

from fluster.rpc.errors import WireError
from fluster.rpc.gate import Application, Authenticate
from fluster.rpc.serve import RpcServer

T = TypeVar("T")

_WAIT_S = 10.0


class ServerThread:
    """A server on a thread of its own until it is stopped; starting it again keeps its port.

    Args:
        application: Makes what is served, with `connect_options`; called at each start.
        authenticate: Says who asks, by the headers.
        port: 0: any.
        ssl_context: For https.
        public: What anybody may GET.

    Attributes:
        refused: Each refused request: the error, the path, the client's address.
    """

    def __init__(
        self,
        application: Callable[[], Application],
        authenticate: Authenticate,
        *,
        port: int = 0,
        ssl_context: SSLContext | None = None,
        public: Mapping[str, bytes] | None = None,
    ) -> None:
        self.port = port
        self._ssl_context = ssl_context
        self._public = public
        self.refused: list[tuple[WireError, str, str]] = []
        self._application = application
        self._authenticate = authenticate
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: RpcServer | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """Where it serves."""
        return f"{'http' if self._ssl_context is None else 'https'}://127.0.0.1:{self.port}"

    @property
    def server(self) -> RpcServer:
        """The running one."""
        assert self._server is not None
        return self._server

    def start(self) -> None:
        """Serve."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-server")
        self._thread.start()
        try:
            self.port = self.run(self._start())
        except BaseException:
            self._end_loop()
            raise

    def stop(self) -> None:
        """As a daemon stops. Repeating it is harmless."""
        if self._server is not None:
            self.run(self._server.stop())
            self._end_loop()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine in the server's event loop."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_WAIT_S)

    def connections(self) -> list[Any]:
        """The protocols of those that are open."""
        return list(self.server._state.connections)

    def break_connections(self) -> None:
        """As a server that was killed leaves them."""

        async def abort() -> None:
            for connection in self.connections():
                connection.transport.abort()
            await asyncio.sleep(0)

        self.run(abort())

    async def _start(self) -> int:
        self._server = RpcServer(
            [self._application()],
            self._authenticate,
            port=self.port,
            refused=lambda error, path, client: self.refused.append((error, path, client)),
            ssl_context=self._ssl_context,
            public=self._public,
        )
        return await self._server.start()

    def _end_loop(self) -> None:
        assert self._loop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = self._server = None
