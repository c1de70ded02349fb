"""The controller's store in memory: what is committed is durable, all else dies with the process."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

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
from fluster.cluster.controller.store import Loaded, StoreFull
from fluster.cluster.ids import JobId


class Killed(BaseException):
    """The process was killed here: nothing after this line runs."""


class MemoryStore:
    """The part of `Store` that turns and loading use.

    Attributes:
        full: Commits find no room.
        journal: Every line of history.
        before_commit: Told what a commit is about to write, and may kill the process.
        after_commit: Told what is durable now, and may kill the process.
    """

    def __init__(self) -> None:
        self.full = False
        self.epoch = 0
        self.jobs: dict[JobId, JobRow] = {}
        self.tasks: defaultdict[JobId, dict[int, TaskRow]] = defaultdict(dict)
        self.attempts: defaultdict[JobId, dict[tuple[int, int], AttemptRow]] = defaultdict(dict)
        self.unfinished: dict[JobId, None] = {}
        self.kept: dict[tuple[type, object], Row] = {}
        self.requests: dict[object, RequestRow] = {}
        self.journal: list[JournalRow] = []
        self.before_commit: Callable[[Changes], None] = lambda _: None
        self.after_commit: Callable[[Changes], None] = lambda _: None

    def fork(self) -> MemoryStore:
        """A copy of its own: somebody copied the state directory."""
        twin = copy.copy(self)
        twin.jobs, twin.unfinished = dict(self.jobs), dict(self.unfinished)
        twin.tasks = defaultdict(dict, {job: dict(rows) for job, rows in self.tasks.items()})
        twin.attempts = defaultdict(dict, {job: dict(rows) for job, rows in self.attempts.items()})
        twin.kept, twin.requests, twin.journal = dict(self.kept), dict(self.requests), []
        twin.before_commit = twin.after_commit = lambda _: None
        return twin

    def begin_epoch(self) -> int:
        """Counts the controller's starts."""
        self.epoch += 1
        return self.epoch

    def commit(self, changes: Changes) -> list[int]:
        """Writes all of one turn, or nothing."""
        if self.full:
            raise StoreFull("no space left")
        self.before_commit(changes)
        self.write(changes)
        self.after_commit(changes)
        return []

    def write(self, changes: Changes) -> None:
        """Makes a turn durable."""
        for (kind, key), row in changes.rows.items():
            if isinstance(row, TaskRow):
                self.tasks[row.job_id][row.index] = row
            elif isinstance(row, AttemptRow):
                self.attempts[row.job_id][row.task, row.number] = row
            elif isinstance(row, JobRow):
                self.jobs[row.job_id] = row
                if row.outcome is None:
                    self.unfinished[row.job_id] = None
                else:
                    self.unfinished.pop(row.job_id, None)
            elif isinstance(row, RequestRow):
                self.requests[key] = row
            elif isinstance(row, WorkerRow | AllocationRow | EndpointRow | TokenRow | UserRow):
                self.kept[kind, key] = row
        for endpoint_id in changes.deleted_endpoints:
            self.kept.pop((EndpointRow, endpoint_id), None)
        for token_id in changes.deleted_tokens:
            self.kept.pop((TokenRow, token_id), None)
        self.journal += changes.journal

    def load(self) -> Loaded:
        """Everything unfinished."""
        of_kind: defaultdict[type, list[Any]] = defaultdict(list)
        for row in self.kept.values():
            of_kind[type(row)].append(row)
        jobs = sorted((self.jobs[job_id] for job_id in self.unfinished), key=lambda job: (job.submitted_at, job.job_id))
        return Loaded(
            jobs,
            [task for job in jobs for task in self.tasks[job.job_id].values()],
            [self.attempts[job.job_id][key] for job in jobs for key in sorted(self.attempts[job.job_id])],
            of_kind[WorkerRow],
            of_kind[AllocationRow],
            of_kind[EndpointRow],
            of_kind[TokenRow],
            of_kind[UserRow],
        )

    def job(self, job_id: JobId) -> JobRow | None:
        """The job, finished or not."""
        return self.jobs.get(job_id)

    def request(self, caller: str, request_id: str) -> RequestRow | None:
        """What this caller's request was answered."""
        return self.requests.get((caller, request_id))
