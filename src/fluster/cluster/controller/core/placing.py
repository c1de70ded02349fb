"""One scheduling pass: gangs find room on the workers, or learn why not."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter

from fluster.cluster.controller.core.capacity import Slot, fits, times
from fluster.cluster.controller.core.events import Member
from fluster.cluster.controller.core.hold import Hold, choose
from fluster.cluster.controller.core.outline import Outline, asks_no_less, least
from fluster.cluster.controller.core.reasons import Reason, no_worker, reason, slices_wanted, whole_slices
from fluster.cluster.controller.core.rows import JobRow, Resources, WorkerRow
from fluster.cluster.controller.core.state import State
from fluster.cluster.controller.core.waits import Waiting
from fluster.cluster.ids import WorkerId

# Ten thousand rows bring as many equal `Resources`; hashing those themselves costs four times as much as this.
_key = attrgetter("cpu_milli", "memory_bytes", "disk_bytes", "gpu", "slots", "gpu_variant", "tpu_variant")

_MAX_FAILED = 64
"""Needs known to find no room that a new one is compared with: more would cost more than looking for room."""


@dataclass(slots=True)
class _Search:
    """What this pass knows of one need. Room only shrinks, so a search that failed is not made again.

    Attributes:
        start: No worker before this one has room.
        full_at: Neither a gang of so many tasks nor a larger one finds room.
        reasons: Why, by number of tasks.
    """

    start: int = 0
    full_at: float = float("inf")
    reasons: dict[int, Reason] = field(default_factory=dict)


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
        self._searches: dict[tuple[object, int], _Search] = {}
        self._failed: list[Resources] = []
        self._least: Resources | None = None
        self._open = 0

    @cached_property
    def _by_id(self) -> dict[WorkerId, Slot]:
        return {slot.worker.worker_id: slot for slot in self._slots}

    def place(self, job: JobRow, tasks: range) -> tuple[Member, ...] | None:
        """Takes room for the whole gang, or none."""
        search = self._search(job)
        count = len(tasks)
        if count >= search.full_at:
            return None
        found = self._slices(job, count) if job.slice_hosts else self._first(job.resources, count, search)
        if found is None:
            search.full_at = count
            return None
        for slot in found:
            slot.take(job.resources)
        if count == 1:
            return (Member(tasks[0], found[0].worker.worker_id),)
        return tuple([Member(task, slot.worker.worker_id) for task, slot in zip(tasks, found, strict=True)])

    def _search(self, job: JobRow) -> _Search:
        key = (_key(job.resources), job.slice_hosts)
        search = self._searches.get(key)
        if search is None:
            search = self._searches[key] = self._new_search(job.resources)
        return search

    def _new_search(self, need: Resources) -> _Search:
        """What other needs have shown is not looked for again."""
        if any(asks_no_less(need, failed) for failed in self._failed):
            return _Search(full_at=1)
        lower = need if self._least is None else least(need, self._least)
        if lower != self._least:
            self._least, self._open = lower, 0
        return _Search()

    def _skip_full(self, smallest: Resources) -> int:
        """Where to begin: workers before that have no room for the smallest need there is."""
        while self._open < len(self._slots) and not fits(smallest, self._slots[self._open].free):
            self._open += 1
        return self._open

    def _first(self, need: Resources, count: int, search: _Search) -> list[Slot] | None:
        """The first workers that hold so many tasks."""
        workers = self._slots
        search.start = max(search.start, self._skip_full(self._least or need))
        while search.start < len(workers) and not fits(need, workers[search.start].free):
            search.start += 1
        if search.start == len(workers):
            if len(self._failed) < _MAX_FAILED:
                self._failed.append(need)
            return None
        if count == 1:
            return [workers[search.start]]
        found: list[Slot] = []
        for index in range(search.start, len(workers)):
            found += [workers[index]] * min(times(need, workers[index].free), count - len(found))
            if len(found) == count:
                return found
        return None

    def _slices(self, job: JobRow, count: int) -> list[Slot] | None:
        """Whole slices, one task on each host, in order."""
        able = (slot for slot in self._slots if fits(job.resources, slot.free))
        wanted = slices_wanted(job, count)
        whole = whole_slices(able, job.slice_hosts)[:wanted]
        return [slot for group in whole for slot in group][:count] if len(whole) == wanted else None

    def hold_back(self, job: JobRow, tasks: range, position: int) -> None:
        """Keeps room for the first gang that waits for it; the others are not waited for yet."""
        if self.hold is not None or self._outline.in_all(job.resources) < len(tasks):
            return
        self.hold = choose(self._state, self._by_id, job, tasks, self._now)
        if self.hold is None:
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
        reasons = self._search(job).reasons
        if count not in reasons:
            reasons[count] = reason(self._outline, job, count)
        return reasons[count]

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
