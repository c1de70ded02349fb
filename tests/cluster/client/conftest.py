"""A controller in memory that runs no jobs: tests finish them, break connections and look at what was asked."""

from __future__ import annotations

import asyncio
import hashlib
import pickle
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from protobuf import Oneof

from fluster.cluster.attempt import files, outcome
from fluster.cluster.client import Cluster
from fluster.errors import AlreadyExists, JobNotFound
from fluster.rpc.gate import bearer, current_identity
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb
from fluster.rpc.gen.fluster.cluster.v1.controller_connect import ControllerService, ControllerServiceASGIApplication
from fluster.rpc.serve import connect_options
from fluster.testing.serving import ServerThread

TOKEN = "fla_correct"


class Controller(ControllerService):
    """What it was told, and what it answers."""

    def __init__(self, directory: Path) -> None:
        self.server: ServerThread | None = None
        self.asked: list[tuple[str, str]] = []  # method, who
        self.jobs: dict[str, types_pb.JobInfo] = {}
        self.specs: dict[str, types_pb.JobSpec] = {}
        self.namespaces: dict[str, str] = {}
        self.results: dict[str, types_pb.Payload] = {}
        self.blobs: dict[str, bytearray] = {}
        self.chunks: list[int] = []
        self.lines: dict[str, list[pb.LogLine]] = {}
        self.cursors: list[int] = []  # how many came with each request for logs
        self.events: list[pb.Event] = []
        self.endpoints: dict[str, pb.Endpoint] = {}
        self.renewals: list[list[str]] = []
        self.registrations: list[pb.RegisterEndpointRequest] = []
        self.lease_s = 60.0
        self.break_stream_after: list[int] = []  # messages of each next stream until its connection breaks
        self._requests: dict[str, tuple[bytes, list[str]]] = {}
        self._directory = directory

    # What tests do.

    def start(self, job_id: str) -> None:
        self.jobs[job_id].status = types_pb.JobStatus.RUNNING

    def run(self, job_id: str) -> None:
        """Call the entrypoint as a job's process would, and finish the job with what it gave."""
        spec = self.specs[job_id]
        assert spec.entrypoint is not None
        assert spec.entrypoint.kind is not None
        payload = spec.entrypoint.kind.value
        if isinstance(payload, types_pb.Command):
            self.finish(job_id)
            return
        function, args, kwargs = pickle.loads(self.content(payload))
        try:
            outcome.write_value(self._directory, function(*args, **kwargs))
            cause = types_pb.Cause.UNSPECIFIED
        except Exception as error:
            outcome.write_error(self._directory, error)
            cause = types_pb.Cause.EXCEPTION
        self.finish(job_id, cause, outcome=(self._directory / files.RESULT).read_bytes())

    def finish(
        self,
        job_id: str,
        cause: types_pb.Cause = types_pb.Cause.UNSPECIFIED,
        *,
        outcome: bytes | None = None,
        exit_code: int = 0,
        message: str = "",
        sha256: str | None = None,
    ) -> None:
        job = self.jobs[job_id]
        if outcome is not None:
            self.results[job_id] = self._payload(outcome, sha256)
        job.tasks = [types_pb.TaskInfo(index=0, attempt=1, cause=cause, state=types_pb.TaskState.SUCCEEDED)]
        job.cause, job.exit_code, job.error_message = cause, exit_code, message
        failed = cause is not types_pb.Cause.UNSPECIFIED
        job.status = types_pb.JobStatus.FAILED if failed else types_pb.JobStatus.SUCCEEDED

    def content(self, payload: types_pb.Payload) -> bytes:
        match payload.content:
            case Oneof(field="inline", value=bytes() as content):
                return content
            case Oneof(field="blob", value=str() as sha256):
                return bytes(self.blobs[sha256])
        raise AssertionError(payload)

    def print_lines(self, job_id: str, *texts: bytes, task: int = 0, stream: str = "STDOUT") -> None:
        lines = self.lines.setdefault(job_id, [])
        for text in texts:
            offset = sum(len(each.data) + 1 for each in lines if (each.task, each.stream.name) == (task, stream))
            lines.append(
                pb.LogLine(
                    task=task,
                    attempt=1,
                    stream=types_pb.LogStream[stream],
                    timestamp=float(len(lines)),
                    data=text,
                    next_offset=offset + len(text) + 1,
                )
            )

    def methods(self) -> list[str]:
        return [method for method, _ in self.asked]

    # What clients ask.

    def _note(self, method: str) -> None:
        self.asked.append((method, current_identity(str)))

    def _launch(self, request_id: str, namespace: str, specs: list[types_pb.JobSpec]) -> list[str]:
        body = b"".join(spec.to_binary() for spec in specs)
        if request_id in self._requests:
            known, job_ids = self._requests[request_id]
            if known != body:
                raise AlreadyExists(f"request {request_id!r} was another one")
            return job_ids
        job_ids = [f"j{len(self.jobs) + index}" for index in range(len(specs))]
        for job_id, spec in zip(job_ids, specs, strict=True):
            self.jobs[job_id] = types_pb.JobInfo(
                job_id=job_id,
                name=spec.name,
                status=types_pb.JobStatus.PENDING,
                pending_reason="2 cpu needed, 1 free",
                tasks=[types_pb.TaskInfo(state=types_pb.TaskState.PENDING)],
            )
            self.specs[job_id] = spec
            self.namespaces[job_id] = namespace
        self._requests[request_id] = (body, job_ids)
        return job_ids

    def _job(self, job_id: str) -> types_pb.JobInfo:
        if job_id not in self.jobs:
            raise JobNotFound(job_id)
        return self.jobs[job_id]

    def _payload(self, content: bytes, sha256: str | None = None) -> types_pb.Payload:
        digest = hashlib.sha256(content).hexdigest()
        if len(content) <= 65536:
            return types_pb.Payload(content=Oneof[Literal["inline"], bytes]("inline", content), sha256=sha256 or digest)
        self.blobs[digest] = bytearray(content)
        return types_pb.Payload(content=Oneof[Literal["blob"], str]("blob", digest), sha256=sha256 or digest)

    async def launch_job(self, request: pb.LaunchJobRequest, ctx: Any) -> pb.LaunchJobResponse:
        self._note("LaunchJob")
        assert request.spec is not None
        (job_id,) = self._launch(request.request_id, request.namespace, [request.spec])
        return pb.LaunchJobResponse(job_id=job_id)

    async def launch_jobs(self, request: pb.LaunchJobsRequest, ctx: Any) -> pb.LaunchJobsResponse:
        self._note("LaunchJobs")
        job_ids = self._launch(request.request_id, request.namespace, list(request.specs))
        return pb.LaunchJobsResponse(job_ids=job_ids)

    async def get_job_status(self, request: pb.GetJobStatusRequest, ctx: Any) -> pb.GetJobStatusResponse:
        self._note("GetJobStatus")
        return pb.GetJobStatusResponse(job=self._job(request.job_id))

    async def terminate_job(self, request: pb.TerminateJobRequest, ctx: Any) -> pb.TerminateJobResponse:
        self._note("TerminateJob")
        self._job(request.job_id).status = types_pb.JobStatus.STOPPED
        return pb.TerminateJobResponse()

    async def list_jobs(self, request: pb.ListJobsRequest, ctx: Any) -> pb.ListJobsResponse:
        """In pages of at most two."""
        self._note("ListJobs")
        found = [
            job
            for job in reversed(self.jobs.values())
            if job.name.startswith(request.name_prefix)
            and request.status in (types_pb.JobStatus.UNSPECIFIED, job.status)
        ]
        start, size = int(request.page_token or 0), min(2, request.page_size)
        following = str(start + size) if start + size < len(found) else ""
        return pb.ListJobsResponse(jobs=found[start : start + size], next_page_token=following)

    async def wait_jobs(self, request: pb.WaitJobsRequest, ctx: Any) -> pb.WaitJobsResponse:
        self._note("WaitJobs")
        finished = await self._until_finished(list(request.job_ids), request.wait_s, any_=request.any)
        return pb.WaitJobsResponse(finished=finished)

    async def get_result(self, request: pb.GetResultRequest, ctx: Any) -> pb.GetResultResponse:
        self._note("GetResult")
        finished = await self._until_finished([request.job_id], request.wait_s)
        if not finished:
            return pb.GetResultResponse(finished=False)
        return pb.GetResultResponse(finished=True, job=finished[0], result=self.results.get(request.job_id))

    async def _until_finished(self, job_ids: list[str], wait_s: float, *, any_: bool = False) -> list[types_pb.JobInfo]:
        deadline = time.monotonic() + wait_s
        while True:
            jobs = [self._job(job_id) for job_id in job_ids]
            finished = [job for job in jobs if job.status.value >= types_pb.JobStatus.SUCCEEDED.value]
            if len(finished) == len(jobs) or (any_ and finished) or time.monotonic() >= deadline:
                return finished
            await asyncio.sleep(0.005)

    async def fetch_logs(self, request: pb.FetchLogsRequest, ctx: Any) -> AsyncIterator[pb.FetchLogsResponse]:
        """One line a message."""
        self._note("FetchLogs")
        job = self._job(request.job_id)
        self.cursors.append(len(request.cursors))
        seen = {(each.task, each.attempt, each.stream): each.offset for each in request.cursors}
        left = self.break_stream_after.pop(0) if self.break_stream_after else None
        skip = len(self.lines.get(request.job_id, [])) - request.tail if request.has_field("tail") else 0
        while True:
            finished = job.status.value >= types_pb.JobStatus.SUCCEEDED.value
            for index, line in enumerate(list(self.lines.get(request.job_id, []))):
                key = (line.task, line.attempt, line.stream)
                asked = not request.has_field("task") or line.task == request.task
                if index < skip or not asked or line.next_offset <= seen.get(key, 0):
                    continue
                if left == 0:
                    self.break_connections()
                    await asyncio.Event().wait()
                left = left - 1 if left is not None else None
                seen[key] = line.next_offset
                yield pb.FetchLogsResponse(lines=[line])
            if finished or not request.follow:
                return
            await asyncio.sleep(0.005)

    def break_connections(self) -> None:
        assert self.server is not None
        for connection in self.server.connections():
            connection.transport.abort()

    async def explain_job(self, request: pb.ExplainJobRequest, ctx: Any) -> pb.ExplainJobResponse:
        self._note("ExplainJob")
        return pb.ExplainJobResponse(
            state="pending", reasons=[self._job(request.job_id).pending_reason], would_fit=True, queue_position=1
        )

    async def list_events(self, request: pb.ListEventsRequest, ctx: Any) -> pb.ListEventsResponse:
        self._note("ListEvents")
        found = [each for each in self.events if each.job_id == request.job_id and each.seq > request.after_seq]
        return pb.ListEventsResponse(events=found[: request.page_size])

    async def list_workers(self, request: pb.ListWorkersRequest, ctx: Any) -> pb.ListWorkersResponse:
        self._note("ListWorkers")
        free = types_pb.WorkerResources(cpu=1.0)
        worker = pb.WorkerInfo(worker_id="w", status="ready", resources=types_pb.WorkerResources(cpu=2.0), free=free)
        return pb.ListWorkersResponse(workers=[worker])

    async def put_blob(self, request: pb.PutBlobRequest, ctx: Any) -> pb.PutBlobResponse:
        self._note("PutBlob")
        self.chunks.append(len(request.chunk))
        blob = self.blobs.setdefault(request.sha256, bytearray())
        if request.offset <= len(blob) < request.total_size:
            blob[request.offset :] = request.chunk
        return pb.PutBlobResponse(next_offset=len(blob))

    async def get_blob(self, request: pb.GetBlobRequest, ctx: Any) -> AsyncIterator[pb.GetBlobResponse]:
        self._note("GetBlob")
        blob = bytes(self.blobs[request.sha256])
        left = self.break_stream_after.pop(0) if self.break_stream_after else None
        for offset in range(request.offset, len(blob), 100_000):
            if left == 0:
                self.break_connections()
                await asyncio.Event().wait()
            left = left - 1 if left is not None else None
            yield pb.GetBlobResponse(chunk=blob[offset : offset + 100_000], total_size=len(blob))

    async def register_endpoint(self, request: pb.RegisterEndpointRequest, ctx: Any) -> pb.RegisterEndpointResponse:
        self._note("RegisterEndpoint")
        self.registrations.append(request)
        endpoint = pb.Endpoint(
            endpoint_id=f"e{len(self.registrations)}",
            name=request.name,
            address=request.address,
            job_id=request.job_id,
            namespace=request.namespace or "default-of-the-controller",
            metadata=dict(request.metadata),
            access_key=request.access_key,
        )
        self.endpoints[endpoint.endpoint_id] = endpoint
        return pb.RegisterEndpointResponse(endpoint=endpoint, lease_s=0 if request.job_id else self.lease_s)

    async def renew_endpoints(self, request: pb.RenewEndpointsRequest, ctx: Any) -> pb.RenewEndpointsResponse:
        self._note("RenewEndpoints")
        self.renewals.append(list(request.endpoint_ids))
        unknown = [each for each in request.endpoint_ids if each not in self.endpoints]
        return pb.RenewEndpointsResponse(unknown_endpoint_ids=unknown)

    async def unregister_endpoint(
        self, request: pb.UnregisterEndpointRequest, ctx: Any
    ) -> pb.UnregisterEndpointResponse:
        self._note("UnregisterEndpoint")
        self.endpoints.pop(request.endpoint_id, None)
        return pb.UnregisterEndpointResponse()

    async def lookup_endpoints(self, request: pb.LookupEndpointsRequest, ctx: Any) -> pb.LookupEndpointsResponse:
        self._note("LookupEndpoints")
        found = [each for each in self.endpoints.values() if each.name == request.name]
        return pb.LookupEndpointsResponse(endpoints=found)

    async def list_endpoints(self, request: pb.ListEndpointsRequest, ctx: Any) -> pb.ListEndpointsResponse:
        self._note("ListEndpoints")
        found = [each for each in self.endpoints.values() if each.name.startswith(request.prefix)]
        namespace = request.namespace or "default-of-the-controller"
        return pb.ListEndpointsResponse(endpoints=found, namespace=namespace)


def authenticate(headers: Mapping[str, str]) -> str | None:
    token = bearer(headers)
    return token if token and token.startswith(("fla_", "flt_")) else None


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    return Controller(tmp_path)


@pytest.fixture
def server(controller: Controller) -> Iterator[ServerThread]:
    def application() -> ControllerServiceASGIApplication:
        return ControllerServiceASGIApplication(controller, **connect_options())

    with ServerThread(application, authenticate) as server:
        controller.server = server
        yield server


@pytest.fixture
def cluster(server: ServerThread) -> Iterator[Cluster]:
    with Cluster(server.address, token=TOKEN) as cluster:
        yield cluster


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """Waits for a condition, with a bound."""

    def until(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            time.sleep(0.005)

    return until
