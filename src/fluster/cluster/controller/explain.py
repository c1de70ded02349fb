"""Why a job is where it is, in words a person can act on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fluster.cluster.controller.core.rows import AttemptRow, JobRow, TaskRow
from fluster.cluster.controller.core.state import State, has_process
from fluster.cluster.controller.core.waits import Waiting
from fluster.cluster.controller.core.workers import lease_end
from fluster.cluster.states import Cause, JobStatus, TaskState

# Workers ask at least so often; a little later is no news.
_LONGEST_POLL_S = 20.0
_LATE_S = 5.0

_ADVICE = {
    Cause.EXCEPTION: "the traceback is in its logs: `fluster logs {job}`",
    Cause.EXIT: "its output is in its logs: `fluster logs {job}`",
    Cause.SIGNAL: "the process was killed by a signal from inside or outside; its logs: `fluster logs {job}`",
    Cause.OUT_OF_MEMORY: "ask for more memory, or use less",
    Cause.TIME_LIMIT: "raise timeout_s, or do less in one attempt",
    Cause.WORKER_LOST: "raise retry.max_preemptions, or look at the workers: `fluster workers`",
    Cause.PREEMPTED: "raise retry.max_preemptions",
    Cause.UNSCHEDULABLE: "ask for less, add workers, or raise scheduling_timeout_s",
    Cause.BUILD_FAILED: "mend the environment and launch again",
    Cause.START_FAILED: "check the command and its path on the worker; `--workspace .` sends your files with it",
    Cause.DISK_FULL: "write less, ask for more disk, or make room on the worker",
}


def reasons(
    job: JobRow,
    status: JobStatus,
    tasks: Sequence[TaskRow],
    attempts: Sequence[Sequence[AttemptRow]],
    waiting: Waiting | None,
    workers: Sequence[str] = (),
) -> list[str]:
    """Most important first; `workers`: what there is to say of its workers: what they build, and who is silent."""
    if status.finished():
        return _ended(job, attempts)
    found = []
    if job.stop_at is not None:
        found.append(f"being stopped: {job.stop_reason}")
    elif waiting is not None:
        found.append(f"waiting: {waiting.reason}")
    if job.num_tasks > 1 or not found:
        found.append(_tasks(tasks))
    return [*found, *workers, *_setbacks(attempts)]


def silent_workers(state: State, attempts: Sequence[Sequence[AttemptRow]], now: float) -> list[str]:
    """Workers with something of a job that miss their requests, and until when they are waited for."""
    patience = min(_LONGEST_POLL_S, state.settings.worker_lease_s / 3) + _LATE_S
    found = []
    for worker_id in sorted({a.worker_id for each in attempts for a in each if has_process(a)}):
        seen = state.last_seen.get(worker_id, now)
        if now - seen > patience:
            left = max(0.0, lease_end(state.settings, seen) - now)
            found.append(
                f"worker {worker_id} has not been heard from for {now - seen:.0f} s; it is given up in {left:.0f} s"
            )
    return found


def _ended(job: JobRow, attempts: Sequence[Sequence[AttemptRow]]) -> list[str]:
    if job.outcome is JobStatus.SUCCEEDED:
        return ["all tasks succeeded"]
    found = [_which_task(job, attempts) + (job.error_message or str(job.cause))]
    advice = _ADVICE.get(job.cause) if job.cause is not None else None
    return [*found, advice.format(job=job.job_id)] if advice else found


def _which_task(job: JobRow, attempts: Sequence[Sequence[AttemptRow]]) -> str:
    """The task of several whose end was the job's, where there is one."""
    if job.num_tasks == 1 or job.outcome is not JobStatus.FAILED:
        return ""
    ends = (a for each in attempts for a in each[-1:] if a.cause is job.cause and a.error_message == job.error_message)
    deciding = next(ends, None)
    return f"task {deciding.task}: " if deciding is not None else ""


def _tasks(tasks: Sequence[TaskRow]) -> str:
    counts = Counter(task.state for task in tasks)
    return "tasks: " + ", ".join(f"{counts[state]} {state}" for state in TaskState if counts[state])


def _setbacks(attempts: Sequence[Sequence[AttemptRow]]) -> list[str]:
    """What earlier attempts ended of, latest first; the rest is in the journal."""
    ended = [a for each in attempts for a in each if a.cause is not None and a.cause is not Cause.TERMINATED]
    ended.sort(key=lambda a: -(a.finished_at or 0.0))
    return [f"attempt {a.number} of task {a.task} ended: {a.error_message or a.cause}" for a in ended[:3]]
