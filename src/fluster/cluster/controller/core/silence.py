"""Which silence says that machines are dead: not that of most of them at once, whose fault is nearer by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from fluster.cluster.controller.core.fold import Fold
from fluster.cluster.controller.core.rows import COMING, AllocationRow, WorkerRow
from fluster.cluster.controller.core.state import State
from fluster.cluster.ids import WorkerId
from fluster.cluster.states import WorkerStatus

FEW = 2
"""Allocations of one backend that may well die at the same time."""
MOST = 0.5
"""A larger share of a backend's allocations that is silent at once, and more than `FEW`, is taken for a fault of the
network or of the controller's own machine: giving all of them back would end work that goes on meanwhile."""
_SHARE_OF_LIMIT = 0.5
"""Silent for so much of what a release takes is silent enough to be counted: who is heard is heard every 20 s."""


def listen(fold: Fold) -> None:
    """Notes of which backends most allocations are silent at once; to be called whenever time is looked at."""
    state, now = fold.state, fold.now
    limit = state.settings.silent_release_s
    state.hushed = {backend: at for backend, at in state.hushed.items() if now - at <= limit}
    silent = _silent(state, now, _SHARE_OF_LIMIT * limit)
    if len(silent) <= FEW:
        return
    by_backend: defaultdict[str, list[bool]] = defaultdict(list)
    for row, workers in _heard_once(state):
        by_backend[row.backend].append(all(worker.worker_id in silent for worker in workers))
    for backend, each in by_backend.items():
        if sum(each) > max(FEW, MOST * len(each)):
            if backend not in state.hushed:
                text = f"{sum(each)} of {len(each)} of {backend} are silent at once: none is given back for that"
                fold.journal("AllocationsSilent", message=text)
            state.hushed[backend] = now


def proven(state: State, now: float) -> Iterator[AllocationRow]:
    """Allocations that are silent for so long that they are given back, which proves their death.

    One whose lease has run out has nothing to lose any more, however many are silent with it.
    """
    limit = state.settings.silent_release_s
    silent = _silent(state, now, limit)
    if not silent:
        return
    for row, workers in _heard_once(state):
        of_these = [worker for worker in workers if worker.worker_id in silent]
        spared = now - state.hushed.get(row.backend, -limit) <= limit
        lost = any(worker.status is WorkerStatus.LOST for worker in of_these)
        if lost or (len(of_these) == len(workers) and not spared):
            yield row


def _silent(state: State, now: float, limit: float) -> set[WorkerId]:
    if now - min(state.last_seen.values(), default=now) <= limit:
        return set()  # as in almost every turn
    return {worker_id for worker_id, at in state.last_seen.items() if now - at > limit}


def _heard_once(state: State) -> Iterator[tuple[AllocationRow, list[WorkerRow]]]:
    """Allocations whose workers have been heard once, with these."""
    workers_of = state.machines().workers
    for row in state.allocations.values():
        # A worker may join, and fall silent, before its backend calls the machine ready.
        if row.status in COMING and (workers := workers_of.get(row.allocation_id)):
            yield row, workers
