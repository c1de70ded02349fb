"""One scheduling pass: gangs find room on the workers, or learn why not."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from operator import attrgetter

from fluster.cluster.controller.core.capacity import Slot, fits, times
from fluster.cluster.controller.core.events import Member
from fluster.cluster.controller.core.hold import Hold, choose
from fluster.cluster.controller.core.reasons import Reason, reason, slices_wanted, whole_slices
from fluster.cluster.controller.core.rows import JobRow, Resources, WorkerRow
from fluster.cluster.controller.core.state import State

# Ten thousand rows bring as many equal `Resources`; hashing those themselves costs four times as much as this.
_key = attrgetter("cpu_milli", "memory_bytes", "disk_bytes", "gpu", "slots", "gpu_variant", "tpu_variant")


@dataclass(slots=True)
class _Search:
    """What this pass knows of one need. Room only shrinks, so a search that failed is not made again.

    Attributes:
        start: No worker before this one has room.
        full_at: Neither a gang of so many tasks nor a larger one finds room.
        hopeless_at: Nor would it if nothing else ran.
        reasons: Why, by number of tasks.
    """

    start: int = 0
    full_at: float = float("inf")
    hopeless_at: float = float("inf")
    reasons: dict[int, Reason] = field(default_factory=dict)


class Placing:
    """The workers during one pass.

    Attributes:
        hold: Room kept for the first gang that waits.
    """

    def __init__(self, state: State, now: float) -> None:
        self.hold: Hold | None = None
        self._holder: JobRow | None = None
        self._held_at = 0
        self._state = state
        self._now = now
        self._by_id = {worker.worker_id: _slot(state, worker) for worker in state.ready_workers()}
        self._slots = list(self._by_id.values())
        self._searches: dict[tuple[object, int], _Search] = {}

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
        return tuple([Member(task, slot.worker.worker_id) for task, slot in zip(tasks, found, strict=True)])

    def _search(self, job: JobRow) -> _Search:
        key = (_key(job.resources), job.slice_hosts)
        search = self._searches.get(key)
        if search is None:
            search = self._searches[key] = _Search()
        return search

    def _first(self, need: Resources, count: int, search: _Search) -> list[Slot] | None:
        """The first workers that hold so many tasks."""
        workers = self._slots
        while search.start < len(workers) and not fits(need, workers[search.start].free):
            search.start += 1
        if count == 1:
            return workers[search.start : search.start + 1] or None
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
        search = self._search(job)
        if self.hold is not None or len(tasks) >= search.hopeless_at:
            return
        self.hold = choose(self._state, self._by_id, job, tasks, self._now)
        if self.hold is None:
            search.hopeless_at = len(tasks)  # it could not run here even alone: nobody has to wait for it
            return
        self._holder, self._held_at = job, position
        for worker_id in self.hold.places:
            self._by_id[worker_id].hold_back(job.resources)

    def explain(self, job: JobRow, count: int, position: int) -> Reason:
        """Why a gang that was refused waits."""
        reasons = self._search(job).reasons
        why = reasons.get(count)
        if why is None:
            why = reasons[count] = reason(self._state, self._slots, job, count)
        if self._holder is None or position <= self._held_at or not why.would_fit:
            return why
        return replace(why, text=f"{why.text}; behind {self._holder.name} ({self._holder.job_id})")


def _slot(state: State, worker: WorkerRow) -> Slot:
    left = state.room(worker)
    return Slot(worker, left, left)
