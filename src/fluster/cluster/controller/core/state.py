"""What the controller knows: rows of everything unfinished, with the indexes derived from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from fluster.cluster.controller.core.capacity import Room, Use, room, whole
from fluster.cluster.controller.core.machines import Machines, look, offer_of
from fluster.cluster.controller.core.rows import (
    PROCESS_STATES,
    AllocationRow,
    AllocationStatus,
    AttemptRow,
    EndpointRow,
    JobRow,
    Offer,
    Quota,
    Resources,
    TaskRow,
    TokenRow,
    UserRow,
    WorkerRow,
)
from fluster.cluster.controller.core.waits import Waits
from fluster.cluster.ids import AllocationId, AttemptUid, EndpointId, JobId, Namespace, WorkerId
from fluster.cluster.states import WorkerStatus


@dataclass(frozen=True, slots=True)
class Settings:
    """Times and bounds the core decides by. Seconds.

    Attributes:
        stop_grace_s: SIGTERM to SIGKILL.
        lease_margin_s: Beyond lease and grace, for what clocks and kernels take.
        silent_release_s: An allocation that is silent so long is released, which proves its death; not while most of
            its backend's are (`silence`).
        start_timeout_s: A machine that has not started within it is given up, and another one tried.
        join_timeout_s: Likewise for one that has started and whose workers have not joined.
        idle_release_s: A machine of an offer on which nothing ran for so long, and which nobody waits for, is given
            back.
        refusal_backoff_s: A backend that had no machine, or one that was given up, is not asked for so long; then for
            twice as long, up to `max_refusal_backoff_s`.
        backend: Who provides `pool`.
        max_unfinished_jobs_per_user: Of users whose quota says nothing else; not of the administrator.
        pool: Allocations to hold at all times, by size.
        offers: What may be asked for when that is not enough, in order of preference; none of `backend`.
    """

    worker_lease_s: float = 300.0
    stop_grace_s: float = 10.0
    lease_margin_s: float = 5.0
    silent_release_s: float = 60.0
    start_timeout_s: float = 600.0
    join_timeout_s: float = 300.0
    idle_release_s: float = 300.0
    refusal_backoff_s: float = 10.0
    max_refusal_backoff_s: float = 300.0
    endpoint_lease_s: float = 60.0
    max_depth: int = 32
    max_endpoints_per_job: int = 10_000
    max_unfinished_jobs: int = 1_000_000
    max_unfinished_jobs_per_user: int = 100_000
    max_users: int = 10_000
    backend: str = "none"
    pool: tuple[Resources, ...] = ()
    offers: tuple[Offer, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A backend had no machine to give, or one that came to nothing.

    Attributes:
        times: In a row.
        until: It is not asked again before.
    """

    error: str
    times: int
    until: float


@dataclass(frozen=True, slots=True)
class Ready:
    """Workers that may be given work, in a fixed order, and what they have together."""

    workers: tuple[WorkerRow, ...]
    whole: Use


@dataclass(slots=True)
class State:
    """Memory of one controller, folded in place by `apply`. `last_seen` and leases live here only.

    Attributes:
        tasks: By job, in index order.
        history: All attempts of unfinished jobs, by job and task, oldest first.
        attempts: Those attempts by uid.
        pending: By job: its tasks that wait to be placed, where there are any.
        held: Attempts that reserve resources, by worker.
        children: By parent: unfinished jobs, and finished ones that unfinished ones descend from.
        parents: The same the other way round.
        jobs_by_user: Unfinished ones.
        joined: Workers that ever joined by each token there is.
        last_seen: When each worker last asked; its lease counts from then.
        last_words: When the incarnation before was last heard of, until the new one tells what it holds.
        hushed: When most allocations of a backend were last silent at once.
        endpoint_seen: When each leased endpoint was last renewed.
        stopping_since: When each attempt that is to stop was told so; not known of those from before a restart.
        allocated_since: When each allocation came into its status; since the start at most.
        idle_since: Since when nothing runs on each allocation of an offer.
        refusals: Of backends, by name.
        waiting: Why each waiting job waits, as the last `schedule` found.
        hold: What the last `schedule` held back, to go on with.
        late_reports: Reports of attempts that had ended before: they change nothing.
        revision: Counts what alters what `schedule` reads: while it stays, nothing that waits has a better chance.
        rooms: What workers have left, derived anew once a row it follows from has changed: `room`.
        ready: Workers that may be given work, likewise: `ready_workers`.
        looked: What allocations and workers say together, likewise: `machines`.
    """

    settings: Settings = field(default_factory=Settings)
    jobs: dict[JobId, JobRow] = field(default_factory=dict)
    tasks: dict[JobId, list[TaskRow]] = field(default_factory=dict)
    history: dict[tuple[JobId, int], list[AttemptRow]] = field(default_factory=dict)
    attempts: dict[AttemptUid, AttemptRow] = field(default_factory=dict)
    workers: dict[WorkerId, WorkerRow] = field(default_factory=dict)
    allocations: dict[AllocationId, AllocationRow] = field(default_factory=dict)
    endpoints: dict[EndpointId, EndpointRow] = field(default_factory=dict)
    tokens: dict[str, TokenRow] = field(default_factory=dict)
    users: dict[str, UserRow] = field(default_factory=dict)

    pending: defaultdict[JobId, dict[int, None]] = field(default_factory=lambda: defaultdict(dict))
    held: defaultdict[WorkerId, dict[AttemptUid, AttemptRow]] = field(default_factory=lambda: defaultdict(dict))
    children: defaultdict[JobId, set[JobId]] = field(default_factory=lambda: defaultdict(set))
    parents: dict[JobId, JobId] = field(default_factory=dict)
    jobs_by_user: defaultdict[str, dict[JobId, None]] = field(default_factory=lambda: defaultdict(dict))
    joined: defaultdict[str, set[WorkerId]] = field(default_factory=lambda: defaultdict(set))
    endpoints_by_name: defaultdict[tuple[Namespace, str], dict[EndpointId, None]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    endpoints_by_attempt: defaultdict[AttemptUid, dict[EndpointId, None]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    last_seen: dict[WorkerId, float] = field(default_factory=dict)
    last_words: dict[WorkerId, float] = field(default_factory=dict)
    hushed: dict[str, float] = field(default_factory=dict)
    endpoint_seen: dict[EndpointId, float] = field(default_factory=dict)
    stopping_since: dict[AttemptUid, float] = field(default_factory=dict)
    allocated_since: dict[AllocationId, float] = field(default_factory=dict)
    idle_since: dict[AllocationId, float] = field(default_factory=dict)
    refusals: dict[str, Refusal] = field(default_factory=dict)
    waiting: Waits = field(default_factory=Waits)
    hold: object = None
    late_reports: int = 0
    revision: int = 0
    rooms: dict[WorkerId, Room] = field(default_factory=dict)
    ready: Ready | None = None
    looked: Machines | None = None

    def current(self, job_id: JobId, task: int) -> AttemptRow | None:
        """The task's latest attempt."""
        attempts = self.history.get((job_id, task))
        return attempts[-1] if attempts else None

    def gang_tasks(self, job: JobRow, task: int) -> range:
        """Indexes of the tasks that share a gang with this one."""
        return range(job.num_tasks) if job.gang else range(task, task + 1)

    def gang_heads(self, job: JobRow) -> range:
        """The first task of each of the job's gangs."""
        return range(1) if job.gang else range(job.num_tasks)

    def demand(self, attempt: AttemptRow) -> Resources:
        """What the attempt reserves on its worker."""
        return self.jobs[attempt.job_id].resources

    def room(self, worker: WorkerRow) -> Room:
        """What the worker has left, derived from the attempts it holds. To be read: who counts it down takes a copy.

        Members of a gang that had exited on an earlier machine of its name, one that is gone, reserve nothing here.
        """
        left = self.rooms.get(worker.worker_id)
        if left is None:
            left, jobs = room(worker.resources), self.jobs
            for attempt in self.held.get(worker.worker_id, {}).values():
                if attempt.placed_at >= worker.registered_at:
                    left.take(jobs[attempt.job_id].resources)
            self.rooms[worker.worker_id] = left
        return left

    def free(self, worker: WorkerRow) -> Resources:
        """What the worker has left, as a value."""
        return self.room(worker).resources()

    def ready_workers(self) -> Ready:
        """Workers that may be given work."""
        if self.ready is None:
            rows = (self.workers[worker_id] for worker_id in sorted(self.workers))
            ready = [row for row in rows if row.status is WorkerStatus.READY and not self.leaving(row)]
            self.ready = Ready(tuple(ready), whole(row.resources for row in ready))
        return self.ready

    def machines(self) -> Machines:
        """What allocations and workers say together."""
        if self.looked is None:
            settings = self.settings
            self.looked = look(
                self.allocations.values(), self.workers.values(), settings.offers, settings.backend, settings.pool
            )
        return self.looked

    def leaving(self, worker: WorkerRow) -> bool:
        """Whether the worker's allocation is being given back, or was."""
        if not worker.allocation_id:
            return False
        allocation = self.allocations.get(worker.allocation_id)
        return allocation is None or allocation.status is AllocationStatus.RELEASING

    def offer_of(self, row: AllocationRow) -> Offer | None:
        """The offer an allocation was asked for by; `None`: it belongs to the pool, or the offer is made no more."""
        return offer_of(row, self.settings.offers)

    def workers_of(self, allocation_id: AllocationId) -> list[WorkerRow]:
        """Workers of an allocation that are not known to be gone."""
        return [w for w in self.workers.values() if w.allocation_id == allocation_id]

    def descendants(self, job_id: JobId) -> Iterator[JobId]:
        """Unfinished jobs launched by this one, and by those, in a fixed order; also finished ones in between."""
        for child in sorted(self.children.get(job_id, ())):
            yield child
            yield from self.descendants(child)

    def quota(self, user: str) -> Quota:
        """What the user may have; the administrator has no quota."""
        row = self.users.get(user)
        quota = Quota() if row is None else row.quota
        if user and quota.jobs is None:
            return Quota(quota.cpu_milli, quota.memory_bytes, quota.gpu, self.settings.max_unfinished_jobs_per_user)
        return quota

    def token_uses_left(self, token: TokenRow) -> int:
        """Derived from the workers that joined by it."""
        return token.uses - len(self.joined.get(token.token_id, ()))


def has_process(attempt: AttemptRow) -> bool:
    """Whether a process of this attempt may exist somewhere."""
    return attempt.state in PROCESS_STATES
