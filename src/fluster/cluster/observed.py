"""What a cluster reports: jobs, tasks, workers, endpoints, events, log lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fluster.cluster.ids import EndpointId, JobId, Namespace, VMId, WorkerId
from fluster.cluster.resources import ResourceConfig, WorkerResources
from fluster.cluster.states import Cause, JobStatus, TaskState, VMStatus, WorkerStatus


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """One task as last committed.

    Attributes:
        index: 0 to N-1.
        state: Its state.
        attempt: Number of the latest attempt; 0 when there was none yet.
        worker_id: Where that attempt is or was.
        exit_code: 0-255, 128+n for signal n; `None` if nothing ran or it has not ended.
        error_message: Why it ended without success, with the last lines printed.
        cause: The same as one word; `None` on success and before the end.
        started_at: Unix seconds, of the latest attempt's process.
        finished_at: Unix seconds.
    """

    index: int
    state: TaskState
    attempt: int = 0
    worker_id: WorkerId | None = None
    exit_code: int | None = None
    error_message: str | None = None
    cause: Cause | None = None
    started_at: float | None = None
    finished_at: float | None = None


@dataclass(frozen=True, slots=True)
class JobInfo:
    """One job as last committed; message, exit code and cause are those of the task that decided.

    Attributes:
        job_id: The job.
        name: As submitted; not unique.
        status: Never changes once `status.finished()`.
        error_message: Why it did not succeed, with the last lines printed.
        exit_code: 0-255, 128+n for signal n; `None` if nothing ran or it has not ended.
        cause: Why it did not succeed, as one word.
        pending_reason: What it waits for; `None` when it does not.
        submitted_at: Unix seconds; `None` only where unknown.
        started_at: Unix seconds; `None` before the first process runs.
        finished_at: Unix seconds; `None` before the end.
        tasks: By index; empty in listings.
        parent: The job that launched it.
        namespace: Where its endpoints are looked up.
    """

    job_id: JobId
    name: str
    status: JobStatus
    error_message: str | None = None
    exit_code: int | None = None
    cause: Cause | None = None
    pending_reason: str | None = None
    submitted_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    tasks: tuple[TaskStatus, ...] = ()
    parent: JobId | None = None
    namespace: Namespace = Namespace("")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One registration of a name.

    Attributes:
        endpoint_id: Its own id; several may share a name.
        name: What it is looked up by.
        address: "host:port".
        job_id: The job it belongs to; empty for one kept by a client outside of any job.
        namespace: Where the name is valid.
        metadata: What its owner tells about it.
        access_key: What proves a caller's right; filled by lookups only, `None` in listings.
    """

    endpoint_id: EndpointId
    name: str
    address: str
    job_id: JobId
    namespace: Namespace
    metadata: Mapping[str, str] = field(default_factory=dict)
    access_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class VMInfo:
    """One allocation of a backend.

    Attributes:
        vm_id: Made by the backend.
        address: Of its first host, "host:port"; empty while unknown.
        status: starting, ready or gone.
        resources: What was asked for; `None` where unknown (gone).
        hosts: Addresses of all hosts, by index within the slice; one where it is a single machine.
    """

    vm_id: VMId
    address: str
    status: VMStatus
    resources: ResourceConfig | None = None
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "status", VMStatus(self.status))


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker as the controller knows it.

    Attributes:
        worker_id: Kept across its restarts.
        address: Of its own service, "host:port"; may be empty.
        status: ready, lost or gone.
        resources: What it offers.
        free: What is not reserved.
        last_seen_at: Unix seconds of its last word.
    """

    worker_id: WorkerId
    address: str
    status: WorkerStatus
    resources: WorkerResources
    free: WorkerResources
    last_seen_at: float | None


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line a task printed.

    Attributes:
        job_id: Whose it is.
        task: Index of the task.
        attempt: Number of the attempt, from 1.
        stream: "stdout" or "stderr".
        timestamp: Unix seconds when the worker first saw it.
        data: Without the newline; bytes that are not UTF-8 as U+FFFD; split at 64 KiB.
    """

    job_id: JobId
    task: int
    attempt: int
    stream: Literal["stdout", "stderr"]
    timestamp: float
    data: str


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the journal: what changed, by whom, why.

    Attributes:
        seq: Rises without gaps being promised.
        timestamp: Unix seconds.
        kind: Past tense: "JobLaunched".
        job_id: `None` where no job is concerned; likewise ``task``, ``attempt`` and ``worker_id``.
        task: Index.
        attempt: Number, from 1.
        worker_id: Worker concerned.
        actor: Who caused it: "admin", "worker:W", "job:J", "controller".
        message: For people.
    """

    seq: int
    timestamp: float
    kind: str
    job_id: JobId | None = None
    task: int | None = None
    attempt: int | None = None
    worker_id: WorkerId | None = None
    actor: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job is where it is; printing it gives text for people.

    Attributes:
        state: The job's status.
        reasons: What it waits for with numbers, or why it ended and what to do; most important first.
        would_fit: Whether a ready worker could hold one task if nothing else ran.
        queue_position: 1 is next; `None` when it does not wait.
    """

    state: JobStatus
    reasons: tuple[str, ...]
    would_fit: bool
    queue_position: int | None = None

    def __str__(self) -> str:
        place = f", number {self.queue_position} in the queue" if self.queue_position is not None else ""
        return "\n".join([f"{self.state}{place}", *(f"  {reason}" for reason in self.reasons)])
