"""The public nouns as protobuf messages and back, for clients."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

from protobuf import Oneof

from fluster.cluster.context import SECRET_DEFAULTS
from fluster.cluster.ids import EndpointId, JobId, Namespace, WorkerId
from fluster.cluster.observed import Endpoint, Event, Explanation, JobInfo, LogLine, TaskStatus, WorkerInfo
from fluster.cluster.resources import GpuConfig, ResourceConfig, TpuConfig, WorkerResources
from fluster.cluster.states import Cause, JobStatus, Priority, TaskState, WorkerStatus
from fluster.errors import RemoteFault
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb, types_pb

if TYPE_CHECKING:
    from enum import StrEnum

    from protobuf import Enum

    from fluster.cluster.environment import EnvironmentConfig
    from fluster.cluster.surroundings import Surroundings
    from fluster.cluster.types import Entrypoint, JobRequest, RetryPolicy
    from fluster.cluster.workspace import Workspace

S = TypeVar("S", bound="StrEnum")


def job_spec(
    request: JobRequest,
    pickle_call: Callable[[Entrypoint], types_pb.Payload],
    *,
    parent: JobId | None,
    surroundings: Surroundings | None,
    workspace: Workspace | None = None,
) -> types_pb.JobSpec:
    """A job as it is launched.

    Args:
        request: What the user asks for.
        pickle_call: Makes the payload of a callable.
        parent: Of a request that names none.
        surroundings: What its tasks find when the request does not say otherwise.
        workspace: The request's, as it was sent.
    """
    spec = types_pb.JobSpec(
        name=request.name,
        entrypoint=_entrypoint(request.entrypoint, pickle_call),
        resources=_resources(request.resources),
        environment=_environment(request.environment, surroundings, workspace),
        retry=_retry(request.retry),
        priority=types_pb.Priority[Priority(request.priority).name],
        independent_tasks=not request.gang,
        parent=request.parent or parent or "",
        ports=list(request.ports),
        num_tasks=request.num_tasks,
    )
    if request.timeout_s is not None:
        spec.timeout_s = float(request.timeout_s)
    if request.scheduling_timeout_s is not None:
        spec.scheduling_timeout_s = float(request.scheduling_timeout_s)
    return spec


def _entrypoint(
    entrypoint: Entrypoint, pickle_call: Callable[[Entrypoint], types_pb.Payload]
) -> types_pb.EntrypointSpec:
    if entrypoint.callable is None:
        command = types_pb.Command(argv=list(entrypoint.command))
        return types_pb.EntrypointSpec(kind=Oneof[Literal["command"], types_pb.Command]("command", command))
    payload = pickle_call(entrypoint)
    return types_pb.EntrypointSpec(kind=Oneof[Literal["callable"], types_pb.Payload]("callable", payload))


def _resources(resources: ResourceConfig) -> types_pb.ResourceSpec:
    spec = types_pb.ResourceSpec(
        cpu=float(resources.cpu),
        memory_bytes=resources.memory_bytes,
        memory=str(resources.memory),
        replicas=resources.replicas,
        regions=list(resources.regions or ()),
        zones=list(resources.zones or ()),
    )
    if resources.disk_bytes is not None:
        spec.disk_bytes = resources.disk_bytes
    if resources.preemptible is not None:
        spec.preemptible = resources.preemptible
    match resources.device:
        case GpuConfig(variant, count):
            gpu = types_pb.GpuDevice(variant=variant, count=count)
            spec.device = Oneof[Literal["gpu"], types_pb.GpuDevice]("gpu", gpu)
        case TpuConfig(variant, topology):
            tpu = types_pb.TpuDevice(variant=variant)
            if topology is not None:
                tpu.topology = topology
            spec.device = Oneof[Literal["tpu"], types_pb.TpuDevice]("tpu", tpu)
    return spec


def _environment(
    environment: EnvironmentConfig, surroundings: Surroundings | None, workspace: Workspace | None
) -> types_pb.EnvironmentSpec:
    spec = types_pb.EnvironmentSpec(
        env_vars={name: value for name, value in environment.env_vars.items() if name not in SECRET_DEFAULTS},
        secrets={
            **{name: value for name, value in environment.env_vars.items() if name in SECRET_DEFAULTS},
            **environment.secrets,
        },
        pip_packages=list(environment.pip_packages),
        extras=list(environment.extras),
        submitter_python=f"{sys.version_info.major}.{sys.version_info.minor}",
    )
    python = environment.python
    if workspace is not None:
        spec.workspace_hash = workspace.sha256
        spec.workspace_import_path = list(workspace.import_path)
    if surroundings is not None and environment.docker_image is None:
        python = python or surroundings.python
        if workspace is None:
            # A directory of this machine needs no sending.
            if surroundings.directory:
                spec.working_directory = surroundings.directory
            spec.import_path = list(surroundings.import_path)
    if python is not None:
        spec.python = python
    if environment.docker_image is not None:
        spec.docker_image = environment.docker_image
    return spec


def _retry(retry: RetryPolicy) -> types_pb.RetrySpec:
    return types_pb.RetrySpec(
        max_failures=retry.max_failures,
        max_preemptions=retry.max_preemptions,
        backoff_s=float(retry.backoff_s),
        max_backoff_s=float(retry.max_backoff_s),
        signals_are_preemptions=retry.signals_are_preemptions,
    )


def job_info(message: types_pb.JobInfo) -> JobInfo:
    """A job as the controller tells of it."""
    return JobInfo(
        job_id=JobId(message.job_id),
        name=message.name,
        status=_state(JobStatus, message.status),
        error_message=message.error_message or None,
        exit_code=message.exit_code if message.has_field("exit_code") else None,
        cause=_cause(message.cause),
        pending_reason=message.pending_reason or None,
        submitted_at=message.submitted_at or None,
        started_at=message.started_at if message.has_field("started_at") else None,
        finished_at=message.finished_at if message.has_field("finished_at") else None,
        tasks=tuple(map(_task, message.tasks)),
        parent=JobId(message.parent) if message.parent else None,
        namespace=Namespace(message.namespace),
    )


def _task(message: types_pb.TaskInfo) -> TaskStatus:
    return TaskStatus(
        index=message.index,
        state=_state(TaskState, message.state),
        attempt=message.attempt,
        worker_id=WorkerId(message.worker_id) if message.worker_id else None,
        exit_code=message.exit_code if message.has_field("exit_code") else None,
        error_message=message.error_message or None,
        cause=_cause(message.cause),
        started_at=message.started_at if message.has_field("started_at") else None,
        finished_at=message.finished_at if message.has_field("finished_at") else None,
    )


def status_filter(status: JobStatus | str | None) -> types_pb.JobStatus:
    """The status to list by; unspecified for any.

    Raises:
        ValueError: There is no such status.
    """
    return types_pb.JobStatus.UNSPECIFIED if status is None else types_pb.JobStatus[JobStatus(status).name]


def worker_info(message: controller_pb.WorkerInfo) -> WorkerInfo:
    """A worker as the controller tells of it."""
    return WorkerInfo(
        worker_id=WorkerId(message.worker_id),
        address=message.address,
        status=WorkerStatus(message.status),
        resources=_worker_resources(message.resources),
        free=_worker_resources(message.free),
        last_seen_at=message.last_seen_at or None,
    )


def _worker_resources(message: types_pb.WorkerResources | None) -> WorkerResources:
    if message is None:
        return WorkerResources()
    return WorkerResources(
        cpu=message.cpu,
        memory_bytes=message.memory_bytes,
        disk_bytes=message.disk_bytes,
        gpu_count=message.gpu_count,
        gpu_variant=message.gpu_variant,
        tpu_variant=message.tpu_variant,
        max_jobs=message.max_jobs,
        cgroup=message.cgroup or "none",
    )


def endpoint(message: controller_pb.Endpoint | None) -> Endpoint:
    """A registration."""
    if message is None:
        raise RemoteFault("the controller's answer holds no endpoint")
    return Endpoint(
        endpoint_id=EndpointId(message.endpoint_id),
        name=message.name,
        address=message.address,
        job_id=JobId(message.job_id),
        namespace=Namespace(message.namespace),
        metadata=dict(message.metadata),
        access_key=message.access_key or None,
    )


def event(message: controller_pb.Event) -> Event:
    """A line of the journal."""
    return Event(
        seq=message.seq,
        timestamp=message.timestamp,
        kind=message.kind,
        job_id=JobId(message.job_id) if message.job_id else None,
        task=message.task if message.task >= 0 else None,
        attempt=message.attempt or None,
        worker_id=WorkerId(message.worker_id) if message.worker_id else None,
        actor=message.actor,
        message=message.message,
    )


def explanation(message: controller_pb.ExplainJobResponse) -> Explanation:
    """Why a job is where it is."""
    return Explanation(
        state=JobStatus(message.state),
        reasons=tuple(message.reasons),
        would_fit=message.would_fit,
        queue_position=message.queue_position if message.has_field("queue_position") else None,
    )


def log_line(job_id: JobId, message: controller_pb.LogLine) -> LogLine:
    """A line a task printed."""
    stream: Literal["stdout", "stderr"] = "stderr" if message.stream is types_pb.LogStream.STDERR else "stdout"
    return LogLine(
        job_id=job_id,
        task=message.task,
        attempt=message.attempt,
        stream=stream,
        timestamp=message.timestamp,
        data=message.data.decode("utf-8", "replace"),
    )


def job_infos(messages: Sequence[types_pb.JobInfo]) -> list[JobInfo]:
    """Several."""
    return [job_info(message) for message in messages]


def _state(kind: type[S], value: Enum) -> S:
    try:
        return kind[value.name]
    except KeyError:
        raise RemoteFault(f"the controller speaks of a {kind.__name__} this version does not know: {value!r}") from None


def _cause(value: types_pb.Cause) -> Cause | None:
    return None if value is types_pb.Cause.UNSPECIFIED else _state(Cause, value)
