"""`schedule`: which waiting gangs get which workers now, and why the others wait.

One queue: priority bands, then the user who uses least (`shares`), then age. A gang is placed whole or not at all, on
the first workers that hold it. The first gang that could run here but finds no room keeps what it needs held back on
the workers that are nearest to having it; whatever fits beside that may go ahead, so that a big job is never starved by
small ones. What would exceed its user's quota waits, and holds nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter

from fluster.cluster.controller.core.events import GangPlaced
from fluster.cluster.controller.core.hold import Hold
from fluster.cluster.controller.core.outlook import outlook
from fluster.cluster.controller.core.placing import Placing
from fluster.cluster.controller.core.shares import Gang, Shares
from fluster.cluster.controller.core.state import State
from fluster.cluster.controller.core.waits import Waiting, Waits, Why
from fluster.cluster.ids import JobId

_age = attrgetter("submitted_at", "job_id")
_priority = attrgetter("priority")
_ALONE = range(1)
_NEAR_S = 1.0
"""So far may seconds to wait that are told be from those that are left."""


@dataclass(slots=True)
class Decision:
    """Outcome of one pass.

    Attributes:
        placed: Gangs to place, in order; all fit together.
        waiting: Of each job with a waiting gang, why its first one waits.
        hold: Room kept for the first gang that waits; to be given to the next pass.
        next_at: When time alone will change the outcome; `None` never.
        revision: While the state has it, another pass comes to the same until `next_at`; `None`: it may not.
        told_until: Until then what is said of the time to wait is near enough.
    """

    placed: list[GangPlaced] = field(default_factory=list)
    waiting: Waits = field(default_factory=Waits)
    hold: Hold | None = None
    next_at: float | None = None
    revision: int | None = None
    told_until: float = math.inf

    def stands(self, state: State, now: float) -> bool:
        """Whether another pass would come to the same."""
        soon = self.told_until if self.next_at is None else min(self.told_until, self.next_at)
        return self.revision == state.revision and now < soon

    def look_again(self, at: float) -> None:
        """Time changes something then."""
        self.next_at = at if self.next_at is None else min(self.next_at, at)


def schedule(state: State, now: float) -> Decision:
    """Decides what to place. Reads the state, alters nothing."""
    decision = Decision(revision=state.revision)
    queue = waiting_gangs(state)
    if not queue:
        return decision
    placing = Placing(state, now)
    shares = Shares(state, {job.user for job, _, _ in queue}, state.ready_workers().whole)
    counted, bounded = shares.counted, shares.bounded
    told: dict[JobId, Why] = {}
    refused: dict[JobId, Why] = {}
    position = 0
    for job, tasks, not_before in shares.in_turn(queue, state.hold):
        if not_before > now:
            decision.look_again(not_before)
            decision.told_until = now + _NEAR_S
            if job.job_id not in told:
                told[job.job_id] = partial(_backoff, not_before - now)
        elif bounded and shares.exceeds(job, len(tasks)):
            if job.job_id not in told:
                told[job.job_id] = shares.why(job, len(tasks))
        elif (members := placing.place(job, tasks)) is not None:
            decision.placed.append(GangPlaced(job.job_id, members))
            if counted:
                shares.take(job, len(tasks))
        else:
            position += 1
            if placing.hold is None:
                placing.hold_back(job, tasks, position)
            if job.job_id not in refused:
                refused[job.job_id] = partial(placing.explain, job, len(tasks), position)
    decision.waiting = Waits(refused | told)
    if refused:
        placing.about_machines = outlook(state, now)
        if placing.about_machines and state.refusals:
            decision.told_until = now + _NEAR_S
    if placing.hold is not None:
        decision.hold = placing.hold
        decision.look_again(placing.hold.until)
    if decision.placed or decision.hold != state.hold:
        decision.revision = None  # whose turn it is, or what is held back, is another matter now
    return decision


def waiting_gangs(state: State) -> list[Gang]:
    """Gangs that wait, by priority and age."""
    jobs = [state.jobs[job_id] for job_id in state.pending]
    jobs.sort(key=_age)
    jobs.sort(key=_priority, reverse=True)
    found: list[Gang] = []
    for job in jobs:
        tasks = state.tasks[job.job_id]
        if job.num_tasks == 1:
            found.append((job, _ALONE, tasks[0].not_before))
        elif job.gang:
            found.append((job, range(job.num_tasks), tasks[0].not_before))
        else:
            alone = sorted(state.pending[job.job_id])
            found += [(job, range(index, index + 1), tasks[index].not_before) for index in alone]
    return found


def _backoff(seconds: float) -> Waiting:
    return Waiting(f"tried again in {seconds:.1f} s after its last attempt ended", would_fit=True, position=None)
