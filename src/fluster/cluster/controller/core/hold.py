"""What is held back for the first gang that waits: the workers where room is soonest to come.

Nobody says how long a task will run. The best guess without knowing is that it runs on for as long as it has run so
far, so that room is sought where tasks are young rather than beside a training job of many days. Once chosen, the
workers stay chosen until their time was clearly misjudged: hopping after every short job would let the gang starve.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from operator import attrgetter

from fluster.cluster.controller.core.capacity import Slot, fits, slice_of, times
from fluster.cluster.controller.core.reasons import slices_wanted, whole_slices
from fluster.cluster.controller.core.rows import JobRow
from fluster.cluster.controller.core.state import State
from fluster.cluster.ids import JobId, WorkerId

_MIN_PATIENCE_S = 30.0
_NOW = -1.0
"""Room that is there goes before room of a task placed this very moment."""
_placed_at = attrgetter("placed_at")


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


def choose(state: State, workers: Mapping[WorkerId, Slot], job: JobRow, tasks: range, now: float) -> Hold | None:
    """The workers to hold for this gang, or `None` when it could not run here even alone."""
    kept = state.hold
    if (
        isinstance(kept, Hold)
        and (kept.job_id, kept.head) == (job.job_id, tasks[0])
        and now < kept.until
        and all(worker_id in workers for worker_id in kept.places)
    ):
        return kept
    if job.slice_hosts:
        chosen = _soonest_slices(state, workers, job, len(tasks), now)
    else:
        guesses = (guess for slot in workers.values() for guess in _guesses(state, slot, job, len(tasks), now))
        chosen = nsmallest(len(tasks), guesses)
    if len(chosen) < len(tasks):
        return None
    longest = max(seconds for seconds, _, _ in chosen)
    places = tuple(worker_id for _, worker_id, _ in chosen)
    return Hold(job.job_id, tasks[0], places, now + max(_MIN_PATIENCE_S, 2 * longest))


def _guesses(state: State, slot: Slot, job: JobRow, count: int, now: float) -> Iterator[tuple[float, WorkerId, int]]:
    """For each task the worker could hold, at most so many: in how many seconds there may be room for it."""
    need, worker_id = job.resources, slot.worker.worker_id
    if not fits(need, slot.worker.resources):
        return
    there = 0
    for age, fitting in _growth(state, slot, job, now):
        for index in range(there, min(fitting, count)):
            yield age, worker_id, index
        there = max(there, fitting)
        if there >= count:
            return


def _growth(state: State, slot: Slot, job: JobRow, now: float) -> Iterator[tuple[float, int]]:
    """How many tasks fit as one after the other of those that are here ends, the youngest first."""
    yield _NOW, times(job.resources, slot.left)
    left = slot.left.copy()
    for need in slot.taken:
        left.give(need)
    yield 0.0, times(job.resources, left)
    for attempt in sorted(state.held.get(slot.worker.worker_id, {}).values(), key=_placed_at, reverse=True):
        left.give(state.demand(attempt))
        yield max(0.0, now - attempt.placed_at), times(job.resources, left)


def _soonest_slices(
    state: State, workers: Mapping[WorkerId, Slot], job: JobRow, count: int, now: float
) -> list[tuple[float, WorkerId, int]]:
    """The same for whole slices: all their hosts, as late as the last of them may have room."""
    first = {}
    for slot in workers.values():
        for guess in _guesses(state, slot, job, 1, now):
            first[slot.worker.worker_id] = guess
    able = [workers[worker_id] for worker_id in first]
    found = []
    for group in whole_slices(able, job.slice_hosts):
        hosts = [first[slot.worker.worker_id] for slot in group]
        found.append((max(hosts)[0], slice_of(group[0].worker), hosts))
    chosen = sorted(found)[: slices_wanted(job, count)]
    return [guess for _, _, hosts in chosen for guess in hosts][:count]
