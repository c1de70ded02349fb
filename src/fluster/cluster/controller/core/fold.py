"""`Fold`: writes rows into the state and notes them as changes."""

from __future__ import annotations

from fluster.cluster.controller.core.index import (
    discard,
    index_allocation,
    index_attempt,
    index_endpoint,
    index_finished,
    index_job,
    index_task,
    index_user,
    index_worker,
)
from fluster.cluster.controller.core.rows import (
    AllocationRow,
    AttemptRow,
    Changes,
    EndpointRow,
    JobRow,
    JournalRow,
    RequestRow,
    Row,
    TaskRow,
    TokenRow,
    UserRow,
    WorkerRow,
)
from fluster.cluster.controller.core.state import State, has_process
from fluster.cluster.ids import EndpointId

CONTROLLER = "controller"
"""Who causes what nobody asked for."""


class Fold:
    """Writes rows into a state and notes them as changes: the only way the state is altered.

    Args:
        state: Altered in place.
        now: Unix seconds.
        changes: Of the same turn so far.
        peer: Where the event was asked for; noted with what its asker caused, not with what follows from it.
    """

    __slots__ = ("changes", "now", "peer", "state")

    def __init__(self, state: State, now: float, changes: Changes | None = None, peer: str = "") -> None:
        self.state = state
        self.now = now
        self.peer = peer
        self.changes = changes if changes is not None else Changes()

    def note(self, key: object, row: Row) -> None:
        """Notes a row that is kept by the store alone."""
        self.changes.rows[type(row), key] = row

    def journal(
        self,
        kind: str,
        actor: str = CONTROLLER,
        *,
        job_id: str = "",
        task: int = -1,
        attempt: int = 0,
        worker_id: str = "",
        message: str = "",
    ) -> None:
        """Notes one line of history."""
        peer = self.peer if actor != CONTROLLER else ""
        self.changes.journal.append(JournalRow(self.now, kind, actor, job_id, task, attempt, worker_id, message, peer))

    def journal_attempt(self, kind: str, attempt: AttemptRow, message: str = "", actor: str = "") -> None:
        """Notes a line about an attempt; by default its worker caused it."""
        self.journal(
            kind,
            actor or f"worker:{attempt.worker_id}",
            job_id=attempt.job_id,
            task=attempt.task,
            attempt=attempt.number,
            worker_id=attempt.worker_id,
            message=message,
        )

    def put_job(self, job: JobRow) -> None:
        """Writes a job; a finished one stays until `drop_finished`."""
        if job.outcome is None:
            index_job(self.state, job)
        else:
            index_finished(self.state, job)
        self.note(job.job_id, job)
        self.changes.touched_jobs.add(job.job_id)

    def put_task(self, task: TaskRow) -> None:
        """Writes a task; new ones come in index order."""
        index_task(self.state, task)
        self.note((task.job_id, task.index), task)
        self.changes.touched_jobs.add(task.job_id)

    def put_attempt(self, attempt: AttemptRow) -> None:
        """Writes an attempt; new ones come in order of their numbers."""
        index_attempt(self.state, attempt)
        if attempt.stop_cause is not None and has_process(attempt):
            self.state.stopping_since.setdefault(attempt.uid, self.now)
        else:
            self.state.stopping_since.pop(attempt.uid, None)
        if self.state.idle_since and (worker := self.state.workers.get(attempt.worker_id)) is not None:
            self.state.idle_since.pop(worker.allocation_id, None)
        self.note(attempt.uid, attempt)
        self.changes.touched_workers.add(attempt.worker_id)

    def put_worker(self, worker: WorkerRow) -> None:
        """Writes a worker; one that is gone is forgotten."""
        index_worker(self.state, worker)
        self.note(worker.worker_id, worker)
        self.changes.touched_workers.add(worker.worker_id)

    def put_allocation(self, allocation: AllocationRow) -> None:
        """Writes an allocation; one that is gone is forgotten."""
        index_allocation(self.state, allocation, self.now)
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
        discard(self.state.endpoints_by_name, (endpoint.namespace, endpoint.name), endpoint_id)
        if endpoint.attempt_uid is not None:
            discard(self.state.endpoints_by_attempt, endpoint.attempt_uid, endpoint_id)
        self.changes.rows.pop((EndpointRow, endpoint_id), None)
        self.changes.deleted_endpoints.append(endpoint_id)

    def put_token(self, token: TokenRow) -> None:
        """Writes a token."""
        self.state.tokens[token.token_id] = token
        self.note(token.token_id, token)

    def drop_token(self, token_id: str) -> None:
        """Withdraws a token."""
        self.state.tokens.pop(token_id, None)
        self.state.joined.pop(token_id, None)
        self.changes.rows.pop((TokenRow, token_id), None)
        self.changes.deleted_tokens.append(token_id)

    def put_user(self, user: UserRow) -> None:
        """Writes a user."""
        index_user(self.state, user)
        self.note(user.name, user)

    def put_request(self, request: RequestRow) -> None:
        """Notes the answer of a mutating request."""
        self.note((request.caller, request.request_id), request)
