"""Attempts: placed, observed, ended; and what the end of one means for its gang."""

from __future__ import annotations

from dataclasses import replace

from fluster.cluster.controller.core import jobs
from fluster.cluster.controller.core.events import Exit, GangPlaced, Observed
from fluster.cluster.controller.core.rows import (
    AttemptRow,
    AttemptState,
    Charge,
    JobRow,
    ResultRow,
    TaskRow,
)
from fluster.cluster.controller.core.state import Fold, State, has_process
from fluster.cluster.ids import AttemptUid, JobId
from fluster.cluster.states import Cause, TaskState

_INFRASTRUCTURE = frozenset({Cause.WORKER_LOST, Cause.PREEMPTED})
_STARTED = frozenset({AttemptState.BUILDING, AttemptState.RUNNING})


def attempt_uid(job_id: JobId, task: int, number: int) -> AttemptUid:
    """The uid of a task's attempt: unique, because job ids are and numbers are committed before use."""
    return AttemptUid(f"{job_id}.{task}.{number}")


def place(fold: Fold, event: GangPlaced) -> None:
    """Gives a whole gang its workers."""
    state = fold.state
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


def observe(fold: Fold, attempt: AttemptRow, seen: Observed, incarnation: str) -> None:
    """Folds in what the attempt's worker says of it."""
    attempt = _progress(fold, attempt, seen, incarnation)
    if seen.exit is not None:
        end(fold, attempt, seen.exit)


def _progress(fold: Fold, attempt: AttemptRow, seen: Observed, incarnation: str) -> AttemptRow:
    state = attempt.state
    # Once it has ended it was running before, whatever reports were coalesced; a start that failed was building.
    target = AttemptState.RUNNING if seen.started_at is not None else seen.state
    if target is AttemptState.RUNNING or (target is AttemptState.BUILDING and state is AttemptState.ASSIGNED):
        state = target
    started_at = attempt.started_at if attempt.started_at is not None else seen.started_at
    port = attempt.master_port or seen.master_port
    changed = replace(
        attempt, state=state, observed=True, started_at=started_at, master_port=port, incarnation=incarnation
    )
    if changed == attempt:
        return attempt
    fold.put_attempt(changed)
    if port != attempt.master_port:
        _wake_gang(fold, changed)
    if state is not attempt.state:
        task = fold.state.tasks[attempt.job_id][attempt.task]
        fold.put_task(replace(task, state=TaskState(state)))
        if state is AttemptState.RUNNING:
            _journal(fold, "TaskStarted", changed)
    return changed


def _wake_gang(fold: Fold, head: AttemptRow) -> None:
    for member in _round(fold.state, fold.state.jobs[head.job_id], head.task):
        fold.changes.touched_workers.add(member.worker_id)


def end(fold: Fold, attempt: AttemptRow, how: Exit) -> None:
    """The attempt's process and all it started are gone."""
    ended = _classify(attempt, how)
    fold.put_attempt(ended)
    if how.result_sha256:
        fold.note(attempt.uid, ResultRow(attempt.uid, how.result_inline, how.result_blob, how.result_sha256))
    for endpoint_id in list(fold.state.endpoints_by_attempt.get(attempt.uid, ())):
        fold.drop_endpoint(endpoint_id)
    if ended.state is AttemptState.FAILED:
        _journal(fold, "TaskFailed", ended, ended.error_message)
    elif ended.state is AttemptState.STOPPED:
        _journal(fold, "TaskStopped", ended, ended.error_message)
    settle_gang(fold, ended)


def lose(fold: Fold, attempt: AttemptRow, why: str, *, last_heard: float | None) -> None:
    """The attempt is gone with its worker.

    Args:
        fold: The turn.
        attempt: One that may have had a process.
        why: What proves it, or what ran out.
        last_heard: When its worker was last heard of.
    """
    failed = [m for m in _round(fold.state, fold.state.jobs[attempt.job_id], attempt.task) if _failed(m)]
    # Told to stop, and heard of after that: its loss is no cause of what went wrong before.
    innocent = attempt.stop_cause is not None and (
        not failed or (last_heard is not None and last_heard > min(m.finished_at or 0.0 for m in failed))
    )
    how = Exit(
        exit_code=None,
        cause=None if innocent else Cause.WORKER_LOST,
        error_message=why,
        finished_at=fold.now,
        stop_requested=innocent,
    )
    if not innocent:
        attempt = replace(attempt, stop_cause=None)
    end(fold, attempt, how)


def _failed(attempt: AttemptRow) -> bool:
    return attempt.state is AttemptState.FAILED


def _classify(attempt: AttemptRow, how: Exit) -> AttemptRow:
    ended = replace(
        attempt,
        finished_at=how.finished_at,
        exit_code=how.exit_code,
        error_message=how.error_message,
        peak_memory_bytes=how.peak_memory_bytes,
    )
    if how.stop_requested and attempt.stop_cause is not None:
        charge = Charge.PREEMPTION if attempt.stop_cause is Cause.PREEMPTED else Charge.NONE
        state = AttemptState.FAILED if attempt.stop_cause is Cause.PREEMPTED else AttemptState.STOPPED
        return replace(ended, state=state, cause=attempt.stop_cause, error_message=attempt.stop_reason, charge=charge)
    if how.stop_requested:
        # Nobody here asked: the worker's lease ran out and it stopped what it held.
        how = replace(how, cause=Cause.WORKER_LOST, stop_requested=False)
        message = "its worker lost contact with the controller and stopped it"
        return _classify(replace(attempt, stop_cause=None), replace(how, error_message=message))
    if how.cause is None and how.exit_code == 0:
        return replace(ended, state=AttemptState.EXITED, error_message="")
    cause = how.cause if how.cause is not None else Cause.EXIT
    return replace(ended, state=AttemptState.FAILED, cause=cause, charge=_charge(attempt, cause, how))


def _charge(attempt: AttemptRow, cause: Cause, how: Exit) -> Charge:
    if how.fluster_fault:
        return Charge.PREEMPTION
    if cause in _INFRASTRUCTURE:
        return Charge.PREEMPTION if attempt.state in _STARTED else Charge.NONE
    if cause in (Cause.BUILD_FAILED, Cause.START_FAILED) and not how.user_fault:
        return Charge.PREEMPTION
    return Charge.FAILURE


def settle_gang(fold: Fold, ended: AttemptRow) -> None:
    """Decides what the end of one member means: for the others, and once none is left for the gang."""
    job = fold.state.jobs[ended.job_id]
    members = _round(fold.state, job, ended.task)
    alive = [m for m in members if has_process(m)]
    if ended.state is not AttemptState.EXITED:
        for member in alive:
            if member.stop_cause is None:
                reason = f"task {ended.task} of its gang ended: {ended.cause}"
                fold.put_attempt(replace(member, stop_cause=Cause.TERMINATED, stop_reason=reason))
    if alive:
        return
    if all(m.state is AttemptState.EXITED for m in members):
        for member in members:
            fold.put_attempt(replace(member, state=AttemptState.SUCCEEDED))
            _journal(fold, "TaskSucceeded", member)
            _put_task(fold, member, TaskState.SUCCEEDED)
        jobs.settle(fold, job.job_id)
    else:
        _close_round(fold, job, members)


def _close_round(fold: Fold, job: JobRow, members: list[AttemptRow]) -> None:
    """Every member has ended and the gang did not succeed: charge once, then fail or retry."""
    decider = _decider(members)
    closed = [_close(member, member is decider, decider) for member in members]
    for member in closed:
        fold.put_attempt(member)
    stopping = job.stop_at is not None
    final = not stopping and decider is not None and _spent(fold.state, job, decider)
    if stopping or final:
        for member in closed:
            state = TaskState.FAILED if member.state is AttemptState.FAILED else TaskState.STOPPED
            _put_task(fold, member, state)
        if final and decider is not None and decider.cause is not None:
            jobs.fail(fold, job.job_id, cause=decider.cause, message=decider.error_message, decider=decider)
        jobs.settle(fold, job.job_id)
        return
    not_before = fold.now + _backoff(job, members[0].number, charged=decider is not None)
    for member in closed:
        task = fold.state.tasks[job.job_id][member.task]
        fold.put_task(replace(task, state=TaskState.PENDING, not_before=not_before))
    fold.journal(
        "GangRetried" if job.gang and job.num_tasks > 1 else "TaskRetried",
        job_id=job.job_id,
        task=members[0].task if len(members) == 1 else -1,
        attempt=members[0].number + 1,
        message=_retry_message(fold.state, job, decider, not_before - fold.now),
    )


def _decider(members: list[AttemptRow]) -> AttemptRow | None:
    """The member whose end is charged: an infrastructure fault before a failure, then the earliest."""
    charged = [m for m in members if m.charge is not Charge.NONE and m.state is AttemptState.FAILED]
    return min(
        charged,
        key=lambda m: (m.charge is not Charge.PREEMPTION, m.finished_at if m.finished_at is not None else 0.0, m.task),
        default=None,
    )


def _close(member: AttemptRow, is_decider: bool, decider: AttemptRow | None) -> AttemptRow:
    charge = member.charge if is_decider else Charge.NONE
    if member.state is not AttemptState.EXITED:
        return member if member.charge is charge else replace(member, charge=charge)
    which = "another task of its gang" if decider is None else f"task {decider.task} of its gang"
    return replace(
        member,
        state=AttemptState.STOPPED,
        charge=Charge.NONE,
        cause=Cause.TERMINATED,
        error_message=f"{which} did not succeed",
    )


def charges(state: State, job: JobRow, task: int, charge: Charge) -> int:
    """How often the gang of this task has been charged so: derived from its attempts."""
    return sum(
        1
        for index in state.gang_tasks(job, task)
        for attempt in state.history.get((job.job_id, index), ())
        if attempt.charge is charge and not has_process(attempt)
    )


def _spent(state: State, job: JobRow, decider: AttemptRow) -> bool:
    """Whether this end is final."""
    if decider.charge is Charge.PREEMPTION:
        return charges(state, job, decider.task, Charge.PREEMPTION) > job.retry.max_preemptions
    if decider.cause in (Cause.TIME_LIMIT, Cause.BUILD_FAILED):
        return True
    return charges(state, job, decider.task, Charge.FAILURE) > job.retry.max_failures


def _backoff(job: JobRow, number: int, *, charged: bool) -> float:
    if not charged:
        return 0.0
    # Doubling past 2**30 says nothing more and would overflow a float for long retry budgets.
    return float(min(job.retry.max_backoff_s, job.retry.backoff_s * 2.0 ** min(number - 1, 30)))


def _retry_message(state: State, job: JobRow, decider: AttemptRow | None, delay: float) -> str:
    if decider is None:
        return "not started yet, tried again uncharged"
    used = charges(state, job, decider.task, decider.charge)
    budget = job.retry.max_failures if decider.charge is Charge.FAILURE else job.retry.max_preemptions
    return f"{decider.charge} {used} of {budget} allowed ({decider.cause}), tried again in {delay:.3g} s"


def _round(state: State, job: JobRow, task: int) -> list[AttemptRow]:
    """The latest attempts of a gang: all of one number."""
    found = (state.current(job.job_id, index) for index in state.gang_tasks(job, task))
    return [attempt for attempt in found if attempt is not None]


def _put_task(fold: Fold, member: AttemptRow, state: TaskState) -> None:
    task: TaskRow = fold.state.tasks[member.job_id][member.task]
    fold.put_task(replace(task, state=state))


def _journal(fold: Fold, kind: str, attempt: AttemptRow, message: str = "") -> None:
    fold.journal(
        kind,
        f"worker:{attempt.worker_id}",
        job_id=attempt.job_id,
        task=attempt.task,
        attempt=attempt.number,
        worker_id=attempt.worker_id,
        message=message,
    )
