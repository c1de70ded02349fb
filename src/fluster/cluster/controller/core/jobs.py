"""Jobs: submitted, told to stop, settled when their last task is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from fluster.cluster.controller.core.events import JobsSubmitted, NewJob, TerminationRequested
from fluster.cluster.controller.core.fold import Fold
from fluster.cluster.controller.core.rows import AttemptRow, AttemptState, JobRow, SpecRow, TaskRow
from fluster.cluster.controller.core.state import State, has_process
from fluster.cluster.ids import JobId
from fluster.cluster.states import Cause, JobStatus, TaskState
from fluster.errors import FailedPrecondition, JobNotFound, ResourceExhausted

_ACTIVE = (TaskState.BUILDING, TaskState.RUNNING)


def job_status(job: JobRow, tasks: Iterable[TaskState]) -> JobStatus:
    """Status of a job from the states of its tasks."""
    if job.outcome is not None:
        return job.outcome
    return JobStatus.RUNNING if any(state in _ACTIVE for state in tasks) else JobStatus.PENDING


def submit(fold: Fold, event: JobsSubmitted) -> None:
    """Takes jobs in: all of them or none."""
    state = fold.state
    if len(state.jobs) + len(event.jobs) > state.settings.max_unfinished_jobs:
        raise ResourceExhausted(
            f"{len(state.jobs)} jobs are unfinished, the limit is {state.settings.max_unfinished_jobs}; "
            "wait for some to end"
        )
    _check_quotas(state, event.jobs)
    for new in event.jobs:
        _check_parent(state, new.row)
    for new in event.jobs:
        _take_in(fold, new)
    fold.put_request(event.request)


def _check_quotas(state: State, jobs: Iterable[NewJob]) -> None:
    for user, count in Counter(new.row.user for new in jobs).items():
        limit, unfinished = state.quota(user).jobs, len(state.jobs_by_user.get(user, ()))
        if limit is not None and unfinished + count > limit:
            raise ResourceExhausted(
                f"user {user} has {unfinished} unfinished jobs and launches {count}, the quota is {limit}; "
                "wait for some to end, or stop some"
            )


def _check_parent(state: State, job: JobRow) -> None:
    if job.parent is None:
        return
    parent = state.jobs.get(job.parent)
    if parent is None or parent.outcome is not None:
        raise FailedPrecondition(f"the parent job {job.parent!r} has ended; it can launch no more jobs")
    if parent.stop_at is not None:
        raise FailedPrecondition(f"the parent job {job.parent!r} is being stopped; it can launch no more jobs")
    if job.depth > state.settings.max_depth:
        raise ResourceExhausted(f"jobs nest at most {state.settings.max_depth} deep")


def _take_in(fold: Fold, new: NewJob) -> None:
    job = new.row
    fold.put_job(job)
    fold.note(job.job_id, SpecRow(job.job_id, new.spec))
    for index in range(job.num_tasks):
        fold.put_task(TaskRow(job.job_id, index))
    tasks = "1 task" if job.num_tasks == 1 else f"{job.num_tasks} tasks"
    fold.journal("JobLaunched", job.owner, job_id=job.job_id, message=f"{job.name}: {tasks}")


def terminate(fold: Fold, event: TerminationRequested) -> None:
    """Stops a job with all its descendants. A finished job is left as it is; its descendants are not."""
    state = fold.state
    job = state.jobs.get(event.job_id)
    if job is None and event.job_id not in state.children:
        raise JobNotFound(event.job_id)
    # From below, so that none is told that its parent's end is the reason.
    for job_id in reversed([event.job_id, *state.descendants(event.job_id)]):
        whose = "" if job_id == event.job_id else f"its ancestor {event.job_id} was "
        stop(fold, job_id, f"{whose}terminated by {event.actor}", event.actor)


def stop(fold: Fold, job_id: JobId, reason: str, actor: str) -> None:
    """Tells a job to stop; repeating it changes nothing."""
    job = fold.state.jobs.get(job_id)
    if job is None or job.outcome is not None or job.stop_at is not None:
        return
    fold.put_job(replace(job, stop_at=fold.now, stop_cause=Cause.TERMINATED, stop_reason=reason))
    fold.journal("JobStopRequested", actor, job_id=job_id, message=reason)
    _stop_tasks(fold, job_id, reason)


def fail(fold: Fold, job_id: JobId, *, cause: Cause, message: str, decider: AttemptRow | None) -> None:
    """A budget is spent: what is left of the job is stopped, and it fails when nothing of it is left."""
    job = fold.state.jobs[job_id]
    if job.stop_at is not None or job.outcome is not None:
        return
    which = "the job" if decider is None else f"task {decider.task}"
    reason = f"{which} failed ({cause})"
    job = replace(
        job,
        stop_at=fold.now,
        stop_cause=cause,
        stop_reason=message,
        cause=cause,
        error_message=message,
        decided_by=-1 if decider is None else decider.task,
        exit_code=None if decider is None else decider.exit_code,
    )
    fold.put_job(job)
    if not all(task.state.finished() for task in fold.state.tasks[job_id]):
        fold.journal("JobStopRequested", job_id=job_id, message=reason)
    _stop_tasks(fold, job_id, reason)


def _stop_tasks(fold: Fold, job_id: JobId, reason: str) -> None:
    state = fold.state
    for task in list(state.tasks[job_id]):
        attempt = state.current(job_id, task.index)
        if task.state is TaskState.PENDING:
            fold.put_task(replace(task, state=TaskState.STOPPED))
        elif attempt is not None and has_process(attempt) and attempt.stop_cause is None:
            fold.put_attempt(replace(attempt, stop_cause=Cause.TERMINATED, stop_reason=reason))
    settle(fold, job_id)


def settle(fold: Fold, job_id: JobId) -> None:
    """Ends the job when its last task has ended."""
    state = fold.state
    job = state.jobs[job_id]
    tasks = state.tasks[job_id]
    # From the back: a wide job's last tasks are placed last, so this is settled at the first look while it runs.
    if job.outcome is not None or not all(task.state.finished() for task in reversed(tasks)):
        return
    outcome = _outcome(job, Counter(task.state for task in tasks))
    job = replace(job, outcome=outcome, finished_at=fold.now)
    if outcome is JobStatus.SUCCEEDED:
        job = replace(job, exit_code=0, cause=None, error_message="", decided_by=0)
    elif outcome is JobStatus.STOPPED:
        job = _stopped(state, job)
    fold.put_job(job)
    fold.journal(f"Job{outcome.capitalize()}", job_id=job_id, message=job.error_message)
    if outcome is not JobStatus.SUCCEEDED:
        for child in list(state.descendants(job_id)):
            stop(fold, child, f"its ancestor {job_id} {outcome}", "controller")


def _outcome(job: JobRow, tasks: Counter[TaskState]) -> JobStatus:
    if job.stop_cause not in (None, Cause.TERMINATED):
        return JobStatus.FAILED
    return JobStatus.SUCCEEDED if tasks[TaskState.SUCCEEDED] == job.num_tasks else JobStatus.STOPPED


def _stopped(state: State, job: JobRow) -> JobRow:
    ended = [a for a in (state.current(job.job_id, i) for i in range(job.num_tasks)) if a is not None]
    decider = next((a for a in ended if a.state is AttemptState.STOPPED), None)
    return replace(
        job,
        cause=Cause.TERMINATED,
        error_message=job.stop_reason,
        decided_by=-1 if decider is None else decider.task,
        exit_code=None if decider is None else decider.exit_code,
    )


def expire(fold: Fold) -> None:
    """Fails jobs whose tasks have waited longer than they may."""
    state = fold.state
    for job in list(state.jobs.values()):
        if job.scheduling_timeout_s is None or job.stop_at is not None or job.outcome is not None:
            continue
        for task in state.tasks[job.job_id]:
            since = max(job.submitted_at, task.not_before)
            if task.state is TaskState.PENDING and fold.now - since >= job.scheduling_timeout_s:
                waiting = state.waiting.get(job.job_id)
                reason = "no room was found" if waiting is None else waiting.reason
                fail(
                    fold,
                    job.job_id,
                    cause=Cause.UNSCHEDULABLE,
                    message=f"not placed within {job.scheduling_timeout_s:g} s: {reason}",
                    decider=None,
                )
                break
