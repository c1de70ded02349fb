"""`Machines`: what allocations and workers say together; derived anew once a row of theirs has changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from fluster.cluster.controller.core.rows import (
    COMING,
    AllocationRow,
    AllocationStatus,
    Offer,
    Resources,
    WorkerRow,
)
from fluster.cluster.ids import AllocationId


@dataclass(frozen=True, slots=True)
class Machines:
    """A look at all machines, for what is asked in every turn. By allocation, in their order.

    Attributes:
        workers: Those of each allocation that has any.
        offers: By which each was asked for; not those of the pool, nor of an offer that is made no more.
        starting: Those that are not there yet, or not with all of their hosts: how many have not joined.
        pool: Those that are held at all times.
        lacking: What the pool is short of, by size.
    """

    workers: dict[AllocationId, list[WorkerRow]]
    offers: dict[AllocationId, Offer]
    starting: dict[AllocationId, int]
    pool: dict[AllocationId, Resources]
    lacking: list[Resources]


def look(
    allocations: Iterable[AllocationRow],
    workers: Iterable[WorkerRow],
    offers: tuple[Offer, ...],
    backend: str,
    pool: tuple[Resources, ...],
) -> Machines:
    """Looks at all of them.

    Args:
        allocations: Those there are.
        workers: Likewise.
        offers: That are made.
        backend: Of the pool.
        pool: To be held at all times.
    """
    by_allocation: defaultdict[AllocationId, list[WorkerRow]] = defaultdict(list)
    for worker in workers:
        by_allocation[worker.allocation_id].append(worker)
    made: dict[AllocationId, Offer] = {}
    starting: dict[AllocationId, int] = {}
    held: dict[AllocationId, Resources] = {}
    for row in allocations:
        if (offer := offer_of(row, offers)) is not None:
            made[row.allocation_id] = offer
        if row.status not in COMING:
            continue
        missing = (1 if offer is None else offer.hosts) - len(by_allocation.get(row.allocation_id, ()))
        if missing > 0 or row.status is AllocationStatus.REQUESTED:
            starting[row.allocation_id] = max(0, missing)
        if row.backend == backend:
            held[row.allocation_id] = row.resources
    return Machines(dict(by_allocation), made, starting, held, short_of(pool, held.values()))


def offer_of(row: AllocationRow, offers: tuple[Offer, ...]) -> Offer | None:
    """The first of the offers that made this allocation."""
    return next((offer for offer in offers if offer.made(row)), None)


def short_of(pool: Iterable[Resources], there: Iterable[Resources]) -> list[Resources]:
    """What of the pool is not there."""
    held, found = list(there), []
    for resources in pool:
        if resources in held:
            held.remove(resources)
        else:
            found.append(resources)
    return found
