"""What is held back for the first gang that waits: the workers where room is soonest to come.

Nobody says how long a task will run. The best guess without knowing is that it runs on for as long as it has run so
far, so that room is sought where tasks are young rather than beside a training job of many days. Once chosen, the
workers stay chosen until their time was clearly misjudged: hopping after every short job would let the gang starve.
"""

from __future__ import annotations

from dataclasses import dataclass

from fluster.cluster.controller.core.capacity import Slot, fits, times
from fluster.cluster.controller.core.rows import JobRow
from fluster.cluster.controller.core.state import State
from fluster.cluster.ids import JobId, WorkerId

_MIN_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Hold:
    """Room kept free for one gang.

    Attributes:
        head: First task of the gang.
        places: A worker for each task, repeated when it is to hold several.
        until: When other workers are tried.
    """

    job_id: JobId
    head: int
    places: tuple[WorkerId, ...]
    until: float


def choose(state: State, workers: list[Slot], job: JobRow, tasks: range, now: float) -> Hold | None:
    """The workers to hold for this gang, or `None` when it could not run here even alone."""
    kept = state.hold
    present = {slot.worker.worker_id for slot in workers}
    if (
        isinstance(kept, Hold)
        and (kept.job_id, kept.head) == (job.job_id, tasks[0])
        and now < kept.until
        and present.issuperset(kept.places)
    ):
        return kept
    guesses = _slice_guesses(state, workers, job, now) if job.slice_hosts else _guesses(state, workers, job, now)
    chosen = sorted(guesses)[: len(tasks)]
    if len(chosen) < len(tasks):
        return None
    patience = max(_MIN_PATIENCE_S, 2 * chosen[-1][0])
    return Hold(job.job_id, tasks[0], tuple(worker_id for _, worker_id, _ in chosen), now + patience)


def _guesses(state: State, workers: list[Slot], job: JobRow, now: float) -> list[tuple[float, WorkerId, int]]:
    """For each task each worker could hold alone: in how many seconds there may be room for it."""
    found = []
    for slot in workers:
        if not fits(job.resources, slot.worker.resources):
            continue
        left = slot.left
        room = times(job.resources, left)
        found += [(0.0, slot.worker.worker_id, i) for i in range(room)]
        running = list(state.held.get(slot.worker.worker_id, {}).values())
        for attempt in sorted(running, key=lambda a: -a.placed_at):
            demand = state.demand(attempt)
            left = left.minus(demand.negated())
            grown = times(job.resources, left)
            age = max(0.0, now - attempt.placed_at)
            found += [(age, slot.worker.worker_id, i) for i in range(room, grown)]
            room = max(room, grown)
    return found


def _slice_guesses(state: State, workers: list[Slot], job: JobRow, now: float) -> list[tuple[float, WorkerId, int]]:
    """The same for whole slices: all hosts of an allocation, when the last of them may have room."""
    when: dict[str, dict[WorkerId, float]] = {}
    allocation = {slot.worker.worker_id: slot.worker.allocation_id for slot in workers}
    for age, worker_id, _ in sorted(_guesses(state, workers, job, now)):
        when.setdefault(allocation[worker_id], {}).setdefault(worker_id, age)
    found = []
    for name, hosts in when.items():
        if name and len(hosts) == job.slice_hosts:
            found += [(max(hosts.values()), worker_id, 0) for worker_id in sorted(hosts)]
    return found
