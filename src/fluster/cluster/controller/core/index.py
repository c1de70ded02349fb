"""Puts rows into the state, with the indexes derived from them; who folds and who loads does it here alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import TypeVar

from fluster.cluster.controller.core.rows import (
    ENDED_STATES,
    AllocationRow,
    AllocationStatus,
    AttemptRow,
    EndpointRow,
    JobRow,
    TaskRow,
    UserRow,
    WorkerRow,
)
from fluster.cluster.controller.core.state import State
from fluster.cluster.ids import JobId
from fluster.cluster.states import TaskState, WorkerStatus

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V", bound=Hashable)
_T = TypeVar("_T")


def index_job(state: State, job: JobRow) -> None:
    """Puts an unfinished job into the state and below its parent."""
    state.revision += 1
    state.jobs[job.job_id] = job
    state.jobs_by_user[job.user][job.job_id] = None
    if job.parent is not None:
        index_parent(state, job.job_id, job.parent)


def index_finished(state: State, job: JobRow) -> None:
    """Puts a finished job into the state, where it stays until `drop_finished`."""
    state.jobs[job.job_id] = job
    leave_tree(state, job.job_id)
    discard(state.jobs_by_user, job.user, job.job_id)


def index_parent(state: State, job_id: JobId, parent: JobId) -> None:
    """Puts a job below its parent: an unfinished one, or a finished one that unfinished ones descend from."""
    state.parents[job_id] = parent
    state.children[parent].add(job_id)


def leave_tree(state: State, job_id: JobId) -> None:
    """Takes a finished job from below its parent once nothing unfinished descends from it; then that one likewise."""
    while job_id not in state.children and not _unfinished(state, job_id):
        parent = state.parents.pop(job_id, None)
        if parent is None:
            return
        state.children[parent].discard(job_id)
        if not state.children[parent]:
            del state.children[parent]
        job_id = parent


def _unfinished(state: State, job_id: JobId) -> bool:
    job = state.jobs.get(job_id)
    return job is not None and job.outcome is None


def index_task(state: State, task: TaskRow) -> None:
    """Puts a task into the state; new ones come in index order."""
    tasks = state.tasks.setdefault(task.job_id, [])
    if task.index < len(tasks):
        tasks[task.index] = task
    else:
        tasks.append(task)
    waiting = state.pending.get(task.job_id)
    if task.state is TaskState.PENDING:
        state.revision += 1
        state.pending[task.job_id][task.index] = None
    elif waiting is not None and task.index in waiting:
        state.revision += 1
        discard(state.pending, task.job_id, task.index)


def index_worker(state: State, worker: WorkerRow) -> None:
    """Puts a worker into the state; one that is gone only counts as a use of its token. Tokens come first."""
    state.revision += 1
    state.rooms.pop(worker.worker_id, None)
    state.ready = state.looked = None
    if worker.joined_by in state.tokens:
        state.joined[worker.joined_by].add(worker.worker_id)
    if worker.status is WorkerStatus.GONE:
        state.workers.pop(worker.worker_id, None)
        state.last_seen.pop(worker.worker_id, None)
        state.last_words.pop(worker.worker_id, None)
    else:
        state.workers[worker.worker_id] = worker


def index_allocation(state: State, allocation: AllocationRow, now: float) -> None:
    """Puts an allocation into the state; one that is gone is forgotten."""
    allocation_id = allocation.allocation_id
    state.revision += 1
    state.ready = state.looked = None
    old = state.allocations.get(allocation_id)
    if allocation.status is AllocationStatus.GONE:
        for index in (state.allocations, state.allocated_since, state.idle_since):
            index.pop(allocation_id, None)
    else:
        state.allocations[allocation_id] = allocation
        if old is None or old.status is not allocation.status:
            state.allocated_since[allocation_id] = now


def index_user(state: State, user: UserRow) -> None:
    """Puts a user into the state."""
    state.revision += 1
    state.users[user.name] = user


def index_attempt(state: State, attempt: AttemptRow) -> None:
    """Puts an attempt into the state's indexes."""
    history = state.history.setdefault((attempt.job_id, attempt.task), [])
    position = attempt.number - (history[0].number if history else attempt.number)
    if position < len(history):
        history[position] = attempt
    else:
        history.append(attempt)
    state.attempts[attempt.uid] = attempt
    reserves, reserved = attempt.state not in ENDED_STATES, attempt.uid in state.held.get(attempt.worker_id, ())
    if reserves:
        state.held[attempt.worker_id][attempt.uid] = attempt
    elif reserved:
        discard(state.held, attempt.worker_id, attempt.uid)
    if reserves is not reserved:
        state.revision += 1
        state.rooms.pop(attempt.worker_id, None)


def index_endpoint(state: State, endpoint: EndpointRow, now: float) -> None:
    """Puts an endpoint into the state's indexes; a leased one starts with a full lease."""
    state.endpoints[endpoint.endpoint_id] = endpoint
    state.endpoints_by_name[endpoint.namespace, endpoint.name][endpoint.endpoint_id] = None
    if endpoint.attempt_uid is None:
        state.endpoint_seen[endpoint.endpoint_id] = now
    else:
        state.endpoints_by_attempt[endpoint.attempt_uid][endpoint.endpoint_id] = None


def drop_finished(state: State, job_ids: Iterable[JobId]) -> None:
    """Forgets finished jobs, once their end is committed: from then on they are read from the store."""
    for job_id in job_ids:
        job = state.jobs.get(job_id)
        if job is None or job.outcome is None:
            continue
        del state.jobs[job_id]
        state.waiting.forget(job_id)
        for task in state.tasks.pop(job_id, ()):
            for attempt in state.history.pop((job_id, task.index), ()):
                state.attempts.pop(attempt.uid, None)


def discard(index: defaultdict[_K, dict[_V, _T]], key: _K, value: _V) -> None:
    """Takes a value out of an index, and its key with the last one."""
    entries = index.get(key)
    if entries is not None:
        entries.pop(value, None)
        if not entries:
            del index[key]
