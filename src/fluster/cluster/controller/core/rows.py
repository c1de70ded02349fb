"""The rows that are the truth: what the store keeps and the core folds events into."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fluster.cluster.ids import AllocationId, AttemptUid, EndpointId, JobId, Namespace, WorkerId
from fluster.cluster.states import Cause, JobStatus, TaskState, WorkerStatus


class AttemptState(StrEnum):
    """State of one attempt."""

    ASSIGNED = "assigned"
    BUILDING = "building"
    RUNNING = "running"
    EXITED = "exited"  # ended with 0; waits for its gang, resources still reserved
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"


ENDED_STATES = frozenset({AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.STOPPED})
PROCESS_STATES = frozenset({AttemptState.ASSIGNED, AttemptState.BUILDING, AttemptState.RUNNING})
"""States in which a process may exist."""


class Charge(StrEnum):
    """Which of its gang's budgets the end of an attempt was charged to."""

    NONE = "none"
    FAILURE = "failure"
    PREEMPTION = "preemption"


class AllocationStatus(StrEnum):
    """REQUESTED: asked of the backend, or about to be. RELEASING: to be given back, or about to be."""

    REQUESTED = "requested"
    READY = "ready"
    RELEASING = "releasing"
    GONE = "gone"


COMING = (AllocationStatus.REQUESTED, AllocationStatus.READY)
"""Of allocations that are there, or on their way."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a task needs, or a worker has. `slots`: tasks at one time."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    gpu: int = 0
    slots: int = 1
    gpu_variant: str = ""
    tpu_variant: str = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """Budgets of one gang: n allows n retries. Which of them a signal is charged to is the job's choice."""

    max_failures: int = 0
    max_preemptions: int = 100
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    signals_are_preemptions: bool = False


@dataclass(frozen=True, slots=True)
class Quota:
    """What a user may have at one time; `None`: without limit. `jobs`: unfinished ones; the rest of tasks that run."""

    cpu_milli: int | None = None
    memory_bytes: int | None = None
    gpu: int | None = None
    jobs: int | None = None


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job.

    Attributes:
        owner: Identity that launched it: "admin", "user:NAME" or "job:ID".
        depth: 0 without a parent, else the parent's + 1.
        priority: 0 low, 1 normal, 2 high.
        gang: One gang of all tasks; else each task is a gang of its own.
        resources: Of one task.
        slice_hosts: Hosts of one TPU slice; 0 without TPU.
        stop_at: When it was told to stop, by a user, its parent's end or a spent budget.
        stop_cause: TERMINATED, or the cause that spent the budget.
        outcome: Set once, by the transition that ends the job, with everything below it.
        decided_by: Index of the task that decided; -1 none.
        user: For whom it runs: who launched it, or the job it descends from. Empty: the administrator.
    """

    job_id: JobId
    name: str
    namespace: Namespace
    owner: str
    parent: JobId | None
    depth: int
    priority: int
    num_tasks: int
    gang: bool
    resources: Resources
    slice_hosts: int
    retry: Retry
    timeout_s: float | None
    scheduling_timeout_s: float | None
    ports: tuple[str, ...]
    submitted_at: float
    stop_at: float | None = None
    stop_cause: Cause | None = None
    stop_reason: str = ""
    outcome: JobStatus | None = None
    finished_at: float | None = None
    decided_by: int = -1
    cause: Cause | None = None
    exit_code: int | None = None
    error_message: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True)
class SpecRow:
    """The job's JobSpec message as it was launched: opaque here, what workers are sent."""

    job_id: JobId
    spec: bytes


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task. `attempt` is the number of its latest attempt, 0: none yet; `not_before` ends the backoff."""

    job_id: JobId
    index: int
    state: TaskState = TaskState.PENDING
    attempt: int = 0
    not_before: float = 0.0


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One run of a task.

    Attributes:
        number: From 1; the uid is unique over all jobs and attempts.
        incarnation: Of the worker that holds it.
        observed: The worker has reported it at least once.
        stop_cause: Set when it is told to stop: TERMINATED or PREEMPTED.
        charge: What its end cost its gang; at most one attempt of a gang's round is charged.
        master_port: Chosen by rank 0's worker; 0 not yet.
    """

    uid: AttemptUid
    job_id: JobId
    task: int
    number: int
    worker_id: WorkerId
    incarnation: str
    placed_at: float
    state: AttemptState = AttemptState.ASSIGNED
    observed: bool = False
    started_at: float | None = None
    finished_at: float | None = None
    exit_code: int | None = None
    cause: Cause | None = None
    error_message: str = ""
    peak_memory_bytes: int = 0
    stop_cause: Cause | None = None
    stop_reason: str = ""
    charge: Charge = Charge.NONE
    master_port: int = 0


@dataclass(frozen=True, slots=True)
class ResultRow:
    """What an attempt's entrypoint gave: bytes of an Outcome in place, or the hash of the blob that holds them."""

    uid: AttemptUid
    inline: bytes | None
    blob: str
    sha256: str


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker. Its lease is not stored: a restarted controller grants every known worker a full one.

    Attributes:
        joined_by: Id of the join token it came with.
        allocation_id: Empty when it was started by hand.
        advertise_host: Where its jobs can be reached.
    """

    worker_id: WorkerId
    credential_sha256: str
    incarnation: str
    address: str
    advertise_host: str
    host_id: str
    allocation_id: AllocationId
    resources: Resources
    cgroup: str
    joined_by: str
    registered_at: float
    status: WorkerStatus = WorkerStatus.READY


@dataclass(frozen=True, slots=True)
class AllocationRow:
    """Machines granted together and released once. Written before the backend is asked."""

    allocation_id: AllocationId
    backend: str
    resources: Resources
    created_at: float
    status: AllocationStatus = AllocationStatus.REQUESTED
    hosts: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """Machines of one kind that may be asked for when there is demand. Not a row: told at the start.

    Attributes:
        backend: Name of who provides them; each zone has one of its own.
        resources: Of one host.
        hosts: Of one allocation; more than 1 for a slice.
        at_least: Allocations kept also while idle.
        at_most: Allocations there may be at one time.
    """

    backend: str
    resources: Resources
    hosts: int = 1
    at_least: int = 0
    at_most: int = 1

    def made(self, row: AllocationRow) -> bool:
        """Whether this allocation was asked for by this offer."""
        return row.backend == self.backend and row.resources == self.resources


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """name -> address. Owned by an attempt, or (attempt_uid None) kept by a lease that is not stored."""

    endpoint_id: EndpointId
    name: str
    namespace: Namespace
    address: str
    owner: str
    job_id: JobId | None
    attempt_uid: AttemptUid | None
    registered_at: float
    metadata: tuple[tuple[str, str], ...] = ()
    access_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A user's token, or one by which workers join; only its hash is kept.

    Attributes:
        uses: Of a join token; those left are `uses` minus the workers that joined by it.
        expires_at: Infinite: without end.
        user: Whose it is; empty: a join token.
        namespace: Of the user's token.
    """

    token_id: str
    sha256: str
    uses: int
    expires_at: float
    created_at: float
    user: str = ""
    namespace: Namespace = Namespace("")


@dataclass(frozen=True, slots=True)
class UserRow:
    """Somebody for whom a token was made. Kept when the last token ends: quotas are of users, not of tokens."""

    name: str
    quota: Quota
    created_at: float


@dataclass(frozen=True, slots=True)
class RequestRow:
    """A mutating request that was answered: the same id gives the same answer.

    Attributes:
        caller: Identity that sent it; ids of different callers do not meet.
        body_sha256: Of what was asked; another body under one id is refused.
        answer: Ids, comma-separated.
    """

    caller: str
    request_id: str
    kind: str
    body_sha256: str
    answer: str
    at: float


@dataclass(frozen=True, slots=True)
class JournalRow:
    """One line of history, written in the transaction of the transition it tells of.

    Attributes:
        kind: Past tense: "JobLaunched".
        task: -1 when it concerns no single task.
        attempt: Number; 0 when it concerns no attempt.
        actor: Who caused it: "admin", "user:U", "job:J", "worker:W", "token:T", "anonymous", "controller".
        peer: The address it was asked from; empty where nobody asked.
    """

    at: float
    kind: str
    actor: str
    job_id: str = ""
    task: int = -1
    attempt: int = 0
    worker_id: str = ""
    message: str = ""
    peer: str = ""


Row = (
    JobRow
    | SpecRow
    | TaskRow
    | AttemptRow
    | ResultRow
    | WorkerRow
    | AllocationRow
    | EndpointRow
    | TokenRow
    | UserRow
    | RequestRow
)


@dataclass(slots=True)
class Changes:
    """What one turn changes: rows to write, endpoints and tokens to delete, journal lines. One transaction.

    Attributes:
        rows: By kind and key; the last version of each.
        deleted_endpoints, deleted_tokens: Ids.
        touched_workers: Those whose desired set differs now.
        touched_jobs: Those whose tasks changed.
    """

    rows: dict[tuple[type, object], Row] = field(default_factory=dict)
    deleted_endpoints: list[EndpointId] = field(default_factory=list)
    deleted_tokens: list[str] = field(default_factory=list)
    journal: list[JournalRow] = field(default_factory=list)
    touched_workers: set[WorkerId] = field(default_factory=set)
    touched_jobs: set[JobId] = field(default_factory=set)

    def __bool__(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self.rows or self.deleted_endpoints or self.deleted_tokens or self.journal)
