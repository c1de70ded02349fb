"""What can happen: every change of the state comes from one of these.

`peer` of those that somebody asked for is the address it was asked from.
"""

from __future__ import annotations

from dataclasses import dataclass

from fluster.cluster.controller.core.rows import (
    AllocationStatus,
    AttemptState,
    EndpointRow,
    JobRow,
    JournalRow,
    RequestRow,
    Resources,
    TokenRow,
)
from fluster.cluster.ids import AllocationId, AttemptUid, EndpointId, JobId, WorkerId
from fluster.cluster.states import Cause


@dataclass(frozen=True, slots=True)
class NewJob:
    """A validated job with its id, and its JobSpec message as bytes."""

    row: JobRow
    spec: bytes


@dataclass(frozen=True, slots=True)
class JobsSubmitted:
    """A client launched jobs: all of them or none."""

    jobs: tuple[NewJob, ...]
    request: RequestRow
    peer: str = ""


@dataclass(frozen=True, slots=True)
class TerminationRequested:
    """Somebody asked a job to stop, with all its descendants."""

    job_id: JobId
    actor: str
    peer: str = ""


@dataclass(frozen=True, slots=True)
class WorkerRegistered:
    """A worker's daemon started, for the first time or again."""

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
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Exit:
    """How an attempt ended, as its worker saw it. Fields as in `ExitReport`."""

    exit_code: int | None
    cause: Cause | None
    error_message: str
    finished_at: float
    peak_memory_bytes: int = 0
    stop_requested: bool = False
    fluster_fault: bool = False
    user_fault: bool = False
    result_inline: bytes | None = None
    result_blob: str = ""
    result_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """An attempt as its worker sees it: accepted (ASSIGNED), BUILDING or RUNNING.

    `exit` set: nothing of it runs and its logs are here. `environment`: what its environment took, for the journal.
    """

    uid: AttemptUid
    state: AttemptState
    started_at: float | None
    exit: Exit | None = None
    master_port: int = 0
    environment: str = ""


@dataclass(frozen=True, slots=True)
class WorkerSynced:
    """A worker's whole observed set."""

    worker_id: WorkerId
    incarnation: str
    observed: tuple[Observed, ...]
    resources: Resources | None = None


@dataclass(frozen=True, slots=True)
class EndpointRegistered:
    """An endpoint was published."""

    row: EndpointRow
    request: RequestRow | None
    peer: str = ""


@dataclass(frozen=True, slots=True)
class EndpointUnregistered:
    """An endpoint was withdrawn by its owner."""

    endpoint_id: EndpointId
    actor: str
    peer: str = ""


@dataclass(frozen=True, slots=True)
class AllocationWanted:
    """The core decided that machines are to be asked for: the intent, before the effect."""

    allocation_id: AllocationId
    backend: str
    resources: Resources


@dataclass(frozen=True, slots=True)
class AllocationUnwanted:
    """The core decided that machines are to be given back: the intent, before the effect.

    `came_to_nothing`: they never started, or never joined.
    """

    allocation_id: AllocationId
    reason: str
    came_to_nothing: bool = False


@dataclass(frozen=True, slots=True)
class AllocationObserved:
    """The backend told of an allocation."""

    allocation_id: AllocationId
    status: AllocationStatus
    hosts: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class AllocationRefused:
    """The backend has no such machines to give now: a stockout, a quota."""

    allocation_id: AllocationId
    error: str


@dataclass(frozen=True, slots=True)
class TokenCreated:
    """A token was made.

    Attributes:
        quota: Fields of the user's quota that change with it.
    """

    row: TokenRow
    request: RequestRow
    actor: str
    quota: tuple[tuple[str, int | None], ...] = ()
    peer: str = ""


@dataclass(frozen=True, slots=True)
class TokenRevoked:
    """Tokens were withdrawn: this one, or all of a user."""

    token_id: str
    actor: str
    user: str = ""
    peer: str = ""


@dataclass(frozen=True, slots=True)
class RequestsRefused:
    """Requests were refused. They change nothing, but history tells of them."""

    lines: tuple[JournalRow, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """Where one task of a gang goes."""

    task: int
    worker_id: WorkerId


@dataclass(frozen=True, slots=True)
class GangPlaced:
    """The scheduler found room for a whole gang."""

    job_id: JobId
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class MachinesForgotten:
    """The cluster was shut down as a whole since these rows were written: none of its machines is there any more."""


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Nothing happened but time: leases, time limits of waiting and of endpoints are looked at."""


Event = (
    JobsSubmitted
    | TerminationRequested
    | WorkerRegistered
    | WorkerSynced
    | EndpointRegistered
    | EndpointUnregistered
    | AllocationWanted
    | AllocationUnwanted
    | AllocationObserved
    | AllocationRefused
    | TokenCreated
    | TokenRevoked
    | RequestsRefused
    | GangPlaced
    | MachinesForgotten
    | TimePassed
)
