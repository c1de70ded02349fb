"""`reconcile`: what the world still lacks. Each action is safe to repeat."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from fluster.cluster.controller.core.events import AllocationUnwanted, AllocationWanted
from fluster.cluster.controller.core.rows import AllocationStatus, Resources, WorkerRow
from fluster.cluster.controller.core.state import State
from fluster.cluster.ids import AllocationId
from fluster.cluster.states import WorkerStatus


@dataclass(frozen=True, slots=True)
class Allocate:
    """Ask the backend for machines; the same id gives the same machines."""

    allocation_id: AllocationId
    resources: Resources


@dataclass(frozen=True, slots=True)
class Release:
    """Give machines back."""

    allocation_id: AllocationId


Action = Allocate | Release

_HELD = (AllocationStatus.REQUESTED, AllocationStatus.READY)


def intents(state: State, now: float) -> list[AllocationWanted | AllocationUnwanted]:
    """What is to be decided about machines: committed as events before anything is done about it."""
    found: list[AllocationWanted | AllocationUnwanted] = list(_silent(state, now))
    unwanted = {intent.allocation_id for intent in found}
    held = [
        row.resources for row in state.allocations.values() if row.status in _HELD and row.allocation_id not in unwanted
    ]
    for resources in _lacking(state, held):
        taken = {*state.allocations, *(intent.allocation_id for intent in found)}
        name = _free_name(state.settings.backend, taken)
        found.append(AllocationWanted(name, state.settings.backend, resources))
    return found


def _silent(state: State, now: float) -> list[AllocationWanted | AllocationUnwanted]:
    limit = state.settings.silent_release_s
    found: list[AllocationWanted | AllocationUnwanted] = []
    if now - min(state.last_seen.values(), default=now) <= limit:
        return found  # as in almost every turn
    by_allocation: defaultdict[AllocationId, list[WorkerRow]] = defaultdict(list)
    for worker in state.workers.values():
        by_allocation[worker.allocation_id].append(worker)
    for row in state.allocations.values():
        if row.status is not AllocationStatus.READY:
            continue
        workers = by_allocation[row.allocation_id]
        silent = [w for w in workers if now - state.last_seen.get(w.worker_id, now) > limit]
        if workers and (len(silent) == len(workers) or any(w.status is WorkerStatus.LOST for w in silent)):
            found.append(AllocationUnwanted(row.allocation_id, f"silent for more than {limit:g} s"))
    return found


def _lacking(state: State, held: list[Resources]) -> list[Resources]:
    lacking = []
    for resources in state.settings.pool:
        if resources in held:
            held.remove(resources)
        else:
            lacking.append(resources)
    return lacking


def _free_name(backend: str, taken: set[AllocationId]) -> AllocationId:
    number = 0
    while (name := AllocationId(f"{backend}-{number}")) in taken:
        number += 1
    return name


def reconcile(state: State) -> list[Action]:
    """Actions that bring the world to what the rows say."""
    actions: list[Action] = []
    for row in state.allocations.values():
        if row.status is AllocationStatus.REQUESTED:
            actions.append(Allocate(row.allocation_id, row.resources))
        elif row.status is AllocationStatus.RELEASING:
            actions.append(Release(row.allocation_id))
    return actions
