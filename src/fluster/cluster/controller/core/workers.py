"""Workers: registered, synced, lost."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from fluster.cluster.controller.core import attempts
from fluster.cluster.controller.core.events import WorkerRegistered, WorkerSynced
from fluster.cluster.controller.core.fold import Fold
from fluster.cluster.controller.core.rows import AllocationStatus, AttemptRow, WorkerRow
from fluster.cluster.controller.core.state import Settings, State, has_process
from fluster.cluster.states import WorkerStatus
from fluster.errors import AlreadyExists, FailedPrecondition, NotPermitted

_Key = TypeVar("_Key", bound=str)


def lease_end(settings: Settings, last_seen: float) -> float:
    """When a silent worker has surely stopped its attempts: lease, stop grace, margin."""
    return last_seen + settings.worker_lease_s + settings.stop_grace_s + settings.lease_margin_s


def register(fold: Fold, event: WorkerRegistered) -> None:
    """A daemon started. What its new incarnation does not hold is settled by its first sync."""
    state = fold.state
    old = state.workers.get(event.worker_id)
    if event.joined_by:
        _check_join(fold, event, known=old is not None)
        _check_not_taken(event, old)
    worker = WorkerRow(
        worker_id=event.worker_id,
        credential_sha256=event.credential_sha256,
        incarnation=event.incarnation,
        address=event.address,
        advertise_host=event.advertise_host,
        host_id=event.host_id,
        allocation_id=event.allocation_id,
        resources=event.resources,
        cgroup=event.cgroup,
        joined_by=event.joined_by if old is None else old.joined_by,
        registered_at=fold.now if old is None else old.registered_at,
    )
    if old is not None and old.incarnation != event.incarnation and event.worker_id in state.last_seen:
        state.last_words.setdefault(event.worker_id, state.last_seen[event.worker_id])
    state.last_seen[event.worker_id] = fold.now
    if (allocation := state.allocations.get(event.allocation_id)) is not None:
        state.revision += state.refusals.pop(allocation.backend, None) is not None
    if worker == old:
        return
    fold.put_worker(worker)
    kind = "WorkerJoined" if old is None else "WorkerRestarted"
    fold.journal(kind, f"worker:{event.worker_id}", worker_id=event.worker_id, message=event.address)


def _check_join(fold: Fold, event: WorkerRegistered, *, known: bool) -> None:
    state = fold.state
    if event.allocation_id:
        row = state.allocations.get(event.allocation_id)
        if row is None or row.status not in (AllocationStatus.REQUESTED, AllocationStatus.READY):
            raise NotPermitted(f"allocation {event.allocation_id!r} is not wanted any more")
        return
    token = state.tokens.get(event.joined_by)
    if token is None or token.user or token.expires_at <= fold.now:
        raise NotPermitted("this join token has expired or was revoked; `fluster worker token` makes a new one")
    if not known and state.token_uses_left(token) <= 0:
        raise NotPermitted("this join token is used up; `fluster worker token` makes a new one")


def _check_not_taken(event: WorkerRegistered, old: WorkerRow | None) -> None:
    """A join token never speaks for a worker that is here already, but for the next one of its own allocation."""
    if old is None or old.credential_sha256 == event.credential_sha256:
        return  # new, or the same request again: its answer was lost
    if not event.allocation_id or event.allocation_id != old.allocation_id:
        raise AlreadyExists(f"a worker {event.worker_id!r} is here already; choose another --worker-id")


def sync(fold: Fold, event: WorkerSynced) -> None:
    """Folds in a worker's whole observed set."""
    state = fold.state
    worker = state.workers.get(event.worker_id)
    if worker is None or worker.incarnation != event.incarnation:
        raise FailedPrecondition(f"worker {event.worker_id!r} is not registered with this incarnation")
    seen = {observed.uid: observed for observed in event.observed}
    for uid in seen:
        known = state.attempts.get(uid)
        if known is not None and known.worker_id != event.worker_id:
            raise NotPermitted(f"attempt {uid!r} is not of worker {event.worker_id!r}")
    last_heard = _last_heard(state, worker)
    state.last_seen[event.worker_id] = fold.now
    state.last_words.pop(event.worker_id, None)
    _refresh(fold, worker, event)
    for attempt in _with_process(state, worker):
        observed = seen.pop(attempt.uid, None)
        current = state.attempts[attempt.uid]  # the end of a sibling may have altered it meanwhile
        if observed is not None:
            attempts.observe(fold, current, observed, event.incarnation)
        elif attempt.incarnation != event.incarnation:
            attempts.lose(fold, current, "its worker restarted without it", last_heard=last_heard)
        elif attempt.observed:
            attempts.lose(fold, current, "its worker no longer knows it", last_heard=last_heard)
    state.late_reports += sum(1 for observed in seen.values() if observed.exit is not None)


def _last_heard(state: State, worker: WorkerRow) -> float | None:
    """When whoever held this worker's attempts was last heard of: that a machine is up again says nothing of them."""
    return state.last_words.get(worker.worker_id, state.last_seen.get(worker.worker_id))


def _refresh(fold: Fold, worker: WorkerRow, event: WorkerSynced) -> None:
    resources = worker.resources if event.resources is None else event.resources
    if worker.status is WorkerStatus.READY and resources == worker.resources:
        return
    fold.put_worker(replace(worker, status=WorkerStatus.READY, resources=resources))
    if worker.status is WorkerStatus.LOST:
        fold.journal("WorkerReturned", f"worker:{worker.worker_id}", worker_id=worker.worker_id)


def expire(fold: Fold) -> None:
    """Gives up workers whose lease has run out."""
    state = fold.state
    if fold.now < lease_end(state.settings, min(state.last_seen.values(), default=fold.now)):
        return  # as in almost every turn
    for worker in list(state.workers.values()):
        last_seen = state.last_seen.get(worker.worker_id, fold.now)
        if worker.status is WorkerStatus.READY and fold.now >= lease_end(state.settings, last_seen):
            lose(fold, worker, WorkerStatus.LOST, f"its worker was silent for {fold.now - last_seen:.0f} s")


def stood_still(state: State, seconds: float, now: float) -> None:
    """Whoever was not heard while the controller itself stood still is not taken to have been silent for that time.

    Args:
        state: Altered in place: what is known of times, all of it from before, moves on; its order stays.
        seconds: For how long.
        now: When it went on.
    """
    _move_on(state.last_seen, seconds, now)
    _move_on(state.last_words, seconds, now)
    _move_on(state.hushed, seconds, now)
    _move_on(state.endpoint_seen, seconds, now)
    _move_on(state.stopping_since, seconds, now)
    _move_on(state.allocated_since, seconds, now)
    _move_on(state.idle_since, seconds, now)


def _move_on(times: dict[_Key, float], seconds: float, now: float) -> None:
    for key, at in times.items():
        times[key] = min(now, at + seconds)


def lose(fold: Fold, worker: WorkerRow, status: WorkerStatus, why: str) -> None:
    """The worker's attempts are over: its lease ran out (LOST), or its machine is known to be gone (GONE)."""
    state = fold.state
    last_heard = _last_heard(state, worker)
    kind = "WorkerLost" if status is WorkerStatus.LOST else "WorkerGone"
    fold.journal(kind, worker_id=worker.worker_id, message=why)
    fold.put_worker(replace(worker, status=status))
    for attempt in _with_process(state, worker):
        attempts.lose(fold, state.attempts[attempt.uid], why, last_heard=last_heard)


def forget(fold: Fold) -> None:
    """Gives up all machines after a shutdown of the whole cluster. It was asked for, so nobody is charged."""
    state, why = fold.state, "the cluster was shut down"
    for worker in list(state.workers.values()):
        for attempt in _with_process(state, worker):
            attempts.give_up(fold, state.attempts[attempt.uid], why)
        lose(fold, worker, WorkerStatus.GONE, why)
    for allocation in list(state.allocations.values()):
        fold.put_allocation(replace(allocation, status=AllocationStatus.GONE))
        fold.journal("AllocationGone", message=f"{allocation.allocation_id}: {why}")


def _with_process(state: State, worker: WorkerRow) -> list[AttemptRow]:
    return [attempt for attempt in state.held.get(worker.worker_id, {}).values() if has_process(attempt)]
