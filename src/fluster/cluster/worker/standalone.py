"""Jobs that callers give to one worker directly, without a controller: their specification, state and logs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from fluster.cluster.states import Cause, TaskState
from fluster.cluster.validation import check_command, check_env_vars, check_seconds
from fluster.cluster.worker import logfile
from fluster.cluster.worker.folder import check_uid
from fluster.cluster.worker.lifecycle import Attempt, Phase
from fluster.cluster.worker.messages import callable_entrypoint, command_entrypoint, inline_payload
from fluster.rpc.gen.fluster.cluster.v1 import types_pb
from fluster.rpc.gen.fluster.cluster.v1.controller_pb import AttemptSpec
from fluster.rpc.gen.fluster.cluster.v1.types_pb import (
    Command,
    EntrypointSpec,
    EnvironmentSpec,
    LogStream,
    ResourceSpec,
)

MAX_RESULT_BYTES = 2 << 20
_LOOK_S = 0.1
_PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class JobState:
    """How a standalone job stands. Times are unix seconds.

    Attributes:
        exit_code: 0-255, 128+n for signal n; `None` if nothing ran or it has not ended.
        cause: Why it did not succeed.
        result: Bytes of an `Outcome` up to 2 MiB; empty if there is none.
    """

    job_id: str
    state: TaskState
    exit_code: int | None = None
    error_message: str = ""
    cause: Cause | None = None
    started_at: float | None = None
    finished_at: float | None = None
    result: bytes = b""


@dataclass(frozen=True, slots=True)
class LogPiece:
    """Bytes of a stream from `offset` on, or a line that stands for those dropped; seen at `timestamp`."""

    stream: LogStream
    offset: int
    data: bytes
    timestamp: float


def job_spec(
    job_id: str,
    entrypoint: bytes | Sequence[str] | EntrypointSpec,
    env: Mapping[str, str],
    environment: EnvironmentSpec | None,
    resources: ResourceSpec | None,
    timeout_s: float | None,
) -> AttemptSpec:
    """What the job is to run, as a controller would say it.

    Raises:
        ValueError: Something breaks its rule.
    """
    world = EnvironmentSpec.from_binary(environment.to_binary()) if environment is not None else EnvironmentSpec()
    world.env_vars = check_env_vars({**world.env_vars, **env})
    world.secrets = check_env_vars(world.secrets, "secrets")
    check_env_vars({**world.env_vars, **world.secrets}, "env_vars and secrets")
    if timeout_s is not None:
        check_seconds(timeout_s, "timeout_s")
    return AttemptSpec(
        job_id=check_uid(job_id),
        job_name=job_id,
        num_tasks=1,
        attempt=1,
        entrypoint=_entrypoint(entrypoint),
        environment=world,
        resources=resources or ResourceSpec(cpu=1.0),
        timeout_s=timeout_s,
        local_world_size=1,
    )


def job_state(attempt: Attempt) -> JobState:
    """How the job stands now."""
    report = attempt.report
    if report is None or attempt.phase is not Phase.ENDED:
        state = {Phase.ACCEPTED: TaskState.PENDING, Phase.BUILDING: TaskState.BUILDING}
        return JobState(attempt.uid, state.get(attempt.phase, TaskState.RUNNING), started_at=attempt.started_at)
    return JobState(
        attempt.uid,
        _END_STATES.get(report.cause, TaskState.FAILED),
        exit_code=report.exit_code if report.has_field("exit_code") else None,
        error_message=report.error_message,
        cause=Cause[report.cause.name] if report.cause else None,
        started_at=attempt.started_at,
        finished_at=report.finished_at,
        result=_result(attempt),
    )


_END_STATES = {types_pb.Cause.UNSPECIFIED: TaskState.SUCCEEDED, types_pb.Cause.TERMINATED: TaskState.STOPPED}


async def follow_files(attempt: Attempt, offsets: tuple[int, int], *, follow: bool) -> AsyncIterator[LogPiece]:
    """The attempt's output from the offsets (stdout, stderr) on; with `follow` until it has ended."""
    paths = {LogStream.STDOUT: attempt.folder.stdout, LogStream.STDERR: attempt.folder.stderr}
    seen = {LogStream.STDOUT: max(0, offsets[0]), LogStream.STDERR: max(0, offsets[1])}
    while True:
        # Asked before reading: what is written before the end is then read after it.
        last = not follow or attempt.phase is Phase.ENDED
        found = False
        for stream, path in paths.items():
            if (kept := logfile.first_kept(path)) > seen[stream]:
                yield LogPiece(stream, seen[stream], _marker(kept - seen[stream]), time.time())
                seen[stream] = kept
            while data := attempt.veil.read(path, seen[stream], _PIECE_BYTES, final=last):
                yield LogPiece(stream, seen[stream], data, time.time())
                seen[stream] += len(data)
                found = True
        if last:
            return
        if not found:
            await _wait(attempt)


async def _wait(attempt: Attempt) -> None:
    try:
        await asyncio.wait_for(attempt.wait_ended(), _LOOK_S)
    except TimeoutError:
        pass


def _marker(missing: int) -> bytes:
    return b"[fluster: %d bytes of this log were dropped, it was longer than is kept]\n" % missing


def _entrypoint(entrypoint: bytes | Sequence[str] | EntrypointSpec) -> EntrypointSpec:
    if isinstance(entrypoint, bytes):
        return callable_entrypoint(inline_payload(entrypoint))
    if not isinstance(entrypoint, EntrypointSpec):
        return command_entrypoint(check_command(entrypoint))
    kind = entrypoint.kind
    if kind is None:
        raise ValueError("a job needs an entrypoint: a callable or a command")
    if isinstance(kind.value, Command):
        check_command(kind.value.argv)
    elif kind.value.content is None or kind.value.content.field != "inline":
        raise ValueError("a standalone worker takes a callable in place, not by its hash")
    return entrypoint


def _result(attempt: Attempt) -> bytes:
    result = attempt.report.result if attempt.report is not None else None
    if result is None:
        return b""
    if result.content is not None and result.content.field == "inline":
        return result.content.value
    try:
        content = attempt.folder.result.read_bytes()
    except OSError:
        return b""
    return content if len(content) <= MAX_RESULT_BYTES else b""
