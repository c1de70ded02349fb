"""Workers: registered, synced, lost."""

from __future__ import annotations

from dataclasses import replace

from fluster.cluster.controller.core import attempts
from fluster.cluster.controller.core.events import WorkerRegistered, WorkerSynced
from fluster.cluster.controller.core.rows import AllocationStatus, AttemptState, WorkerRow
from fluster.cluster.controller.core.state import Fold, Settings, has_process
from fluster.cluster.states import WorkerStatus
from fluster.errors import FailedPrecondition, NotPermitted


def lease_end(settings: Settings, last_seen: float) -> float:
    """When a silent worker has surely stopped its attempts: lease, stop grace, margin."""
    return last_seen + settings.worker_lease_s + settings.stop_grace_s + settings.lease_margin_s


def register(fold: Fold, event: WorkerRegistered) -> None:
    """A daemon started. What its new incarnation does not hold is settled by its first sync."""
    state = fold.state
    old = state.workers.get(event.worker_id)
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
    state.last_seen[event.worker_id] = fold.now
    if worker == old:
        return
    fold.put_worker(worker)
    kind = "WorkerJoined" if old is None else "WorkerRestarted"
    fold.journal(kind, f"worker:{event.worker_id}", worker_id=event.worker_id, message=event.address)


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
    last_heard = state.last_seen.get(event.worker_id)
    state.last_seen[event.worker_id] = fold.now
    _refresh(fold, worker, event)
    for attempt in list(state.held.get(event.worker_id, {}).values()):
        if not has_process(attempt):
            continue
        observed = seen.pop(attempt.uid, None)
        current = state.attempts[attempt.uid]  # the end of a sibling may have altered it meanwhile
        if observed is not None:
            attempts.observe(fold, current, observed, event.incarnation)
        elif attempt.incarnation != event.incarnation:
            attempts.lose(fold, current, "its worker restarted without it", last_heard=last_heard)
        elif attempt.observed:
            attempts.lose(fold, current, "its worker no longer knows it", last_heard=last_heard)
    state.late_reports += sum(1 for observed in seen.values() if observed.exit is not None)


def _refresh(fold: Fold, worker: WorkerRow, event: WorkerSynced) -> None:
    fresh = replace(worker, status=WorkerStatus.READY)
    if event.resources is not None:
        fresh = replace(fresh, resources=event.resources)
    if fresh == worker:
        return
    fold.put_worker(fresh)
    if worker.status is WorkerStatus.LOST:
        fold.journal("WorkerReturned", f"worker:{worker.worker_id}", worker_id=worker.worker_id)


def expire(fold: Fold) -> None:
    """Gives up workers whose lease has run out."""
    state = fold.state
    for worker in list(state.workers.values()):
        last_seen = state.last_seen.get(worker.worker_id, fold.now)
        if worker.status is WorkerStatus.READY and fold.now >= lease_end(state.settings, last_seen):
            lose(fold, worker, WorkerStatus.LOST, f"its worker was silent for {fold.now - last_seen:.0f} s")


def lose(fold: Fold, worker: WorkerRow, status: WorkerStatus, why: str) -> None:
    """The worker's attempts are over: its lease ran out (LOST), or its machine is known to be gone (GONE)."""
    state = fold.state
    last_heard = state.last_seen.get(worker.worker_id)
    kind = "WorkerLost" if status is WorkerStatus.LOST else "WorkerGone"
    fold.journal(kind, worker_id=worker.worker_id, message=why)
    held = list(state.held.get(worker.worker_id, {}))
    fold.put_worker(replace(worker, status=status))
    for uid in held:
        attempt = state.attempts[uid]
        if has_process(attempt):
            attempts.lose(fold, attempt, why, last_heard=last_heard)


def forget(fold: Fold) -> None:
    """Gives up all machines after a shutdown of the whole cluster. It was asked for, so nobody is charged."""
    for worker in list(fold.state.workers.values()):
        _uncharge(fold, worker)
        lose(fold, worker, WorkerStatus.GONE, "the cluster was shut down")
    for allocation in list(fold.state.allocations.values()):
        fold.put_allocation(replace(allocation, status=AllocationStatus.GONE))
        fold.journal("AllocationGone", message=f"{allocation.allocation_id}: the cluster was shut down")


def _uncharge(fold: Fold, worker: WorkerRow) -> None:
    """What has not started is not charged: so its attempts count as such."""
    for attempt in list(fold.state.held.get(worker.worker_id, {}).values()):
        if has_process(attempt):
            fold.put_attempt(replace(attempt, state=AttemptState.ASSIGNED))
