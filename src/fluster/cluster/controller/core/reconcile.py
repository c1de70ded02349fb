"""`reconcile`: what the world still lacks. Each action is safe to repeat."""

from __future__ import annotations

from dataclasses import dataclass

from fluster.cluster.controller.core.demand import demand
from fluster.cluster.controller.core.events import AllocationUnwanted, AllocationWanted
from fluster.cluster.controller.core.machines import short_of
from fluster.cluster.controller.core.rows import COMING, AllocationStatus, Resources
from fluster.cluster.controller.core.silence import proven
from fluster.cluster.controller.core.state import State
from fluster.cluster.ids import AllocationId


@dataclass(frozen=True, slots=True)
class Allocate:
    """Ask the backend for machines; the same id gives the same machines."""

    allocation_id: AllocationId
    backend: str
    resources: Resources


@dataclass(frozen=True, slots=True)
class Release:
    """Give machines back."""

    allocation_id: AllocationId
    backend: str


Action = Allocate | Release

Intent = AllocationWanted | AllocationUnwanted


def intents(state: State, now: float) -> list[Intent]:
    """What is to be decided about machines: committed as events before anything is done about it."""
    given_back = [*_silent(state, now), *_came_to_nothing(state, now)]
    lacking = demand(state, now)
    given_back += _idle(state, now, lacking.wanted)
    unwanted = {intent.allocation_id for intent in given_back}
    found: list[Intent] = [*given_back]
    if lacks := _lacking(state, now, unwanted):
        taken = set(state.allocations)
        for resources in lacks:
            name = _free_name(state.settings.backend, taken)
            found.append(AllocationWanted(name, state.settings.backend, resources))
            taken.add(name)
    for number, offer in enumerate(lacking.asked):
        found.append(AllocationWanted(_new_name(offer.backend, now, number), offer.backend, offer.resources))
    return found


def _silent(state: State, now: float) -> list[AllocationUnwanted]:
    why = f"silent for more than {state.settings.silent_release_s:g} s"
    return [AllocationUnwanted(row.allocation_id, why) for row in proven(state, now)]


def _came_to_nothing(state: State, now: float) -> list[AllocationUnwanted]:
    """Machines that never started, and those whose workers never joined: others are tried in their place."""
    found: list[AllocationUnwanted] = []
    settings = state.settings
    for allocation_id in state.machines().starting:
        row, waited_s = state.allocations[allocation_id], now - state.allocated_since[allocation_id]
        if row.status is AllocationStatus.REQUESTED and waited_s > settings.start_timeout_s:
            why = f"it did not start within {settings.start_timeout_s:g} s" + (f": {row.error}" if row.error else "")
        elif row.status is AllocationStatus.READY and waited_s > settings.join_timeout_s:
            why = f"it started, but its worker did not join within {settings.join_timeout_s:g} s"
        else:
            continue
        found.append(AllocationUnwanted(allocation_id, why, came_to_nothing=True))
    return found


def _idle(state: State, now: float, wanted: set[AllocationId]) -> list[AllocationUnwanted]:
    """Machines of offers that nobody needs any more, beyond what each offer keeps."""
    settings = state.settings
    found: list[AllocationUnwanted] = []
    of_offers = state.machines().offers
    idle = {each for each in of_offers if _idle_s(state, each, now) >= settings.idle_release_s}
    for offer in settings.offers if idle else ():
        there = [row.allocation_id for row in state.allocations.values() if offer.made(row) and row.status in COMING]
        spare = len(there) - offer.at_least
        for allocation_id in [each for each in there if each in idle and each not in wanted][: max(0, spare)]:
            found.append(AllocationUnwanted(allocation_id, f"idle for {settings.idle_release_s:g} s"))
    return found


def _idle_s(state: State, allocation_id: AllocationId, now: float) -> float:
    return now - state.idle_since.get(allocation_id, now)


def _lacking(state: State, now: float, unwanted: set[AllocationId]) -> list[Resources]:
    """What the pool is short of."""
    refusal = state.refusals.get(state.settings.backend)
    if refusal is not None and now < refusal.until:
        return []
    machines = state.machines()
    if unwanted.isdisjoint(machines.pool):
        return machines.lacking  # as in almost every turn
    kept = (resources for allocation_id, resources in machines.pool.items() if allocation_id not in unwanted)
    return short_of(state.settings.pool, kept)


def _free_name(backend: str, taken: set[AllocationId]) -> AllocationId:
    number = 0
    while (name := AllocationId(f"{backend}-{number}")) in taken:
        number += 1
    return name


def _new_name(backend: str, now: float, number: int) -> AllocationId:
    """One that no machine ever had: a cloud may still be busy with the last one of the same name."""
    return AllocationId(f"{backend}-{round(now * 1000):x}-{number}")


def reconcile(state: State) -> list[Action]:
    """Actions that bring the world to what the rows say."""
    actions: list[Action] = []
    for row in state.allocations.values():
        if row.status is AllocationStatus.REQUESTED:
            actions.append(Allocate(row.allocation_id, row.backend, row.resources))
        elif row.status is AllocationStatus.RELEASING:
            actions.append(Release(row.allocation_id, row.backend))
    return actions
