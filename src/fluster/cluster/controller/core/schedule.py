"""`schedule`: which waiting gangs get which workers now, and why the others wait.

One queue: priority bands, then age. A gang is placed whole or not at all, on the first workers that hold it. The first
gang that could run here but finds no room keeps what it needs held back on the workers that are nearest to having it;
whatever fits beside that may go ahead, so that a big job is never starved by small ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fluster.cluster.controller.core.capacity import Slot, describe, fits, shortage, slots, times
from fluster.cluster.controller.core.events import GangPlaced, Member
from fluster.cluster.controller.core.hold import Hold, choose
from fluster.cluster.controller.core.rows import AllocationStatus, JobRow, Resources
from fluster.cluster.controller.core.state import State
from fluster.cluster.ids import JobId
from fluster.cluster.states import TaskState


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a gang waits.

    Attributes:
        would_fit: It could run here if nothing else did.
        position: In the queue of gangs that wait for room, from 1; `None` while it waits for time.
    """

    reason: str
    would_fit: bool
    position: int | None


@dataclass(slots=True)
class Decision:
    """Outcome of one pass.

    Attributes:
        placed: Gangs to place, in order; all fit together.
        waiting: Of each job with a waiting gang, why its first one waits.
        hold: Room kept for the first gang that waits; to be given to the next pass.
        next_at: When time alone will change the outcome; `None` never.
    """

    placed: list[GangPlaced] = field(default_factory=list)
    waiting: dict[JobId, Waiting] = field(default_factory=dict)
    hold: Hold | None = None
    next_at: float | None = None


@dataclass(frozen=True, slots=True)
class _Gang:
    job: JobRow
    tasks: range
    not_before: float


def schedule(state: State, now: float) -> Decision:
    """Decides what to place. Reads the state, alters nothing."""
    decision = Decision()
    queue = list(_queue(state))
    if not queue:
        return decision
    room = _Room(slots(state))
    position = 0
    for gang in queue:
        job = gang.job
        if gang.not_before > now:
            decision.next_at = min(gang.not_before, decision.next_at or gang.not_before)
            wait = Waiting(f"tried again in {gang.not_before - now:.1f} s after its last attempt ended", True, None)
            decision.waiting.setdefault(job.job_id, wait)
            continue
        members = room.place(gang)
        if members is not None:
            decision.placed.append(GangPlaced(job.job_id, members))
            continue
        position += 1
        if job.job_id not in decision.waiting:
            reason, would_fit = room.explain(state, gang)
            decision.waiting[job.job_id] = Waiting(reason, would_fit, position)
        decision.hold = room.hold_back(state, gang, now) or decision.hold
    return decision


def _queue(state: State) -> Iterator[_Gang]:
    waiting = [job for job in state.jobs.values() if job.stop_at is None and job.outcome is None]
    waiting.sort(key=lambda job: (-job.priority, job.submitted_at, job.job_id))
    for job in waiting:
        tasks = state.tasks[job.job_id]
        for head in state.gang_heads(job):
            task = tasks[head]
            if task.state is TaskState.PENDING:
                yield _Gang(job, state.gang_tasks(job, head), task.not_before)


class _Room:
    """The workers during one pass. Free room only shrinks, so a search that failed need not be made again."""

    def __init__(self, workers: list[Slot]) -> None:
        self._slots = workers
        self._cursor: dict[Resources, int] = {}
        self._full: set[tuple[Resources, int, int]] = set()
        self._holder: JobRow | None = None

    def place(self, gang: _Gang) -> tuple[Member, ...] | None:
        """Takes room for the whole gang, or none."""
        job = gang.job
        shape = (job.resources, len(gang.tasks), job.slice_hosts)
        if shape in self._full:
            return None
        if job.slice_hosts:
            found = self._slices(gang)
        elif len(gang.tasks) == 1:
            found = self._one(job.resources)
        else:
            found = self._many(job.resources, len(gang.tasks))
        if found is None:
            self._full.add(shape)
            return None
        for slot in found:
            slot.take(job.resources)
        return tuple(Member(task, slot.worker.worker_id) for task, slot in zip(gang.tasks, found, strict=True))

    def _one(self, need: Resources) -> list[Slot] | None:
        start = self._cursor.get(need, 0)
        for index in range(start, len(self._slots)):
            if fits(need, self._slots[index].free):
                self._cursor[need] = index
                return [self._slots[index]]
        self._cursor[need] = len(self._slots)
        return None

    def _many(self, need: Resources, count: int) -> list[Slot] | None:
        found: list[Slot] = []
        for slot in self._slots[self._cursor.get(need, 0) :]:
            found += [slot] * min(times(need, slot.free), count - len(found))
            if len(found) == count:
                return found
        return None

    def _slices(self, gang: _Gang) -> list[Slot] | None:
        """Whole slices: all hosts of one allocation free, one task on each, in order."""
        need, hosts = gang.job.resources, gang.job.slice_hosts
        by_allocation: dict[str, list[Slot]] = {}
        for slot in self._slots:
            if slot.worker.allocation_id and fits(need, slot.free):
                by_allocation.setdefault(slot.worker.allocation_id, []).append(slot)
        whole = [group for group in by_allocation.values() if len(group) == hosts]
        wanted = len(gang.tasks) // hosts
        return None if len(whole) < wanted else [slot for group in whole[:wanted] for slot in group]

    def hold_back(self, state: State, gang: _Gang, now: float) -> Hold | None:
        """Keeps room for the first gang that waits for it; the others are not waited for yet."""
        if self._holder is not None:
            return None
        hold = choose(state, self._slots, gang.job, gang.tasks, now)
        if hold is None:
            return None  # it could not run here even alone: nobody has to wait for it
        self._holder = gang.job
        by_id = {slot.worker.worker_id: slot for slot in self._slots}
        for worker_id in hold.places:
            by_id[worker_id].free = by_id[worker_id].free.minus(gang.job.resources)
        return hold

    def explain(self, state: State, gang: _Gang) -> tuple[str, bool]:
        """Why this gang was not placed, and whether it could run here if nothing else did."""
        need, count = gang.job.resources, len(gang.tasks)
        if not self._slots:
            return _no_worker(state), False
        able = [slot for slot in self._slots if fits(need, slot.worker.resources)]
        if not able:
            return _too_large(need, self._slots), False
        if gang.job.slice_hosts:
            return f"{count} hosts of {need.tpu_variant} in whole slices needed, not free", True
        in_all = sum(times(need, slot.worker.resources) for slot in able)
        if in_all < count:
            return f"{count} tasks of {describe(need)} at once needed, room for {in_all} on all workers together", False
        behind = "" if self._holder is None else f"; behind {self._holder.name} ({self._holder.job_id})"
        if count > 1:
            now = sum(times(need, slot.left) for slot in able)
            return f"{count} tasks of {describe(need)} at once needed, room for {now} now{behind}", True
        best = max((slot.left for slot in able), key=lambda left: _nearness(need, left))
        short = shortage(need, best, "free")
        return (", ".join(short) if short else f"{describe(need)} needed and there, but held back") + behind, True


def _nearness(need: Resources, left: Resources) -> tuple[int, int, int]:
    return -len(shortage(need, left, "")), left.cpu_milli, left.memory_bytes


def _no_worker(state: State) -> str:
    starting = sum(1 for a in state.allocations.values() if a.status is AllocationStatus.REQUESTED)
    errors = sorted({a.error for a in state.allocations.values() if a.error})
    lost = len(state.workers)
    if errors:
        return f"no worker is ready: {errors[0]}"
    if starting:
        return f"no worker is ready yet: {starting} starting"
    return f"no worker is ready ({lost} lost)" if lost else "no worker has joined this cluster"


def _too_large(need: Resources, workers: list[Slot]) -> str:
    """The worker that lacks least, dimension by dimension."""
    nearest = max((slot.worker.resources for slot in workers), key=lambda have: _nearness(need, have))
    return "no worker can hold one task: " + ", ".join(shortage(need, nearest, "on the largest worker"))
