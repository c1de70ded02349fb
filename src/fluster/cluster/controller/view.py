"""Rows as the messages that clients are shown."""

from __future__ import annotations

from collections.abc import Sequence

from fluster.cluster.controller.core.jobs import job_status
from fluster.cluster.controller.core.rows import (
    ENDED_STATES,
    AllocationRow,
    AttemptRow,
    EndpointRow,
    JobRow,
    Resources,
    TaskRow,
    WorkerRow,
)
from fluster.cluster.controller.core.state import State
from fluster.cluster.states import Cause, JobStatus, TaskState
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb, types_pb

_SETBACK = 200
"""Letters of it that are told with each job of a list."""


def status_message(status: JobStatus) -> types_pb.JobStatus:
    """The wire's value of a status."""
    return types_pb.JobStatus[status.name]


def cause_message(cause: Cause | None) -> types_pb.Cause:
    """The wire's value of a cause."""
    return types_pb.Cause.UNSPECIFIED if cause is None else types_pb.Cause[cause.name]


def finished_message(job: JobRow, tasks: Sequence[TaskRow], attempts: Sequence[AttemptRow | None]) -> types_pb.JobInfo:
    """A finished job with tasks of it.

    Args:
        job: Its row.
        tasks: Those to tell of.
        attempts: The latest of each.
    """
    message = _job_message(job, job_status(job, ()), _first_start(attempts))
    message.tasks = [task_message(task, attempt) for task, attempt in zip(tasks, attempts, strict=True)]
    return message


def finished_summary(job: JobRow, started_at: float | None) -> types_pb.JobInfo:
    """A finished job without its tasks."""
    return _job_message(job, job_status(job, ()), started_at)


def live_job_message(state: State, job: JobRow, *, with_tasks: bool = True) -> types_pb.JobInfo:
    """A job that is in memory."""
    tasks = state.tasks[job.job_id]
    attempts = [state.current(job.job_id, task.index) for task in tasks]
    status = job_status(job, [task.state for task in tasks])
    message = _job_message(job, status, _first_start(attempts))
    if status is JobStatus.PENDING:
        message.pending_reason = pending_reason(state, job) + _setback(attempts)
    if with_tasks:
        message.tasks = [task_message(task, attempt) for task, attempt in zip(tasks, attempts, strict=True)]
    return message


def pending_reason(state: State, job: JobRow) -> str:
    """What a job waits for of which nothing runs: every wait says why."""
    if job.stop_at is not None:
        return f"being stopped: {job.stop_reason}"
    if job.job_id in state.waiting:
        return state.waiting[job.job_id].reason
    if any(task.state is TaskState.PENDING for task in state.tasks[job.job_id]):
        return "to be placed"
    return "placed, its worker starts it"


def _setback(attempts: Sequence[AttemptRow | None]) -> str:
    """What the latest attempt of a job of which nothing runs ended of; nothing of those that ended with another's."""
    ended = [a for a in attempts if a is not None and a.cause not in (None, Cause.TERMINATED)]
    if not ended:
        return ""
    last = max(ended, key=lambda attempt: attempt.finished_at or 0.0)
    line = (last.error_message or str(last.cause)).partition("\n")[0]
    return f"; attempt {last.number} ended: {line[:_SETBACK]}{'…' if len(line) > _SETBACK else ''}"


def _first_start(attempts: Sequence[AttemptRow | None]) -> float | None:
    return min((a.started_at for a in attempts if a is not None and a.started_at is not None), default=None)


def _job_message(job: JobRow, status: JobStatus, started_at: float | None) -> types_pb.JobInfo:
    message = types_pb.JobInfo(
        job_id=job.job_id,
        name=job.name,
        status=status_message(status),
        error_message=job.error_message,
        cause=cause_message(job.cause),
        submitted_at=job.submitted_at,
        parent=job.parent or "",
        namespace=job.namespace,
        num_tasks=job.num_tasks,
    )
    if job.exit_code is not None:
        message.exit_code = job.exit_code
    if started_at is not None:
        message.started_at = started_at
    if job.finished_at is not None:
        message.finished_at = job.finished_at
    return message


def task_message(task: TaskRow, attempt: AttemptRow | None) -> types_pb.TaskInfo:
    """A task with its latest attempt. What a task that waits or runs again left behind is told until it ends anew."""
    message = types_pb.TaskInfo(index=task.index, state=types_pb.TaskState[task.state.name], attempt=task.attempt)
    if attempt is None:
        return message
    message.worker_id = attempt.worker_id
    if attempt.started_at is not None:
        message.started_at = attempt.started_at
    if attempt.finished_at is not None:
        message.finished_at = attempt.finished_at
    if attempt.state in ENDED_STATES:
        message.error_message = attempt.error_message
        message.cause = cause_message(attempt.cause)
    if attempt.exit_code is not None:
        message.exit_code = attempt.exit_code
    return message


def worker_message(state: State, worker: WorkerRow) -> controller_pb.WorkerInfo:
    """A worker with what it has left."""
    held = state.held.get(worker.worker_id, {})
    return controller_pb.WorkerInfo(
        worker_id=worker.worker_id,
        address=worker.address,
        status=worker.status,
        resources=resources_message(worker.resources, worker.cgroup),
        free=resources_message(state.free(worker), worker.cgroup),
        last_seen_at=state.last_seen.get(worker.worker_id, 0.0),
        allocation_id=worker.allocation_id,
        running_attempts=len(held),
    )


def resources_message(resources: Resources, cgroup: str) -> types_pb.WorkerResources:
    """What a worker has or has left."""
    return types_pb.WorkerResources(
        cpu=resources.cpu_milli / 1000,
        memory_bytes=resources.memory_bytes,
        disk_bytes=resources.disk_bytes,
        gpu_count=resources.gpu,
        gpu_variant=resources.gpu_variant,
        tpu_variant=resources.tpu_variant,
        max_jobs=resources.slots,
        cgroup=cgroup,
    )


def allocation_message(row: AllocationRow) -> controller_pb.Allocation:
    """An allocation."""
    return controller_pb.Allocation(
        allocation_id=row.allocation_id,
        backend=row.backend,
        status=row.status,
        hosts=list(row.hosts),
        created_at=row.created_at,
        error=row.error,
    )


def endpoint_message(row: EndpointRow, *, with_key: bool = False) -> controller_pb.Endpoint:
    """An endpoint; its access key only for those who looked it up."""
    return controller_pb.Endpoint(
        endpoint_id=row.endpoint_id,
        name=row.name,
        address=row.address,
        job_id=row.job_id or "",
        namespace=row.namespace,
        metadata=dict(row.metadata),
        access_key=row.access_key if with_key else "",
    )
