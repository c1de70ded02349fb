"""A real server with a small service, on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import pytest

from fluster.errors import JobNotFound
from fluster.rpc.client import ConnectClient
from fluster.rpc.gate import bearer, current_identity
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1.controller_connect import ControllerService, ControllerServiceASGIApplication
from fluster.rpc.serve import connect_options
from fluster.testing.serving import ServerThread

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
        self.peer: str | None = None  # who called last, "host:port"

    async def get_job_status(self, request: pb.GetJobStatusRequest, ctx: Any) -> pb.GetJobStatusResponse:
        self.calls["GetJobStatus"] += 1
        self.on_call()
        if self.failure is not None:
            raise self.failure
        raise JobNotFound(request.job_id)

    async def list_workers(self, request: pb.ListWorkersRequest, ctx: Any) -> pb.ListWorkersResponse:
        """Its worker's id is the caller's name."""
        self.calls["ListWorkers"] += 1
        self.peer = ctx.client_address
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
def server(service: Service) -> Iterator[ServerThread]:
    with ServerThread(lambda: ControllerServiceASGIApplication(service, **connect_options()), authenticate) as server:
        yield server


@pytest.fixture
def client(server: ServerThread) -> Iterator[ConnectClient]:
    client = ConnectClient(server.address, SERVICE, token=TOKEN)
    yield client
    client.close()
