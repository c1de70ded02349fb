"""Messages from outside into the core's values, checked by the same rules that clients check by."""

from __future__ import annotations

import hashlib
import math
from typing import TypeVar

from protobuf import Enum, Oneof

from fluster.cluster.controller.core.events import Exit, Observed
from fluster.cluster.controller.core.rows import AttemptState, JobRow, Resources, Retry
from fluster.cluster.ids import AttemptUid, JobId, Namespace
from fluster.cluster.resources import CpuConfig, DeviceConfig, GpuConfig, ResourceConfig, TpuConfig
from fluster.cluster.states import Cause
from fluster.cluster.validation import (
    check_command,
    check_docker_image,
    check_env_vars,
    check_extras,
    check_id,
    check_name,
    check_pip_packages,
    check_port_names,
    check_python,
    check_retry,
    check_seconds,
    check_strings,
    check_text,
    refuse,
)
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb, types_pb

MAX_INLINE_BYTES = 64 * 1024
"""Payloads up to this size travel in the row; larger ones are blobs."""
_MAX_MESSAGE_CHARS = 16_384
"""Error texts of workers are cut here: they live in rows and in every status answer."""
_MAX_ENVIRONMENT_CHARS = 300
"""Of what a worker says of an environment: a line."""
_MAX_IMPORT_PATH = 1_000
"""Directories."""
_MAX_WORD_BYTES = 128
"""Of what is kept as it was written and shown again."""
_PRIORITIES = {types_pb.Priority.LOW: 0, types_pb.Priority.NORMAL: 1, types_pb.Priority.HIGH: 2}
_STATES = {
    types_pb.TaskState.ASSIGNED: AttemptState.ASSIGNED,
    types_pb.TaskState.BUILDING: AttemptState.BUILDING,
    types_pb.TaskState.RUNNING: AttemptState.RUNNING,
}
_E = TypeVar("_E", bound=Enum)


def known(value: _E, what: str) -> _E:
    """The value, if this version knows it."""
    if value not in type(value):
        raise refuse(what, f"a known {type(value).__name__}", int(value))
    return value


def check_sha256(value: str, what: str = "sha256") -> str:
    """A lower-case hex sha256."""
    if len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise refuse(what, "64 lower-case hex digits", value)
    return value


def fingerprint(*parts: bytes | str | float) -> str:
    """Of what was asked, to tell a repeated request from another one under its id."""
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def default_resources() -> types_pb.ResourceSpec:
    """Of a job that says nothing about them."""
    default = ResourceConfig()
    return types_pb.ResourceSpec(
        cpu=float(default.cpu), memory_bytes=default.memory_bytes, memory=str(default.memory), replicas=default.replicas
    )


def blobs_of(spec: types_pb.JobSpec) -> list[str]:
    """Hashes of the blobs that entrypoint and workspace name."""
    named = []
    match spec.entrypoint.kind if spec.entrypoint is not None else None:
        case Oneof(field="callable", value=types_pb.Payload(content=Oneof(field="blob", value=str() as sha256))):
            named.append(sha256)
    if spec.environment is not None and spec.environment.has_field("workspace_hash"):
        named.append(spec.environment.workspace_hash)
    return named


def job_row(
    spec: types_pb.JobSpec, *, job_id: JobId, namespace: Namespace, owner: str, user: str, depth: int, now: float
) -> JobRow:
    """The row of a job as it was asked for.

    Raises:
        ValueError: Something breaks its rule; the text names both.
    """
    check_name(spec.name)
    _check_entrypoint(spec.entrypoint)
    _check_environment(spec.environment)
    config = _resources(spec.resources)
    if spec.num_tasks and spec.num_tasks != config.num_tasks:
        raise refuse("num_tasks", f"{config.num_tasks}, what its resources mean", spec.num_tasks)
    retry = spec.retry if spec.retry is not None else _default_retry()
    check_retry(retry.max_failures, retry.max_preemptions, retry.backoff_s, retry.max_backoff_s)
    priority = known(spec.priority, "priority")
    device = config.device
    return JobRow(
        job_id=job_id,
        name=spec.name,
        namespace=namespace,
        owner=owner,
        parent=JobId(check_id(spec.parent, "parent")) if spec.parent else None,
        depth=depth,
        priority=_PRIORITIES.get(priority, 1),
        num_tasks=config.num_tasks,
        gang=not spec.independent_tasks,
        resources=_demand(config),
        slice_hosts=device.vm_count() if isinstance(device, TpuConfig) else 0,
        retry=Retry(
            retry.max_failures,
            retry.max_preemptions,
            retry.backoff_s,
            retry.max_backoff_s,
            retry.signals_are_preemptions,
        ),
        timeout_s=_seconds(spec, "timeout_s"),
        scheduling_timeout_s=_seconds(spec, "scheduling_timeout_s"),
        ports=check_port_names(list(spec.ports)),
        submitted_at=now,
        user=user,
    )


def _default_retry() -> types_pb.RetrySpec:
    default = Retry()
    return types_pb.RetrySpec(
        max_failures=default.max_failures,
        max_preemptions=default.max_preemptions,
        backoff_s=default.backoff_s,
        max_backoff_s=default.max_backoff_s,
    )


def _seconds(spec: types_pb.JobSpec, what: str) -> float | None:
    if not spec.has_field(what):  # type: ignore[arg-type]
        return None
    return check_seconds(getattr(spec, what), what)


def _check_entrypoint(entrypoint: types_pb.EntrypointSpec | None) -> None:
    match entrypoint.kind if entrypoint is not None else None:
        case Oneof(field="command", value=types_pb.Command() as command):
            check_command(list(command.argv))
        case Oneof(field="callable", value=types_pb.Payload() as payload):
            check_payload(payload, "entrypoint")
        case _:
            raise ValueError("entrypoint must be a callable or a command, got neither")


def check_payload(payload: types_pb.Payload, what: str) -> None:
    """Bytes in place with their hash, or the hash of a blob."""
    check_sha256(payload.sha256, f"the sha256 of {what}")
    match payload.content:
        case Oneof(field="inline", value=bytes() as content):
            if len(content) > MAX_INLINE_BYTES:
                raise ValueError(f"{what} must be at most {MAX_INLINE_BYTES} bytes in place, got {len(content)}")
            if hashlib.sha256(content).hexdigest() != payload.sha256:
                raise ValueError(f"{what} must have the sha256 that came with it")
        case Oneof(field="blob", value=str() as blob):
            if blob != payload.sha256:
                raise refuse(f"the blob of {what}", "its sha256", blob)
        case _:
            raise ValueError(f"{what} must hold bytes or name a blob, got neither")


def _check_environment(environment: types_pb.EnvironmentSpec | None) -> None:
    if environment is None:
        return
    check_env_vars(environment.env_vars)
    check_env_vars(environment.secrets, "secrets")
    check_env_vars({**environment.env_vars, **environment.secrets}, "env_vars and secrets")
    if environment.sealed_secrets:
        raise ValueError("sealed_secrets must be empty: secrets are sealed where they are stored")
    check_pip_packages(list(environment.pip_packages))
    check_extras(list(environment.extras))
    if environment.has_field("python"):
        check_python(environment.python)
    if environment.has_field("docker_image"):
        check_docker_image(environment.docker_image)
    if environment.has_field("workspace_hash"):
        check_sha256(environment.workspace_hash, "workspace_hash")
        if environment.has_field("docker_image"):
            raise ValueError("workspace and docker_image exclude each other, got both")
    folders = check_strings(list(environment.workspace_import_path), "workspace_import_path", _MAX_IMPORT_PATH)
    for folder in folders:
        if folder.startswith("/") or ".." in folder.split("/"):
            raise refuse("an entry of workspace_import_path", "a folder inside the workspace", folder)
    if environment.has_field("working_directory"):
        check_text(environment.working_directory, "working_directory")
    check_strings(list(environment.import_path), "import_path", _MAX_IMPORT_PATH)
    if environment.submitter_python:
        check_text(environment.submitter_python, "submitter_python", limit=_MAX_WORD_BYTES)


def _resources(spec: types_pb.ResourceSpec | None) -> ResourceConfig:
    if spec is None:
        return ResourceConfig()
    if spec.memory:
        check_text(spec.memory, "memory", limit=_MAX_WORD_BYTES)
    return ResourceConfig(
        device=_device(spec),
        cpu=spec.cpu,
        memory=spec.memory_bytes,
        disk=spec.disk_bytes if spec.has_field("disk_bytes") else None,
        replicas=spec.replicas or 1,
        regions=list(spec.regions) or None,
        zones=list(spec.zones) or None,
        preemptible=spec.preemptible if spec.has_field("preemptible") else None,
    )


def _device(spec: types_pb.ResourceSpec) -> DeviceConfig:
    match spec.device:
        case Oneof(field="gpu", value=types_pb.GpuDevice() as gpu):
            return GpuConfig(gpu.variant or "auto", gpu.count)
        case Oneof(field="tpu", value=types_pb.TpuDevice() as tpu):
            return TpuConfig(tpu.variant, tpu.topology if tpu.has_field("topology") else None)
        case _:
            return CpuConfig()


def _demand(config: ResourceConfig) -> Resources:
    device = config.device
    return Resources(
        cpu_milli=math.ceil(config.cpu * 1000),
        memory_bytes=config.memory_bytes,
        disk_bytes=config.disk_bytes or 0,
        gpu=device.count if isinstance(device, GpuConfig) else 0,
        slots=1,
        gpu_variant=device.variant if isinstance(device, GpuConfig) else "",
        tpu_variant=device.variant if isinstance(device, TpuConfig) else "",
    )


_UNBOUNDED_SLOTS = 100_000


def worker_resources(message: types_pb.WorkerResources | None) -> Resources:
    """What a worker offers. A worker that names no number of jobs is bounded by its other resources."""
    offered = message if message is not None else types_pb.WorkerResources()
    numbers = (offered.cpu, offered.memory_bytes, offered.disk_bytes, offered.gpu_count, offered.max_jobs)
    if not all(math.isfinite(number) and 0 <= number < 2**62 for number in numbers):
        raise ValueError("a worker's resources must be finite numbers from 0")
    return Resources(
        cpu_milli=math.floor(offered.cpu * 1000 + 1e-6),
        memory_bytes=offered.memory_bytes,
        disk_bytes=offered.disk_bytes,
        gpu=offered.gpu_count,
        slots=offered.max_jobs or _UNBOUNDED_SLOTS,
        gpu_variant=offered.gpu_variant[:64],
        tpu_variant=offered.tpu_variant[:64],
    )


def observed(message: controller_pb.ObservedAttempt) -> Observed:
    """An attempt as its worker sees it."""
    state = _STATES.get(message.state)
    if state is None:
        if message.exit is None:
            raise refuse("the state of an observed attempt", "ASSIGNED, BUILDING or RUNNING", int(message.state))
        state = AttemptState.ASSIGNED
    if not 0 <= message.master_port <= 65535:
        raise refuse("master_port", "0 to 65535", message.master_port)
    return Observed(
        uid=AttemptUid(message.attempt_uid),
        state=state,
        started_at=_time(message.started_at) if message.has_field("started_at") else None,
        exit=None if message.exit is None else exit_of(message.exit),
        master_port=message.master_port,
        environment=message.environment[:_MAX_ENVIRONMENT_CHARS],
    )


def exit_of(message: types_pb.ExitReport) -> Exit:
    """How an attempt ended, as its worker says."""
    cause = known(message.cause, "cause")
    if message.has_field("exit_code") and not 0 <= message.exit_code <= 255:
        raise refuse("exit_code", "0 to 255", message.exit_code)
    inline, blob, sha256 = _result(message.result)
    return Exit(
        exit_code=message.exit_code if message.has_field("exit_code") else None,
        cause=None if cause is types_pb.Cause.UNSPECIFIED else Cause(str(cause.name).lower()),
        error_message=message.error_message[:_MAX_MESSAGE_CHARS],
        finished_at=_time(message.finished_at),
        peak_memory_bytes=max(0, message.peak_memory_bytes),
        stop_requested=message.stop_requested,
        fluster_fault=message.fluster_fault,
        user_fault=message.user_fault,
        result_inline=inline,
        result_blob=blob,
        result_sha256=sha256,
    )


def _result(payload: types_pb.Payload | None) -> tuple[bytes | None, str, str]:
    if payload is None:
        return None, "", ""
    check_payload(payload, "the result")
    match payload.content:
        case Oneof(field="inline", value=bytes() as content):
            return content, "", payload.sha256
        case _:
            return None, payload.sha256, payload.sha256


def _time(value: float) -> float:
    if not math.isfinite(value) or not 0 <= value < 1e12:
        raise refuse("a time", "unix seconds", value)
    return value
