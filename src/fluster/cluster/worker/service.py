"""The worker's own RPCs: standalone jobs, readiness, live logs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from importlib import metadata
from typing import TYPE_CHECKING, Any

from fluster.cluster.worker.manager import JobManager
from fluster.cluster.worker.standalone import JobState
from fluster.errors import FailedPrecondition
from fluster.rpc.gen.fluster.cluster.v1 import worker_pb as pb
from fluster.rpc.gen.fluster.cluster.v1.types_pb import Cause, TaskState
from fluster.rpc.gen.fluster.cluster.v1.worker_connect import WorkerService

if TYPE_CHECKING:
    from connectrpc.request import RequestContext

    _Context = RequestContext[Any, Any]


class WorkerServicer(WorkerService):
    """Handlers of WorkerService.

    Args:
        manager: What they drive.
        worker_id: Whose they are.
        joined: Under a controller jobs come and go through it alone.
    """

    def __init__(self, manager: JobManager, *, worker_id: str = "standalone", joined: bool = False) -> None:
        self._manager = manager
        self._worker_id = worker_id
        self._joined = joined
        self._started_at = time.monotonic()

    async def run_job(self, request: pb.WorkerServiceRunJobRequest, ctx: _Context, /) -> pb.WorkerServiceRunJobResponse:
        """Accepts a job; the same id again is the same job."""
        self._refuse_if_joined()
        if request.entrypoint is None:
            raise ValueError("a job needs an entrypoint: a callable or a command")
        state = await self._manager.submit_job(
            request.job_id,
            request.entrypoint,
            environment=request.environment,
            resources=request.resources,
            timeout_s=request.timeout_s if request.has_field("timeout_s") else None,
        )
        return pb.WorkerServiceRunJobResponse(job_id=state.job_id, state=TaskState[state.state.name])

    async def get_job_status(
        self, request: pb.WorkerServiceGetJobStatusRequest, ctx: _Context, /
    ) -> pb.WorkerServiceGetJobStatusResponse:
        """How a job stands."""
        return _status(await self._manager.get_status(request.job_id))

    async def stream_logs(
        self, request: pb.WorkerServiceStreamLogsRequest, ctx: _Context, /
    ) -> AsyncIterator[pb.WorkerServiceStreamLogsResponse]:
        """What a job prints."""
        pieces = self._manager.stream_logs(
            request.job_id,
            follow=request.follow,
            stdout_offset=request.stdout_offset,
            stderr_offset=request.stderr_offset,
        )
        async for piece in pieces:
            yield pb.WorkerServiceStreamLogsResponse(
                stream=piece.stream, offset=piece.offset, data=piece.data, timestamp=piece.timestamp
            )

    async def kill_job(
        self, request: pb.WorkerServiceKillJobRequest, ctx: _Context, /
    ) -> pb.WorkerServiceKillJobResponse:
        """Ends a job's process tree."""
        self._refuse_if_joined()
        await self._manager.kill_job(request.job_id, request.force)
        return pb.WorkerServiceKillJobResponse()

    async def health_check(
        self, request: pb.WorkerServiceHealthCheckRequest, ctx: _Context, /
    ) -> pb.WorkerServiceHealthCheckResponse:
        """Whether the worker is there."""
        return pb.WorkerServiceHealthCheckResponse(
            healthy=True,
            uptime_s=time.monotonic() - self._started_at,
            running_jobs=await self._manager.running(),
            worker_id=self._worker_id,
            version=metadata.version("fluster-cluster"),
        )

    def _refuse_if_joined(self) -> None:
        if self._joined:
            raise FailedPrecondition("this worker belongs to a cluster: launch and terminate jobs there")


def _status(state: JobState) -> pb.WorkerServiceGetJobStatusResponse:
    return pb.WorkerServiceGetJobStatusResponse(
        job_id=state.job_id,
        state=TaskState[state.state.name],
        exit_code=state.exit_code,
        error_message=state.error_message,
        cause=Cause[state.cause.name] if state.cause else Cause.UNSPECIFIED,
        started_at=state.started_at,
        finished_at=state.finished_at,
        result=state.result,
    )
