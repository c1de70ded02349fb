"""Which machines the gangs that wait lack: a dry run of the scheduler with machines that are on their way, and offers.

A gang is given room on workers, then on machines that are starting; for what it lacks then, machines are asked for:
all of them or none, from the first offers that can give them now. What it was given on machines that are there is kept
for it, so that none of them is given back as idle meanwhile.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

from fluster.cluster.controller.core.capacity import Room, fits, room, slice_of, times
from fluster.cluster.controller.core.rows import AllocationRow, JobRow, Offer, Resources
from fluster.cluster.controller.core.schedule import waiting_gangs
from fluster.cluster.controller.core.shares import Shares
from fluster.cluster.controller.core.state import State
from fluster.cluster.ids import AllocationId


@dataclass(slots=True)
class _Host:
    """Room on one host.

    Attributes:
        allocation_id: Empty where there is none, or none yet.
        left: The state's own until some is taken.
    """

    allocation_id: AllocationId
    slice_id: str
    left: Room
    owned: bool = False

    def take(self, need: Resources) -> None:
        """A task is imagined here."""
        if not self.owned:
            self.left, self.owned = self.left.copy(), True
        self.left.take(need)


@dataclass(slots=True)
class Demand:
    """Outcome of a dry run.

    Attributes:
        asked: One offer for each allocation to ask for, in order.
        wanted: Allocations on which a waiting gang was given room.
    """

    asked: list[Offer] = field(default_factory=list)
    wanted: set[AllocationId] = field(default_factory=set)


def demand(state: State, now: float) -> Demand:
    """What to ask for now. Reads the state, alters nothing."""
    found, offers = Demand(), state.settings.offers
    gangs = waiting_gangs(state) if offers else []
    if not gangs and not any(offer.at_least for offer in offers):
        return found  # as in most turns
    run = _DryRun(state, now)
    for offer in state.settings.offers:
        if run.is_open(offer):
            for _ in range(offer.at_least - run.used[offer]):
                run.add(offer)
                found.asked.append(offer)
    shares = Shares(state, {job.user for job, _, _ in gangs}, state.ready_workers().whole)
    for job, tasks, not_before in shares.in_turn(gangs, state.hold):
        if shares.exceeds(job, len(tasks)):
            continue  # no machine helps who has all that the quota allows
        run.give(job, len(tasks), found, may_ask=not_before <= now)
        if shares.counted:
            shares.take(job, len(tasks))
    return found


def coming_hosts(state: State) -> list[AllocationRow]:
    """An allocation for each of its hosts whose worker has not joined yet."""
    starting = state.machines().starting
    return [state.allocations[each] for each, missing in starting.items() for _ in range(missing)]


class _DryRun:
    """Hosts, real and imagined, while gangs are given room on them.

    Attributes:
        used: Allocations of each offer that there are, those to ask for among them.
    """

    def __init__(self, state: State, now: float) -> None:
        self._state = state
        self._now = now
        self.used = Counter(state.machines().offers.values())
        self._first: dict[Resources, int] = {}
        self._in_vain: set[tuple[Resources, int, int]] = set()

    @cached_property
    def _hosts(self) -> list[_Host]:
        """Those there are, then those that are on their way; looked at once a gang needs room."""
        state = self._state
        ready = state.ready_workers().workers
        hosts = [_Host(worker.allocation_id, slice_of(worker), state.room(worker)) for worker in ready]
        hosts += [_Host(row.allocation_id, row.allocation_id, room(row.resources)) for row in coming_hosts(state)]
        return hosts

    def is_open(self, offer: Offer) -> bool:
        """Whether its backend may be asked now."""
        refusal = self._state.refusals.get(offer.backend)
        return refusal is None or refusal.until <= self._now

    def add(self, offer: Offer) -> list[_Host]:
        """Imagines one more allocation."""
        self.used[offer] += 1
        name = f"{offer.backend}+{self.used[offer]}"
        added = [_Host(AllocationId(""), name, room(offer.resources)) for _ in range(offer.hosts)]
        self._hosts += added
        return added

    def give(self, job: JobRow, count: int, found: Demand, *, may_ask: bool) -> None:
        """Gives a gang room, asking for machines as far as needed; or, when that is not enough, nothing."""
        key = (job.resources, job.slice_hosts, count)
        if key in self._in_vain:
            return
        places = self._places(job, count)
        lacking = count - len(places)
        offers = self._choose(job, lacking, only_open=True)
        asks = offers is not None and may_ask
        if offers is None:  # nobody has what it lacks now; what is there of it is kept
            offers = self._choose(job, lacking, only_open=False)
        if offers is None:
            self._in_vain.add(key)
            return
        found.wanted.update(place.allocation_id for place in places if place.allocation_id)
        if asks:
            found.asked += offers
            places += self._imagine(job, lacking, offers)
        for place in places:
            place.take(job.resources)

    def _places(self, job: JobRow, count: int) -> list[_Host]:
        """A host for each task that has room, repeated when it is to hold several."""
        if job.slice_hosts:
            return self._whole_slices(job, count)
        places: list[_Host] = []
        for host in self._with_room(job.resources):
            places += [host] * min(times(job.resources, host.left), count - len(places))
            if len(places) == count:
                break
        return places

    def _with_room(self, need: Resources) -> Iterator[_Host]:
        """Room only shrinks, so the full ones at the beginning are not looked at again."""
        at = self._first.get(need, 0)
        while at < len(self._hosts) and not fits(need, self._hosts[at].left):
            at += 1
        self._first[need] = at
        return (self._hosts[index] for index in range(at, len(self._hosts)))

    def _whole_slices(self, job: JobRow, count: int) -> list[_Host]:
        slices: defaultdict[str, list[_Host]] = defaultdict(list)
        for host in self._hosts:
            if fits(job.resources, host.left):
                slices[host.slice_id].append(host)
        return list(chain.from_iterable(each for each in slices.values() if len(each) == job.slice_hosts))[:count]

    def _choose(self, job: JobRow, lacking: int, *, only_open: bool) -> list[Offer] | None:
        """Offers that hold so many tasks, the first ones first; `None`: there are not enough."""
        chosen: list[Offer] = []
        for offer in self._state.settings.offers:
            each = tasks_of(job, offer)
            if lacking <= 0 or not each or (only_open and not self.is_open(offer)):
                continue
            number = max(0, min(-(-lacking // each), offer.at_most - self.used[offer]))
            chosen += [offer] * number
            lacking -= number * each
        return chosen if lacking <= 0 else None

    def _imagine(self, job: JobRow, lacking: int, offers: list[Offer]) -> list[_Host]:
        places: list[_Host] = []
        for offer in offers:
            for host in self.add(offer):
                places += [host] * min(times(job.resources, host.left), lacking - len(places))
        return places


def tasks_of(job: JobRow, offer: Offer) -> int:
    """How many tasks of this job one allocation holds. Slices are for jobs that ask for them."""
    if offer.hosts != (job.slice_hosts or 1):
        return 0
    return offer.hosts * times(job.resources, offer.resources)
