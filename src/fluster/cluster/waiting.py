"""Waiting for jobs over long polls, through restarts of the controller."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

from fluster.cluster import wire
from fluster.cluster.ids import JobId
from fluster.cluster.observed import JobInfo
from fluster.cluster.states import Cause, JobStatus
from fluster.cluster.transfer import RETRY_S, receive
from fluster.errors import FlusterError, JobFailed, RemoteFault, Unreachable
from fluster.rpc.client import ConnectClient, Patience
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

R = TypeVar("R")

# The controller holds a poll for at most 30 s.
_HOLD_S = 20.0
_ANSWER_S = 15.0
_MAX_JOBS = 10_000
_SAID = re.compile(r"^last lines of (?:stdout|stderr):\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a wait is over. `at` is on the steady clock; None: never."""

    timeout_s: float | None
    at: float | None

    @classmethod
    def after(cls, timeout_s: float | None) -> Deadline:
        """From now on."""
        return cls(timeout_s, None if timeout_s is None else time.monotonic() + timeout_s)

    def left_s(self) -> float:
        """Seconds left; 0 when it is over."""
        return float("inf") if self.at is None else max(0.0, self.at - time.monotonic())


def wait_jobs(
    rpc: ConnectClient, job_ids: Iterable[JobId], timeout_s: float | None, *, until_failure: bool = False
) -> dict[JobId, JobInfo]:
    """The jobs once they have finished.

    Args:
        rpc: The controller.
        job_ids: Any number.
        timeout_s: None: as long as it takes.
        until_failure: Be content with fewer as soon as one of them did not succeed.

    Raises:
        TimeoutError: some had not finished in time.
        JobNotFound: one of them is not there.
    """
    deadline = Deadline.after(timeout_s)
    waiting = dict.fromkeys(job_ids)
    found: dict[JobId, JobInfo] = {}
    while waiting:
        asked = list(islice(waiting, _MAX_JOBS))
        reply = _poll(rpc, deadline, partial(_wait, rpc, asked, until_failure))
        for info in wire.job_infos(reply.finished):
            found[info.job_id] = info
            waiting.pop(info.job_id, None)
        if until_failure and any(info.status is not JobStatus.SUCCEEDED for info in found.values()):
            break
        if waiting and deadline.left_s() == 0:
            raise TimeoutError(_overdue_text(rpc, list(waiting), len(found), deadline))
    return found


def _wait(rpc: ConnectClient, job_ids: list[JobId], any_: bool, hold_s: float) -> pb.WaitJobsResponse:
    request = pb.WaitJobsRequest(job_ids=[*job_ids], wait_s=hold_s, any=any_)
    return rpc.unary("WaitJobs", request, pb.WaitJobsResponse, timeout_s=hold_s + _ANSWER_S, retry_s=0.0)


def job_result(rpc: ConnectClient, job_id: JobId, task: int, timeout_s: float | None) -> object:
    """What the entrypoint of one task gave, once the job has finished.

    Raises:
        Exception: what it raised, as `pickling.load_outcome` rebuilds it.
        JobFailed: it ended in another way.
        TimeoutError: the job had not finished in time.
    """
    deadline = Deadline.after(timeout_s)
    while True:
        reply = _poll(rpc, deadline, partial(_result, rpc, job_id, task))
        if reply.finished:
            break
        if deadline.left_s() == 0:
            raise TimeoutError(_overdue_text(rpc, [job_id], 0, deadline))
    if reply.job is None:
        raise RemoteFault("the controller's answer holds no job")
    info = wire.job_info(reply.job)
    cause = next((each.cause for each in info.tasks if each.index == task), info.cause)
    raised = cause is Cause.EXCEPTION
    if info.status is not JobStatus.SUCCEEDED and not (raised and reply.result is not None):
        raise job_failed(info)
    if reply.result is None:
        return None
    return _load(info, receive(rpc, reply.result), raised)


def _load(info: JobInfo, outcome: bytes, raised: bool) -> object:
    from fluster.cluster import pickling  # brings cloudpickle, which most programs that only look never need

    if raised and not pickling.failed(outcome):
        raise job_failed(info)
    return pickling.load_outcome(outcome)


def _result(rpc: ConnectClient, job_id: JobId, task: int, hold_s: float) -> pb.GetResultResponse:
    request = pb.GetResultRequest(job_id=job_id, task=task, wait_s=hold_s)
    return rpc.unary("GetResult", request, pb.GetResultResponse, timeout_s=hold_s + _ANSWER_S, retry_s=0.0)


def job_failed(info: JobInfo) -> JobFailed:
    """The error for a job that did not succeed."""
    message = info.error_message or ""
    said = _SAID.split(message)
    return JobFailed(
        info.job_id,
        cause=info.cause,
        exit_code=info.exit_code,
        remote_message=message,
        last_lines=said[-1].splitlines() if len(said) > 1 else (),
        info=info,
    )


def _poll(rpc: ConnectClient, deadline: Deadline, ask: Callable[[float], R]) -> R:
    """One long poll.

    Neither a controller that hangs, nor a machine that slept, nor one restart after the other is a reason to give up
    before the deadline.
    """
    patience = Patience(RETRY_S)
    while True:
        try:
            return ask(min(_HOLD_S, deadline.left_s()))
        except (TimeoutError, Unreachable) as error:
            if deadline.left_s() == 0 or not rpc.reached:
                raise
            away = error if isinstance(error, Unreachable) else Unreachable(str(error))
            patience.pause(away, seen_at=rpc.heard_at)


def _overdue_text(rpc: ConnectClient, job_ids: list[JobId], finished: int, deadline: Deadline) -> str:
    after = f"after {deadline.timeout_s:g} s"
    if finished or len(job_ids) > 1:
        return f"{len(job_ids)} of {len(job_ids) + finished} jobs had not finished {after}, the first is {job_ids[0]!r}"
    return f"job {job_ids[0]!r} had not finished {after}{_where_it_is(rpc, job_ids[0])}"


def _where_it_is(rpc: ConnectClient, job_id: JobId) -> str:
    try:
        reply = rpc.unary(
            "GetJobStatus", pb.GetJobStatusRequest(job_id=job_id), pb.GetJobStatusResponse, timeout_s=2, retry_s=0
        )
    except (FlusterError, TimeoutError):
        return ""
    if reply.job is None:
        return ""
    info = wire.job_info(reply.job)
    return f": it is {info.status}" + (f", {info.pending_reason}" if info.pending_reason else "")
