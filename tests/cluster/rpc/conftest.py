"""A real server with a small service, on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import Any

import pytest

from fluster.errors import JobNotFound
from fluster.rpc.client import ConnectClient
from fluster.rpc.errors import WireError
from fluster.rpc.gate import bearer, current_identity
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1.controller_connect import ControllerService, ControllerServiceASGIApplication
from fluster.rpc.serve import RpcServer, connect_options

SERVICE = "fluster.cluster.v1.ControllerService"
TOKEN = "correct-horse"


class Service(ControllerService):
    """Answers that let a test see how a call went."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.cancelled = threading.Event()
        self.running = threading.Event()
        self.failure: BaseException | None = None
        self.on_call: Callable[[], None] = lambda: None

    async def get_job_status(self, request: pb.GetJobStatusRequest, ctx: Any) -> pb.GetJobStatusResponse:
        self.calls["GetJobStatus"] += 1
        self.on_call()
        if self.failure is not None:
            raise self.failure
        raise JobNotFound(request.job_id)

    async def list_workers(self, request: pb.ListWorkersRequest, ctx: Any) -> pb.ListWorkersResponse:
        """Its worker's id is the caller's name."""
        self.calls["ListWorkers"] += 1
        self.on_call()
        return pb.ListWorkersResponse(workers=[pb.WorkerInfo(worker_id=current_identity(str))])

    async def list_jobs(self, request: pb.ListJobsRequest, ctx: Any) -> pb.ListJobsResponse:
        """Echoes the prefix as the page token."""
        self.calls["ListJobs"] += 1
        return pb.ListJobsResponse(next_page_token=request.name_prefix)

    async def put_blob(self, request: pb.PutBlobRequest, ctx: Any) -> pb.PutBlobResponse:
        return pb.PutBlobResponse(next_offset=len(request.chunk))

    async def wait_jobs(self, request: pb.WaitJobsRequest, ctx: Any) -> pb.WaitJobsResponse:
        """Never answers by itself."""
        self.calls["WaitJobs"] += 1
        await self._forever()
        return pb.WaitJobsResponse()

    async def fetch_logs(self, request: pb.FetchLogsRequest, ctx: Any) -> AsyncIterator[pb.FetchLogsResponse]:
        """Three messages, then the end, a failure, or (with `follow`) nothing any more."""
        self.calls["FetchLogs"] += 1
        for index in range(3):
            yield pb.FetchLogsResponse(lines=[pb.LogLine(data=b"line %d" % index)])
        if self.failure is not None:
            raise self.failure
        if request.follow:
            await self._forever()

    async def get_blob(self, request: pb.GetBlobRequest, ctx: Any) -> AsyncIterator[pb.GetBlobResponse]:
        """One large message."""
        yield pb.GetBlobResponse(chunk=bytes(8 * 1024 * 1024))

    async def _forever(self) -> None:
        self.running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class Server:
    """Serves on a thread until it is stopped; may be started again on its port."""

    def __init__(self, service: Any, hosts: tuple[str, ...] = ()) -> None:
        self.service = service
        self.port = 0
        self.refused: list[tuple[WireError, str, str]] = []
        self._hosts = hosts
        self._loop: asyncio.AbstractEventLoop | None = None
        self.rpc: RpcServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Server:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-server")
        self._thread.start()
        self.port = self.run(self._start())
        return self

    def stop(self) -> None:
        if self._loop is None or self._thread is None or self.rpc is None:
            return
        self.run(self.rpc.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = self.rpc = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=10)

    def connections(self) -> list[Any]:
        assert self.rpc is not None
        return list(self.rpc._state.connections)

    def break_connections(self) -> None:
        """As a server that was killed leaves them."""

        async def abort() -> None:
            for connection in self.connections():
                connection.transport.abort()
            await asyncio.sleep(0)

        self.run(abort())

    async def _start(self) -> int:
        application = ControllerServiceASGIApplication(self.service, **connect_options())
        self.rpc = RpcServer(
            [application],
            authenticate,
            port=self.port,
            hosts=self._hosts,
            refused=lambda error, path, client: self.refused.append((error, path, client)),
        )
        return await self.rpc.start()


def authenticate(headers: Mapping[str, str]) -> str | None:
    """One admin, and guests who are called after their token."""
    token = bearer(headers)
    if token == TOKEN:
        return "admin"
    return token if token and token.startswith("guest-") else None


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def server(service: Service) -> Iterator[Server]:
    server = Server(service).start()
    yield server
    server.stop()


@pytest.fixture
def client(server: Server) -> Iterator[ConnectClient]:
    client = ConnectClient(server.address, SERVICE, token=TOKEN)
    yield client
    client.close()
