"""Gangs: what the end of one member means for the others, what it costs, and whether the gang is tried again."""

from __future__ import annotations

from dataclasses import replace

from fluster.cluster.controller.core import jobs
from fluster.cluster.controller.core.fold import Fold
from fluster.cluster.controller.core.rows import AttemptRow, AttemptState, Charge, JobRow
from fluster.cluster.controller.core.state import State, has_process
from fluster.cluster.states import Cause, TaskState

INFRASTRUCTURE = frozenset({Cause.WORKER_LOST, Cause.PREEMPTED})
"""Faults of machines, never of the work on them."""
_FINAL = frozenset({Cause.TIME_LIMIT, Cause.BUILD_FAILED})
"""Failures that the next attempt would run into as well."""


def members(state: State, job: JobRow, task: int) -> list[AttemptRow]:
    """The latest attempts of a gang: all of one number, one round."""
    found = (state.current(job.job_id, index) for index in state.gang_tasks(job, task))
    return [attempt for attempt in found if attempt is not None]


def leads(state: State, member: AttemptRow) -> bool:
    """Whether this is rank 0 of its gang: the others wait for the port it meets them at."""
    return member.task == state.gang_tasks(state.jobs[member.job_id], member.task)[0]


def wake(fold: Fold, member: AttemptRow) -> None:
    """What this member's worker said changes what the others may do."""
    for each in members(fold.state, fold.state.jobs[member.job_id], member.task):
        fold.changes.touched_workers.add(each.worker_id)


def settle(fold: Fold, ended: AttemptRow) -> None:
    """Decides what the end of one member means: for the others, and once none is left for the gang."""
    job = fold.state.jobs[ended.job_id]
    alive = _one_alive(fold.state, job, ended.task)
    if alive is None:
        _close(fold, job, members(fold.state, job, ended.task))
    elif ended.state is not AttemptState.EXITED:
        # Members are told to stop together: what holds for one of them holds for all.
        if alive.stop_cause is None:
            _stop(fold, job, ended)
    else:
        fold.journal_attempt("TaskExited", ended, "exited with 0; waits for the rest of its gang")
        if not ended.master_port and leads(fold.state, ended):
            wake(fold, ended)


def _one_alive(state: State, job: JobRow, task: int) -> AttemptRow | None:
    """A member that may have a process. From the back: while a large gang ends in order the first look finds one."""
    for index in reversed(state.gang_tasks(job, task)):
        member = state.current(job.job_id, index)
        if member is not None and has_process(member):
            return member
    return None


def _stop(fold: Fold, job: JobRow, ended: AttemptRow) -> None:
    reason = f"task {ended.task} of its gang ended: {ended.cause}"
    for member in members(fold.state, job, ended.task):
        if has_process(member):
            fold.put_attempt(replace(member, stop_cause=Cause.TERMINATED, stop_reason=reason))


def _close(fold: Fold, job: JobRow, gang: list[AttemptRow]) -> None:
    if all(member.state is AttemptState.EXITED for member in gang):
        _succeed(fold, gang)
    else:
        _close_round(fold, job, gang)


def _succeed(fold: Fold, gang: list[AttemptRow]) -> None:
    for member in gang:
        fold.put_attempt(replace(member, state=AttemptState.SUCCEEDED))
        fold.journal_attempt("TaskSucceeded", member)
        _put_task(fold, member, TaskState.SUCCEEDED)
    jobs.settle(fold, gang[0].job_id)


def _close_round(fold: Fold, job: JobRow, gang: list[AttemptRow]) -> None:
    """Every member has ended and the gang did not succeed: charge once, then fail or retry."""
    decider = _decider(gang)
    closed = [_closed(member, decider) for member in gang]
    for before, member in zip(gang, closed, strict=True):
        fold.put_attempt(member)
        if before.state is AttemptState.EXITED:
            fold.journal_attempt("TaskStopped", member, member.error_message, "controller")
    if job.stop_at is None and (decider is None or not _spent(fold.state, job, decider)):
        _retry(fold, job, closed, decider)
        return
    for member in closed:
        _put_task(fold, member, TaskState.FAILED if member.state is AttemptState.FAILED else TaskState.STOPPED)
    if decider is not None and decider.cause is not None:
        jobs.fail(fold, job.job_id, cause=decider.cause, message=decider.error_message, decider=decider)
    jobs.settle(fold, job.job_id)


def _decider(gang: list[AttemptRow]) -> AttemptRow | None:
    """The member whose end is charged: a fault of the infrastructure before a failure, then the earliest."""
    faults = [member for member in gang if member.state is AttemptState.FAILED]
    if all(member.charge is Charge.NONE for member in faults):
        return None  # nothing had started
    first = min(faults, key=lambda m: (not _infrastructure(m), m.finished_at or 0.0, m.task))
    # The work of its gang had started, or there would be nothing to charge.
    return first if first.charge is not Charge.NONE else replace(first, charge=Charge.PREEMPTION)


def _infrastructure(member: AttemptRow) -> bool:
    return member.charge is Charge.PREEMPTION or member.cause in INFRASTRUCTURE


def _closed(member: AttemptRow, decider: AttemptRow | None) -> AttemptRow:
    """The member as its closed round keeps it: charged if it decided; an exit with 0 was in vain."""
    if decider is not None and member.task == decider.task:
        return decider
    if member.state is not AttemptState.EXITED:
        return member if member.charge is Charge.NONE else replace(member, charge=Charge.NONE)
    which = "another task of its gang" if decider is None else f"task {decider.task} of its gang"
    message = f"{which} did not succeed"
    return replace(member, state=AttemptState.STOPPED, cause=Cause.TERMINATED, error_message=message)


def charges(state: State, job: JobRow, task: int, charge: Charge) -> int:
    """How often the gang of this task has been charged so: derived from its attempts, once its round is closed."""
    return sum(
        attempt.charge is charge
        for index in state.gang_tasks(job, task)
        for attempt in state.history.get((job.job_id, index), ())
    )


def _spent(state: State, job: JobRow, decider: AttemptRow) -> bool:
    """Whether this end is final."""
    used = charges(state, job, decider.task, decider.charge)
    if decider.charge is Charge.PREEMPTION:
        return used > job.retry.max_preemptions
    return decider.cause in _FINAL or used > job.retry.max_failures


def _retry(fold: Fold, job: JobRow, gang: list[AttemptRow], decider: AttemptRow | None) -> None:
    delay = 0.0 if decider is None else _backoff(job, gang[0].number)
    for member in gang:
        task = fold.state.tasks[job.job_id][member.task]
        fold.put_task(replace(task, state=TaskState.PENDING, not_before=fold.now + delay))
    fold.journal(
        "TaskRetried" if len(gang) == 1 else "GangRetried",
        job_id=job.job_id,
        task=gang[0].task if len(gang) == 1 else -1,
        attempt=gang[0].number + 1,
        message=_retry_message(fold.state, job, decider, delay),
    )


def _backoff(job: JobRow, number: int) -> float:
    # Doubling past 2**30 says nothing more and would overflow a float for long retry budgets.
    return float(min(job.retry.max_backoff_s, job.retry.backoff_s * 2.0 ** min(number - 1, 30)))


def _retry_message(state: State, job: JobRow, decider: AttemptRow | None, delay: float) -> str:
    if decider is None:
        return "tried again uncharged"
    used = charges(state, job, decider.task, decider.charge)
    budget = job.retry.max_failures if decider.charge is Charge.FAILURE else job.retry.max_preemptions
    return f"{decider.charge} {used} of {budget} allowed ({decider.cause}), tried again in {delay:.3g} s"


def _put_task(fold: Fold, member: AttemptRow, state: TaskState) -> None:
    fold.put_task(replace(fold.state.tasks[member.job_id][member.task], state=state))
