"""Allocations: wanted, observed, refused, idle, given back."""

from __future__ import annotations

from dataclasses import replace

from fluster.cluster.controller.core import workers
from fluster.cluster.controller.core.events import (
    AllocationObserved,
    AllocationRefused,
    AllocationUnwanted,
    AllocationWanted,
)
from fluster.cluster.controller.core.fold import Fold
from fluster.cluster.controller.core.rows import AllocationRow, AllocationStatus
from fluster.cluster.controller.core.state import Refusal
from fluster.cluster.states import WorkerStatus


def want(fold: Fold, event: AllocationWanted) -> None:
    """Notes that machines are about to be asked for."""
    if event.allocation_id in fold.state.allocations:
        return
    fold.put_allocation(AllocationRow(event.allocation_id, event.backend, event.resources, fold.now))
    fold.journal("AllocationRequested", message=event.allocation_id)


def unwant(fold: Fold, event: AllocationUnwanted) -> None:
    """Notes that machines are about to be given back; their workers get no more work."""
    row = fold.state.allocations.get(event.allocation_id)
    if row is None or row.status is AllocationStatus.RELEASING:
        return
    if event.came_to_nothing:
        _note_refusal(fold, row.backend, event.reason)
    _give_back(fold, row, event.reason)


def _give_back(fold: Fold, row: AllocationRow, reason: str) -> None:
    fold.put_allocation(replace(row, status=AllocationStatus.RELEASING))
    fold.journal("AllocationReleased", message=f"{row.allocation_id}: {reason}")
    for worker in fold.state.workers_of(row.allocation_id):
        fold.changes.touched_workers.add(worker.worker_id)


def refuse(fold: Fold, event: AllocationRefused) -> None:
    """There are no such machines now. An offer's are looked for elsewhere, the pool's are asked for again."""
    row = fold.state.allocations.get(event.allocation_id)
    if row is None or row.status is not AllocationStatus.REQUESTED:
        return
    if fold.state.offer_of(row) is None:
        observe(fold, AllocationObserved(event.allocation_id, AllocationStatus.REQUESTED, error=event.error))
        return
    _note_refusal(fold, row.backend, event.error)
    # Given back although none was granted: whether an earlier try had come through is not known.
    _give_back(fold, replace(row, error=event.error), f"{row.backend} gave none: {event.error}")


def _note_refusal(fold: Fold, backend: str, error: str) -> None:
    settings, before = fold.state.settings, fold.state.refusals.get(backend)
    # Several asked for at one moment and refused together are one refusal.
    times = 1 if before is None else before.times + (fold.now >= before.until)
    pause = min(settings.refusal_backoff_s * 2 ** min(times - 1, 30), settings.max_refusal_backoff_s)
    fold.state.refusals[backend] = Refusal(error, times, fold.now + pause)


def observe(fold: Fold, event: AllocationObserved) -> None:
    """Folds in what the backend says. A machine that is gone takes its workers' attempts with it: that proves it."""
    row = fold.state.allocations.get(event.allocation_id)
    if row is None:
        return
    status = event.status
    if row.status is AllocationStatus.RELEASING and status is not AllocationStatus.GONE:
        status = AllocationStatus.RELEASING
    fresh = replace(row, status=status, hosts=event.hosts or row.hosts, error=event.error)
    if fresh == row:
        return
    fold.put_allocation(fresh)
    if status is not row.status or event.error != row.error:
        message = f"{event.allocation_id}: {event.error}" if event.error else event.allocation_id
        fold.journal(f"Allocation{status.capitalize()}", message=message)
    if status is AllocationStatus.GONE:
        for worker in fold.state.workers_of(event.allocation_id):
            workers.lose(fold, worker, WorkerStatus.GONE, f"its machine {event.allocation_id} is gone")


def note_idle(fold: Fold) -> None:
    """Notes since when nothing runs on the machines of offers; whatever is placed there meanwhile ends that."""
    state = fold.state
    machines = state.machines()
    for allocation_id in machines.offers:
        busy = any(state.held.get(worker.worker_id) for worker in machines.workers.get(allocation_id, ()))
        if state.allocations[allocation_id].status is AllocationStatus.READY and not busy:
            state.idle_since.setdefault(allocation_id, fold.now)
        else:
            state.idle_since.pop(allocation_id, None)
