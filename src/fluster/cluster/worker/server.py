"""Serves WorkerService: in the daemon's event loop, or on a thread of its own for embedding."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import threading
from collections.abc import Iterable, Mapping

from fluster.cluster.worker.manager import JobManager
from fluster.cluster.worker.service import WorkerServicer
from fluster.rpc.gate import bearer
from fluster.rpc.gen.fluster.cluster.v1.worker_connect import WorkerServiceASGIApplication
from fluster.rpc.serve import RpcServer, connect_options

_STOP_S = 30.0


def worker_rpc_server(
    servicer: WorkerServicer, token: str, *, host: str = "127.0.0.1", port: int = 0, hosts: Iterable[str] = ()
) -> RpcServer:
    """The server of one worker for the running event loop; every call needs `token`."""

    def authenticate(headers: Mapping[str, str]) -> object | None:
        given = bearer(headers)
        return "worker" if given is not None and hmac.compare_digest(given.encode(), token.encode()) else None

    application = WorkerServiceASGIApplication(servicer, **connect_options())
    return RpcServer([application], authenticate, host=host, port=port, hosts=hosts)


class WorkerServer:
    """A standalone worker inside another program: its event loop runs on a thread of its own.

    Args:
        manager: Used by that loop alone from `start` to `shutdown`, which closes it.
        host: To bind.
        port: 0: any.
        token: Every caller must show it; default: a random one.
    """

    def __init__(
        self, manager: JobManager, host: str = "127.0.0.1", port: int = 0, *, token: str | None = None
    ) -> None:
        self.token = token or secrets.token_urlsafe(32)
        self._manager = manager
        self._host = host
        self._port = port
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        self._error: BaseException | None = None

    @property
    def address(self) -> str:
        """`host:port`, once started."""
        return f"{self._host}:{self._port}"

    def start(self) -> int:
        """Serves; returns the bound port.

        Raises:
            OSError: The port is taken.
        """
        if self._thread is not None:
            return self._port
        self._thread = threading.Thread(target=self._run, name="fluster-worker", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self._port

    def shutdown(self) -> None:
        """Stops serving and closes the manager. Repeating it is harmless."""
        thread, loop, stop = self._thread, self._loop, self._stop
        if thread is None or not thread.is_alive() or loop is None or stop is None:
            return
        loop.call_soon_threadsafe(stop.set)
        thread.join(_STOP_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = worker_rpc_server(WorkerServicer(self._manager), self.token, host=self._host, port=self._port)
        self._port = await server.start()
        try:
            await self._manager.open()
            self._started.set()
            await self._stop.wait()
        finally:
            await server.stop()
            await self._manager.close()
