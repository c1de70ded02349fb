"""One scheduling pass: gangs find room on the workers, or learn why not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import inf

from fluster.cluster.controller.core.blocks import Blocks, shape
from fluster.cluster.controller.core.capacity import Slot, fits, times
from fluster.cluster.controller.core.events import Member
from fluster.cluster.controller.core.hold import Hold, choose
from fluster.cluster.controller.core.outline import Outline
from fluster.cluster.controller.core.reasons import Reason, no_worker, reason, slices_wanted, whole_slices
from fluster.cluster.controller.core.rows import JobRow, Resources, WorkerRow
from fluster.cluster.controller.core.state import State
from fluster.cluster.controller.core.waits import Waiting
from fluster.cluster.ids import WorkerId


@dataclass(slots=True)
class _Search:
    """What this pass knows of one need. Room only shrinks, so a search that failed is not made again.

    Attributes:
        start: No worker before this one has room.
        full_at: Neither a gang of so many tasks nor a larger one finds room.
        vain_at: Nor could it have any if nothing else ran.
    """

    start: int = 0
    full_at: float = inf
    vain_at: float = inf


class Placing:
    """The workers during one pass.

    Attributes:
        hold: Room kept for the first gang that waits.
        about_machines: What else there is to say to gangs that wait for room.
    """

    def __init__(self, state: State, now: float) -> None:
        self.hold: Hold | None = None
        self.about_machines = ""
        self._holder: JobRow | None = None
        self._held_at = 0
        self._state = state
        self._now = now
        self._slots = [_slot(state, worker) for worker in state.ready_workers().workers]
        self._nobody = "" if self._slots else no_worker(state)
        self._outline = Outline(self._slots)
        self._searches: dict[object, _Search] = {}
        self._blocks = Blocks(self._slots)
        self._reasons: dict[tuple[object, int, int], Reason] = {}

    @cached_property
    def _by_id(self) -> dict[WorkerId, Slot]:
        return {slot.worker.worker_id: slot for slot in self._slots}

    def place(self, job: JobRow, tasks: range) -> tuple[Member, ...] | None:
        """Takes room for the whole gang, or none."""
        search, need, count = self._search(job), job.resources, len(tasks)
        if count >= search.full_at:
            return None
        if count == 1 and not job.slice_hosts:
            at = search.start
            if not (at < len(self._slots) and fits(need, self._slots[at].free)):
                at = search.start = self._blocks.first(need, at)
                if at == len(self._slots):
                    search.full_at = 1
                    return None
            self._slots[at].take(need)
            return (Member(tasks.start, self._slots[at].worker.worker_id),)
        found = self._slices(job, count) if job.slice_hosts else self._several(need, count, search)
        if found is None:
            search.full_at = count
            return None
        for slot in found:
            slot.take(need)
        return tuple([Member(task, slot.worker.worker_id) for task, slot in zip(tasks, found, strict=True)])

    def _search(self, job: JobRow) -> _Search:
        key = (shape(job.resources), job.slice_hosts) if job.slice_hosts else shape(job.resources)
        search = self._searches.get(key)
        if search is None:
            search = self._searches[key] = self._new_search(job.resources)
        return search

    def _new_search(self, need: Resources) -> _Search:
        return _Search() if self._blocks.may_hold(need) else _Search(full_at=1)

    def _several(self, need: Resources, count: int, search: _Search) -> list[Slot] | None:
        """The first workers that hold so many tasks."""
        found: list[Slot] = []
        slots, at = self._slots, search.start
        while at < len(slots):
            number = times(need, slots[at].free)
            if number:
                found += [slots[at]] * min(number, count - len(found))
                if len(found) == count:
                    return found
                at += 1
            else:
                at = self._blocks.first(need, at)
                search.start = search.start if found else at
        return None

    def _slices(self, job: JobRow, count: int) -> list[Slot] | None:
        """Whole slices, one task on each host, in order."""
        able = (slot for slot in self._slots if fits(job.resources, slot.free))
        wanted = slices_wanted(job, count)
        whole = whole_slices(able, job.slice_hosts)[:wanted]
        return [slot for group in whole for slot in group][:count] if len(whole) == wanted else None

    def hold_back(self, job: JobRow, tasks: range, position: int) -> None:
        """Keeps room for the first gang that waits for it; the others are not waited for yet."""
        search = self._search(job)
        if self.hold is not None or len(tasks) >= search.vain_at:
            return
        if self._outline.in_all(job.resources) >= len(tasks):
            self.hold = choose(self._state, self._by_id, job, tasks, self._now)
        if self.hold is None:
            search.vain_at = len(tasks)
            return
        self._holder, self._held_at = job, position
        for worker_id in self.hold.places:
            self._by_id[worker_id].hold_back(job.resources)

    def explain(self, job: JobRow, count: int, position: int) -> Waiting:
        """Why a gang that was refused waits, in the numbers that this pass leaves behind. For after the pass."""
        why = self._reason(job, count)
        behind = self._behind(job, position) if why.would_fit else ""
        return Waiting(f"{why.text}{behind}{self.about_machines}", why.would_fit, position)

    def _reason(self, job: JobRow, count: int) -> Reason:
        if self._nobody:
            return Reason(self._nobody, would_fit=False)
        asked = (shape(job.resources), job.slice_hosts, count)
        if asked not in self._reasons:
            self._reasons[asked] = reason(self._outline, job, count)
        return self._reasons[asked]

    def _behind(self, job: JobRow, position: int) -> str:
        """Whom room is held for that this gang could have had. Names of other namespaces are not told."""
        holder = self._holder
        if holder is None or position <= self._held_at:
            return ""
        if holder.namespace != job.namespace:
            return "; behind a job of another namespace"
        return f"; behind {holder.name} ({holder.job_id})"


def _slot(state: State, worker: WorkerRow) -> Slot:
    left = state.room(worker)
    return Slot(worker, left, left)
