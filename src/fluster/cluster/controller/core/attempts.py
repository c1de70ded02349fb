"""Attempts: placed, observed, ended, lost."""

from __future__ import annotations

from dataclasses import replace

from fluster.cluster.controller.core import gangs
from fluster.cluster.controller.core.events import Exit, GangPlaced, Observed
from fluster.cluster.controller.core.fold import Fold
from fluster.cluster.controller.core.rows import AttemptRow, AttemptState, Charge, ResultRow, Retry
from fluster.cluster.controller.core.state import State
from fluster.cluster.ids import AttemptUid, JobId
from fluster.cluster.states import Cause, TaskState
from fluster.errors import FailedPrecondition

_STARTED = frozenset({AttemptState.BUILDING, AttemptState.RUNNING})


def attempt_uid(job_id: JobId, task: int, number: int) -> AttemptUid:
    """The uid of a task's attempt: unique, because job ids are and numbers are committed before use."""
    return AttemptUid(f"{job_id}.{task}.{number}")


def place(fold: Fold, event: GangPlaced) -> None:
    """Gives a whole gang its workers."""
    state = fold.state
    _check_waits(state, event)
    for member in event.members:
        task = state.tasks[event.job_id][member.task]
        worker = state.workers[member.worker_id]
        number = task.attempt + 1
        fold.put_attempt(
            AttemptRow(
                uid=attempt_uid(event.job_id, member.task, number),
                job_id=event.job_id,
                task=member.task,
                number=number,
                worker_id=member.worker_id,
                incarnation=worker.incarnation,
                placed_at=fold.now,
            )
        )
        fold.put_task(replace(task, state=TaskState.ASSIGNED, attempt=number))
        fold.journal("TaskPlaced", job_id=event.job_id, task=member.task, attempt=number, worker_id=member.worker_id)


def _check_waits(state: State, event: GangPlaced) -> None:
    """A placement that was decided before something else happened must not give a task a second process."""
    job = state.jobs.get(event.job_id)
    waits = (
        job is not None
        and job.stop_at is None
        and all(state.tasks[event.job_id][member.task].state is TaskState.PENDING for member in event.members)
        and all(member.worker_id in state.workers for member in event.members)
    )
    if not waits:
        raise FailedPrecondition(f"job {event.job_id!r} does not wait for this placement")


def observe(fold: Fold, attempt: AttemptRow, seen: Observed, incarnation: str) -> None:
    """Folds in what the attempt's worker says of it."""
    seen = _on_our_clock(attempt, seen, fold.now)
    attempt = _progress(fold, attempt, seen, incarnation)
    if seen.exit is not None:
        end(fold, attempt, seen.exit)


def _progress(fold: Fold, attempt: AttemptRow, seen: Observed, incarnation: str) -> AttemptRow:
    state = _furthest(attempt, seen)
    started_at = attempt.started_at if attempt.started_at is not None else seen.started_at
    port = attempt.master_port or seen.master_port
    if (
        attempt.observed
        and state is attempt.state
        and started_at == attempt.started_at
        and port == attempt.master_port
        and incarnation == attempt.incarnation
    ):
        return attempt
    changed = replace(
        attempt, state=state, observed=True, started_at=started_at, master_port=port, incarnation=incarnation
    )
    fold.put_attempt(changed)
    if port != attempt.master_port and gangs.leads(fold.state, changed):
        gangs.wake(fold, changed)
    if state is not attempt.state:
        task = fold.state.tasks[attempt.job_id][attempt.task]
        fold.put_task(replace(task, state=TaskState(state)))
        if state is AttemptState.RUNNING:
            fold.journal_attempt("TaskStarted", changed, seen.environment)
        else:
            fold.journal_attempt("TaskAccepted", changed)
    return changed


def _on_our_clock(attempt: AttemptRow, seen: Observed, now: float) -> Observed:
    """What was seen, its moments as close to those that are told as can be: a worker's clock may be anywhere.

    How long the attempt ran is right: it was measured by a clock that does not jump.
    """
    began, how = seen.started_at, seen.exit
    if how is None and (began is None or attempt.started_at is not None):
        return seen  # nothing new
    ran_s = max(0.0, how.finished_at - began) if how is not None and began is not None else 0.0
    if began is not None:
        began = attempt.started_at if attempt.started_at is not None else min(began, now - ran_s)
        began = max(began, attempt.placed_at)
    if how is not None:
        ended = how.finished_at if began is None else began + ran_s
        ended = min(max(ended, attempt.placed_at), now)
        how = how if ended == how.finished_at else replace(how, finished_at=ended)
    if began == seen.started_at and how is seen.exit:
        return seen  # its clock is right
    return replace(seen, started_at=began, exit=how)


def _furthest(attempt: AttemptRow, seen: Observed) -> AttemptState:
    """States only go forward. What has started was running, whatever reports were coalesced."""
    target = AttemptState.RUNNING if seen.started_at is not None else seen.state
    if target is AttemptState.RUNNING or (target is AttemptState.BUILDING and attempt.state is AttemptState.ASSIGNED):
        return target
    return attempt.state


def end(fold: Fold, attempt: AttemptRow, how: Exit, *, actor: str = "") -> None:
    """The attempt's process and all it started are gone; `actor` says so, by default its worker."""
    ended = _classify(fold.state.jobs[attempt.job_id].retry, attempt, how)
    fold.put_attempt(ended)
    if how.result_sha256:
        fold.note(attempt.uid, ResultRow(attempt.uid, how.result_inline, how.result_blob, how.result_sha256))
    for endpoint_id in list(fold.state.endpoints_by_attempt.get(attempt.uid, ())):
        fold.drop_endpoint(endpoint_id)
    if ended.state is AttemptState.FAILED:
        fold.journal_attempt("TaskFailed", ended, ended.error_message, actor)
    elif ended.state is AttemptState.STOPPED:
        fold.journal_attempt("TaskStopped", ended, ended.error_message, actor)
    gangs.settle(fold, ended)


def lose(fold: Fold, attempt: AttemptRow, why: str, *, last_heard: float | None) -> None:
    """The attempt is gone with its worker.

    Args:
        fold: The turn.
        attempt: One that may have had a process.
        why: What proves it, or what ran out.
        last_heard: When the worker that ran it was last heard of.
    """
    if attempt.stop_cause is not None and _lived_on(fold, attempt, last_heard):
        end(fold, attempt, Exit(None, None, why, fold.now, stop_requested=True), actor="controller")
    else:
        lost = replace(attempt, stop_cause=None, stop_reason="")
        end(fold, lost, Exit(None, Cause.WORKER_LOST, why, fold.now), actor="controller")


def _lived_on(fold: Fold, attempt: AttemptRow, last_heard: float | None) -> bool:
    """Whether the loss of an attempt that was to stop is no cause of what went wrong in its gang before.

    Times are the controller's own: clocks of workers may differ.
    """
    members = gangs.members(fold.state, fold.state.jobs[attempt.job_id], attempt.task)
    if not any(member.state is AttemptState.FAILED for member in members):
        return True
    told = fold.state.stopping_since.get(attempt.uid)
    return told is not None and last_heard is not None and last_heard > told


def give_up(fold: Fold, attempt: AttemptRow, why: str) -> None:
    """The attempt is gone because its machine was given up on purpose: nobody is charged."""
    if attempt.stop_cause is None:
        attempt = replace(attempt, stop_cause=Cause.TERMINATED, stop_reason=why)
    end(fold, attempt, Exit(None, None, "", fold.now, stop_requested=True), actor="controller")


def _classify(retry: Retry, attempt: AttemptRow, how: Exit) -> AttemptRow:
    stopped = how.stop_requested or how.cause is Cause.TERMINATED
    if stopped and attempt.stop_cause is None:
        message = f"its worker stopped it, which nobody had asked for: {how.error_message}"
        how = replace(how, cause=Cause.WORKER_LOST, stop_requested=False, error_message=message)
        return _classify(retry, attempt, how)
    state, cause, charge, message = AttemptState.FAILED, attempt.cause, attempt.charge, how.error_message
    if stopped:
        cause, charge = attempt.stop_cause, Charge.PREEMPTION
        if cause is not Cause.PREEMPTED:
            state, charge = AttemptState.STOPPED, Charge.NONE
        message = f"{attempt.stop_reason}: {message}" if message else attempt.stop_reason
    elif how.cause is None and how.exit_code == 0:
        state, message = AttemptState.EXITED, ""
    else:
        cause = how.cause if how.cause is not None else Cause.EXIT
        charge = _charge(retry, attempt, cause, how)
    return replace(
        attempt,
        state=state,
        cause=cause,
        charge=charge,
        error_message=message,
        finished_at=how.finished_at,
        exit_code=how.exit_code,
        peak_memory_bytes=how.peak_memory_bytes,
    )


def _charge(retry: Retry, attempt: AttemptRow, cause: Cause, how: Exit) -> Charge:
    if how.fluster_fault or (cause is Cause.SIGNAL and retry.signals_are_preemptions):
        return Charge.PREEMPTION
    if cause in gangs.INFRASTRUCTURE:
        return Charge.PREEMPTION if attempt.state in _STARTED else Charge.NONE
    if cause in (Cause.BUILD_FAILED, Cause.START_FAILED) and not how.user_fault:
        return Charge.PREEMPTION
    return Charge.FAILURE
