"""Users: what each uses now and may use, and whose turn it is among several.

Within a band of priority the user who uses least goes first. Use is measured as the largest share of all workers' cpu,
memory or gpus that its tasks reserve, counted anew after each placement: whoever asks for what is scarce here competes
by that. Among equals age decides, and so it does where there is one user.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from heapq import heapify, heappop, heapreplace
from itertools import chain, groupby
from operator import attrgetter

from fluster.cluster.controller.core.capacity import Use
from fluster.cluster.controller.core.hold import Hold
from fluster.cluster.controller.core.reasons import shown_bytes, shown_cpu
from fluster.cluster.controller.core.rows import ENDED_STATES, JobRow, Quota
from fluster.cluster.controller.core.state import State
from fluster.cluster.controller.core.waits import Waiting, Why

Gang = tuple[JobRow, range, float]
"""A job, the tasks of one of its gangs, and the end of its backoff."""
_job_id = attrgetter("job_id")
_FIRST = -1.0
"""Less than any share."""


def use_of(state: State, user: str) -> Use:
    """What one user uses, derived from the attempts of its jobs."""
    use = Use()
    for job_id in state.jobs_by_user.get(user, ()):
        job = state.jobs[job_id]
        held = (state.current(job_id, task) for task in range(job.num_tasks))
        use.add(job.resources, sum(1 for each in held if each is not None and each.state not in ENDED_STATES))
    return use


class Shares:
    """Users during one scheduling pass.

    Args:
        state: Read only.
        users: Those whose gangs wait.
        whole: What all workers have together.

    Attributes:
        counted: Whether it matters who uses what; `take` has to be told then.
        bounded: Whether `exceeds` may say so of anybody.
    """

    def __init__(self, state: State, users: Collection[str], whole: Use) -> None:
        self._state = state
        self._several = len(users) > 1
        self._quotas = {user: state.quota(user) for user in users if _bounds_tasks(state.quota(user))}
        self._uses: dict[str, Use] = {}
        self._taken = False
        self.bounded = bool(self._quotas)
        self.counted = self._several or self.bounded
        if self.counted:
            self._uses = {user: Use() for user in users}
            self._count()
        # What no worker has nobody can use.
        self._of_cpu, self._of_memory, self._of_gpu = (
            1 / (have or 1) for have in (whole.cpu_milli, whole.memory_bytes, whole.gpu)
        )

    def _count(self) -> None:
        jobs, uses = self._state.jobs, self._uses
        held = chain.from_iterable(each.values() for each in self._state.held.values())
        for job_id, number in Counter(map(_job_id, held)).items():
            job = jobs[job_id]
            use = uses.get(job.user)
            if use is not None:
                use.add(job.resources, number)

    def share(self, user: str) -> float:
        """The largest part of anything that the user has of all there is."""
        use = self._uses[user]
        cpu, memory, gpu = use.cpu_milli * self._of_cpu, use.memory_bytes * self._of_memory, use.gpu * self._of_gpu
        most = cpu if cpu > memory else memory  # `max` takes three times as long
        return gpu if gpu > most else most

    def take(self, job: JobRow, count: int) -> None:
        """So many tasks of the job were placed. Only where it is `counted`."""
        self._taken = True
        use, need = self._uses[job.user], job.resources
        use.cpu_milli += need.cpu_milli * count
        use.memory_bytes += need.memory_bytes * count
        if need.gpu:
            use.gpu += need.gpu * count

    def in_turn(self, queue: list[Gang], hold: object) -> Iterable[Gang]:
        """The gangs in the order in which they are looked at.

        Each is looked at, and what was placed told by `take`, before the next is asked for.

        Args:
            queue: By priority and age.
            hold: Room that is held since the pass before. Its gang's user goes first until that gang was looked at:
                room would else be held now for one user's gang and now for another's, and none of them ever start.
        """
        if not self._several:
            return queue
        held = hold if isinstance(hold, Hold) else None
        if queue and queue[0][0].priority == queue[-1][0].priority:
            return self._band(queue, held)
        bands = (list(band) for _, band in groupby(queue, key=lambda gang: gang[0].priority))
        return chain.from_iterable(self._band(band, held) for band in bands)

    def _band(self, band: list[Gang], hold: Hold | None) -> Iterator[Gang]:
        """One band's, by age: what comes earlier in it is older."""
        first = self._holder(hold, band[0][0].priority)
        waiting: defaultdict[str, list[int]] = defaultdict(list)
        for position in range(len(band) - 1, -1, -1):
            waiting[band[position][0].user].append(position)
        turns = [(self._rank(user, first), positions.pop(), positions) for user, positions in waiting.items()]
        heapify(turns)
        while turns:
            rank, position, positions = turns[0]
            gang = band[position]
            self._taken = False
            yield gang
            if first is not None and gang[0].user == first and _holds(hold, gang):
                first = None
                rank = self.share(gang[0].user)
            elif self._taken:
                rank = self.share(gang[0].user) if first is None else self._rank(gang[0].user, first)
            if positions:
                heapreplace(turns, (rank, positions.pop(), positions))
            else:
                heappop(turns)

    def _holder(self, hold: Hold | None, priority: int) -> str | None:
        """Whose gang it is that room is held for, where that gang waits in this band."""
        job = None if hold is None else self._state.jobs.get(hold.job_id)
        if hold is None or job is None or job.priority != priority:
            return None
        return job.user if hold.head in self._state.pending.get(hold.job_id, ()) else None

    def _rank(self, user: str, first: str | None) -> float:
        return _FIRST if user == first else self.share(user)

    def exceeds(self, job: JobRow, count: int) -> bool:
        """Whether so many tasks of the job would be more than its user may have."""
        quota = self._quotas.get(job.user)
        if quota is None:
            return False
        use, need = self._uses[job.user], job.resources
        return (
            (quota.cpu_milli is not None and use.cpu_milli + need.cpu_milli * count > quota.cpu_milli)
            or (quota.memory_bytes is not None and use.memory_bytes + need.memory_bytes * count > quota.memory_bytes)
            or (quota.gpu is not None and use.gpu + need.gpu * count > quota.gpu)
        )

    def why(self, job: JobRow, count: int) -> Why:
        """What of the quota so many tasks of the job exceed now."""
        use = self._uses[job.user]
        used = Use(use.cpu_milli, use.memory_bytes, use.gpu)  # more may be placed before it is asked
        return partial(_over_quota, self._quotas[job.user], used, job, count)


def _over_quota(quota: Quota, use: Use, job: JobRow, count: int) -> Waiting:
    """By how much, and whether it would fit if the user had nothing else."""
    need = Use()
    need.add(job.resources, count)
    parts, would_fit = [], True
    for limit, used, asked, unit, shown in (
        (quota.cpu_milli, use.cpu_milli, need.cpu_milli, " cpu", shown_cpu),
        (quota.memory_bytes, use.memory_bytes, need.memory_bytes, " memory", shown_bytes),
        (quota.gpu, use.gpu, need.gpu, " gpu", str),
    ):
        if limit is not None and used + asked > limit:
            parts.append(f"{shown(limit)}{unit}, {shown(used)} used, {shown(asked)} needed")
            would_fit &= asked <= limit
    advice = "" if would_fit else ", more than the quota as a whole"
    text = f"the quota of user {job.user} is {' and '.join(parts)}{advice}"
    return Waiting(text, would_fit, position=None)


def _bounds_tasks(quota: Quota) -> bool:
    return quota.cpu_milli is not None or quota.memory_bytes is not None or quota.gpu is not None


def _holds(hold: Hold | None, gang: Gang) -> bool:
    return hold is not None and (hold.job_id, hold.head) == (gang[0].job_id, gang[1].start)
