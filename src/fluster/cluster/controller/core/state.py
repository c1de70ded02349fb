"""What the controller knows: rows of everything unfinished, with the indexes derived from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from fluster.cluster.controller.core.capacity import Room, room
from fluster.cluster.controller.core.rows import (
    ENDED_STATES,
    PROCESS_STATES,
    AllocationRow,
    AllocationStatus,
    AttemptRow,
    Changes,
    EndpointRow,
    JobRow,
    JournalRow,
    RequestRow,
    Resources,
    Row,
    TaskRow,
    TokenRow,
    WorkerRow,
)
from fluster.cluster.ids import AllocationId, AttemptUid, EndpointId, JobId, Namespace, WorkerId
from fluster.cluster.states import WorkerStatus

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V", bound=Hashable)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Settings:
    """Times and bounds the core decides by. Seconds.

    Attributes:
        stop_grace_s: SIGTERM to SIGKILL.
        lease_margin_s: Beyond lease and grace, for what clocks and kernels take.
        silent_release_s: An allocation that is silent so long is released, which proves its death.
        pool: Allocations to hold at all times, by size.
    """

    worker_lease_s: float = 300.0
    stop_grace_s: float = 10.0
    lease_margin_s: float = 5.0
    silent_release_s: float = 60.0
    endpoint_lease_s: float = 60.0
    max_depth: int = 32
    max_endpoints_per_job: int = 10_000
    max_unfinished_jobs: int = 1_000_000
    backend: str = "none"
    pool: tuple[Resources, ...] = ()


@dataclass(slots=True)
class State:
    """Memory of one controller, folded in place by `apply`. `last_seen` and leases live here only.

    Attributes:
        tasks: By job, in index order.
        history: All attempts of unfinished jobs, by job and task, oldest first.
        attempts: Those attempts by uid.
        held: Attempts that reserve resources, by worker.
        children: Unfinished jobs by parent.
        last_seen: When each worker last asked; its lease counts from then.
        endpoint_seen: When each leased endpoint was last renewed.
        waiting: Why each waiting job waits, as the last `schedule` found.
        hold: What the last `schedule` held back, to go on with.
        late_reports: Reports of attempts that had ended before: they change nothing.
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

    held: defaultdict[WorkerId, dict[AttemptUid, AttemptRow]] = field(default_factory=lambda: defaultdict(dict))
    children: defaultdict[JobId, set[JobId]] = field(default_factory=lambda: defaultdict(set))
    endpoints_by_name: defaultdict[tuple[Namespace, str], dict[EndpointId, None]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    endpoints_by_attempt: defaultdict[AttemptUid, dict[EndpointId, None]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    last_seen: dict[WorkerId, float] = field(default_factory=dict)
    endpoint_seen: dict[EndpointId, float] = field(default_factory=dict)
    waiting: dict[JobId, str] = field(default_factory=dict)
    hold: object = None
    late_reports: int = 0

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
        """What the worker has left, derived from the attempts it holds."""
        left = room(worker.resources)
        for attempt in self.held.get(worker.worker_id, {}).values():
            left.take(self.demand(attempt))
        return left

    def free(self, worker: WorkerRow) -> Resources:
        """What the worker has left, as a value."""
        return self.room(worker).resources()

    def ready_workers(self) -> Iterator[WorkerRow]:
        """Workers that may be given work, in a fixed order."""
        for worker_id in sorted(self.workers):
            worker = self.workers[worker_id]
            if worker.status is WorkerStatus.READY and not self.leaving(worker):
                yield worker

    def leaving(self, worker: WorkerRow) -> bool:
        """Whether the worker's allocation is being given back."""
        allocation = self.allocations.get(worker.allocation_id)
        return allocation is not None and allocation.status in (AllocationStatus.RELEASING, AllocationStatus.GONE)

    def workers_of(self, allocation_id: AllocationId) -> list[WorkerRow]:
        """Workers of an allocation that are not known to be gone."""
        return [w for w in self.workers.values() if w.allocation_id == allocation_id and allocation_id]

    def descendants(self, job_id: JobId) -> Iterator[JobId]:
        """Unfinished jobs launched by this one, and by those, in a fixed order."""
        for child in sorted(self.children.get(job_id, ())):
            yield child
            yield from self.descendants(child)

    def token_uses_left(self, token: TokenRow) -> int:
        """Derived from the workers that joined by it."""
        return token.uses - sum(1 for w in self.workers.values() if w.joined_by == token.token_id)


class Fold:
    """Writes rows into a state and notes them as changes: the only way the state is altered."""

    __slots__ = ("changes", "now", "state")

    def __init__(self, state: State, now: float, changes: Changes | None = None) -> None:
        self.state = state
        self.now = now
        self.changes = changes if changes is not None else Changes()

    def note(self, key: object, row: Row) -> None:
        """Notes a row that is kept by the store alone."""
        self.changes.rows[type(row), key] = row

    def journal(
        self,
        kind: str,
        actor: str = "controller",
        *,
        job_id: str = "",
        task: int = -1,
        attempt: int = 0,
        worker_id: str = "",
        message: str = "",
    ) -> None:
        """Notes one line of history."""
        self.changes.journal.append(JournalRow(self.now, kind, actor, job_id, task, attempt, worker_id, message))

    def put_job(self, job: JobRow) -> None:
        """Writes a job; a finished one stays until `drop_finished`."""
        self.state.jobs[job.job_id] = job
        if job.parent is not None:
            if job.outcome is None:
                self.state.children[job.parent].add(job.job_id)
            else:
                siblings = self.state.children.get(job.parent)
                if siblings is not None:
                    siblings.discard(job.job_id)
                    if not siblings:
                        del self.state.children[job.parent]
        self.note(job.job_id, job)
        self.changes.touched_jobs.add(job.job_id)

    def put_task(self, task: TaskRow) -> None:
        """Writes a task; new ones come in index order."""
        tasks = self.state.tasks.setdefault(task.job_id, [])
        if task.index < len(tasks):
            tasks[task.index] = task
        else:
            tasks.append(task)
        self.note((task.job_id, task.index), task)
        self.changes.touched_jobs.add(task.job_id)

    def put_attempt(self, attempt: AttemptRow) -> None:
        """Writes an attempt; new ones come in order of their numbers."""
        index_attempt(self.state, attempt)
        self.note(attempt.uid, attempt)
        self.changes.touched_workers.add(attempt.worker_id)

    def put_worker(self, worker: WorkerRow) -> None:
        """Writes a worker; one that is gone is forgotten."""
        if worker.status is WorkerStatus.GONE:
            self.state.workers.pop(worker.worker_id, None)
            self.state.last_seen.pop(worker.worker_id, None)
        else:
            self.state.workers[worker.worker_id] = worker
        self.note(worker.worker_id, worker)
        self.changes.touched_workers.add(worker.worker_id)

    def put_allocation(self, allocation: AllocationRow) -> None:
        """Writes an allocation; one that is gone is forgotten."""
        if allocation.status is AllocationStatus.GONE:
            self.state.allocations.pop(allocation.allocation_id, None)
        else:
            self.state.allocations[allocation.allocation_id] = allocation
        self.note(allocation.allocation_id, allocation)

    def put_endpoint(self, endpoint: EndpointRow) -> None:
        """Publishes an endpoint."""
        index_endpoint(self.state, endpoint, self.now)
        self.note(endpoint.endpoint_id, endpoint)
        if endpoint.endpoint_id in self.changes.deleted_endpoints:
            self.changes.deleted_endpoints.remove(endpoint.endpoint_id)

    def drop_endpoint(self, endpoint_id: EndpointId) -> None:
        """Withdraws an endpoint."""
        endpoint = self.state.endpoints.pop(endpoint_id)
        self.state.endpoint_seen.pop(endpoint_id, None)
        _discard(self.state.endpoints_by_name, (endpoint.namespace, endpoint.name), endpoint_id)
        if endpoint.attempt_uid is not None:
            _discard(self.state.endpoints_by_attempt, endpoint.attempt_uid, endpoint_id)
        self.changes.rows.pop((EndpointRow, endpoint_id), None)
        self.changes.deleted_endpoints.append(endpoint_id)

    def put_token(self, token: TokenRow) -> None:
        """Writes a join token."""
        self.state.tokens[token.token_id] = token
        self.note(token.token_id, token)

    def drop_token(self, token_id: str) -> None:
        """Withdraws a join token."""
        self.state.tokens.pop(token_id, None)
        self.changes.rows.pop((TokenRow, token_id), None)
        self.changes.deleted_tokens.append(token_id)

    def put_request(self, request: RequestRow) -> None:
        """Notes the answer of a mutating request."""
        self.note((request.caller, request.request_id), request)


def index_attempt(state: State, attempt: AttemptRow) -> None:
    """Puts an attempt into the state's indexes."""
    history = state.history.setdefault((attempt.job_id, attempt.task), [])
    position = attempt.number - (history[0].number if history else attempt.number)
    if position < len(history):
        history[position] = attempt
    else:
        history.append(attempt)
    state.attempts[attempt.uid] = attempt
    if attempt.state in ENDED_STATES:
        _discard(state.held, attempt.worker_id, attempt.uid)
    else:
        state.held[attempt.worker_id][attempt.uid] = attempt


def index_endpoint(state: State, endpoint: EndpointRow, now: float) -> None:
    """Puts an endpoint into the state's indexes; a leased one starts with a full lease."""
    state.endpoints[endpoint.endpoint_id] = endpoint
    state.endpoints_by_name[endpoint.namespace, endpoint.name][endpoint.endpoint_id] = None
    if endpoint.attempt_uid is None:
        state.endpoint_seen[endpoint.endpoint_id] = now
    else:
        state.endpoints_by_attempt[endpoint.attempt_uid][endpoint.endpoint_id] = None


def drop_finished(state: State, job_ids: Iterable[JobId]) -> None:
    """Forgets finished jobs, once their end is committed: from then on they are read from the store."""
    for job_id in job_ids:
        job = state.jobs.get(job_id)
        if job is None or job.outcome is None:
            continue
        del state.jobs[job_id]
        for task in state.tasks.pop(job_id, ()):
            for attempt in state.history.pop((job_id, task.index), ()):
                state.attempts.pop(attempt.uid, None)


def has_process(attempt: AttemptRow) -> bool:
    """Whether a process of this attempt may exist somewhere."""
    return attempt.state in PROCESS_STATES


def _discard(index: defaultdict[_K, dict[_V, _T]], key: _K, value: _V) -> None:
    entries = index.get(key)
    if entries is not None:
        entries.pop(value, None)
        if not entries:
            del index[key]
