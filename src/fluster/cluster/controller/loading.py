"""Makes a state of what the store holds."""

from __future__ import annotations

from fluster.cluster.controller.core.index import (
    index_allocation,
    index_attempt,
    index_endpoint,
    index_job,
    index_parent,
    index_task,
    index_user,
    index_worker,
)
from fluster.cluster.controller.core.state import Settings, State, has_process
from fluster.cluster.controller.store import Store
from fluster.cluster.states import WorkerStatus


def load_state(store: Store, settings: Settings, now: float, old: State | None = None) -> State:
    """The state of everything unfinished.

    Args:
        store: Where it is kept.
        settings: To decide by.
        now: Every known worker and leased endpoint gets a full lease from here.
        old: A state of the same controller: what is known of times, leases among them, goes on.
    """
    loaded = store.load()
    state = State(settings=settings)
    for token in loaded.tokens:
        state.tokens[token.token_id] = token
    for user in loaded.users:
        index_user(state, user)
    for job in loaded.jobs:
        index_job(state, job)
    _load_ancestors(state, store)
    for task in sorted(loaded.tasks, key=lambda task: task.index):
        index_task(state, task)
    for attempt in sorted(loaded.attempts, key=lambda attempt: attempt.number):
        index_attempt(state, attempt)
    for worker in loaded.workers:
        index_worker(state, worker)
        if worker.status is not WorkerStatus.GONE:
            state.last_seen[worker.worker_id] = now
    for allocation in loaded.allocations:
        index_allocation(state, allocation, now)
    for endpoint in loaded.endpoints:
        index_endpoint(state, endpoint, now)
    if old is not None:
        state.last_seen.update({k: v for k, v in old.last_seen.items() if k in state.workers})
        state.last_words.update({k: v for k, v in old.last_words.items() if k in state.workers})
        state.hushed = dict(old.hushed)
        state.endpoint_seen.update({k: v for k, v in old.endpoint_seen.items() if k in state.endpoint_seen})
        told = (k for k, v in state.attempts.items() if v.stop_cause is not None and has_process(v))
        state.stopping_since.update({k: old.stopping_since[k] for k in told if k in old.stopping_since})
        state.allocated_since.update({k: v for k, v in old.allocated_since.items() if k in state.allocations})
        state.idle_since.update({k: v for k, v in old.idle_since.items() if k in state.allocations})
        state.refusals.update(old.refusals)
        state.late_reports = old.late_reports
    return state


def _load_ancestors(state: State, store: Store) -> None:
    """Finished jobs that unfinished ones descend from: who terminates what is above them reaches those below."""
    above = {parent for parent in state.parents.values() if parent not in state.jobs}
    while above:
        job = store.job(above.pop())
        if job is not None and job.parent is not None:
            index_parent(state, job.job_id, job.parent)
            if job.parent not in state.jobs and job.parent not in state.parents:
                above.add(job.parent)
