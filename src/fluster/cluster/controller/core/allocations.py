"""Allocations: wanted, observed, given back."""

from __future__ import annotations

from dataclasses import replace

from fluster.cluster.controller.core import workers
from fluster.cluster.controller.core.events import AllocationObserved, AllocationUnwanted, AllocationWanted
from fluster.cluster.controller.core.fold import Fold
from fluster.cluster.controller.core.rows import AllocationRow, AllocationStatus
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
    fold.put_allocation(replace(row, status=AllocationStatus.RELEASING))
    fold.journal("AllocationReleased", message=f"{event.allocation_id}: {event.reason}")
    for worker in fold.state.workers_of(event.allocation_id):
        fold.changes.touched_workers.add(worker.worker_id)


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
