"""What the handlers of all RPCs share: the loop, the stores, and who may see what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fluster.cluster.controller import view
from fluster.cluster.controller.auth import Authenticator, Identity
from fluster.cluster.controller.blobs import BlobStore
from fluster.cluster.controller.building import Building
from fluster.cluster.controller.core.rows import AttemptRow, JobRow, TaskRow
from fluster.cluster.controller.core.state import State
from fluster.cluster.controller.logstore import LogStore
from fluster.cluster.controller.loop import Loop
from fluster.cluster.controller.opencalls import OpenCalls
from fluster.cluster.controller.refusals import Refusals
from fluster.cluster.controller.store import Store
from fluster.cluster.ids import JobId, Namespace
from fluster.cluster.sealing import Sealer
from fluster.cluster.tokens import TokenKind
from fluster.cluster.validation import check_id, check_name
from fluster.errors import JobNotFound, NotPermitted
from fluster.rpc.gate import current_identity
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

if TYPE_CHECKING:
    from fluster.cluster.controller.tls import ServerTls


class HiddenJob(JobNotFound):
    """There is one, which the caller must not learn: for the journal alone."""


@dataclass(frozen=True, slots=True)
class Controller:
    """One controller's parts.

    Attributes:
        namespace: The default one.
        page_key: Signs where listings go on, and seals secrets.
        on_loopback: It is reached from its own machine alone, and so are its jobs.
        tls: What its connections are encrypted with; `None`: they are not.
    """

    loop: Loop
    store: Store
    blobs: BlobStore
    logs: LogStore
    auth: Authenticator
    refusals: Refusals
    calls: OpenCalls
    namespace: Namespace
    page_key: bytes
    on_loopback: bool = True
    tls: ServerTls | None = None
    building: Building = field(default_factory=Building)

    @property
    def sealer(self) -> Sealer:
        """Of what is stored encrypted."""
        return Sealer(self.page_key)

    @property
    def pin(self) -> str | None:
        """Of the authority that tokens name to those who are given them."""
        return self.tls.pin if self.tls is not None else None

    @property
    def state(self) -> State:
        """As last committed, between turns."""
        return self.loop.state

    def caller(self) -> Identity:
        """Who sent the request that is being handled."""
        return current_identity(Identity)

    def caller_attempt(self, who: Identity) -> AttemptRow | None:
        """The attempt that speaks; `None`: it is no attempt that speaks.

        Raises:
            NotPermitted: It has ended since its token was looked at.
        """
        if who.kind is not TokenKind.ATTEMPT:
            return None
        attempt = self.state.attempts.get(who.attempt_uid)
        if attempt is None:
            raise NotPermitted("the calling attempt has ended")
        return attempt

    def caller_job(self, who: Identity) -> JobRow | None:
        """The job whose attempt speaks; `None`: it is no attempt that speaks. Raises as `caller_attempt`."""
        attempt = self.caller_attempt(who)
        return None if attempt is None else self.state.jobs[attempt.job_id]

    def namespace_of(self, who: Identity, asked: str) -> Namespace:
        """The namespace a request is about.

        Raises:
            NotPermitted: A user or a job asked for another than its own.
        """
        if asked:
            check_name(asked, "namespace")
        own = self.own_namespace(who)
        if own is None:
            return Namespace(asked) if asked else self.namespace
        if asked and asked != own:
            raise NotPermitted(f"who belongs to namespace {own!r} cannot reach into namespace {asked!r}")
        return own

    def own_namespace(self, who: Identity) -> Namespace | None:
        """The only namespace the caller may reach into; `None`: all."""
        if who.kind is TokenKind.USER:
            return who.namespace
        job = self.caller_job(who)
        return None if job is None else job.namespace

    def find_job(self, job_id: str) -> JobRow | None:
        """The job's row, from memory or from the store."""
        key = JobId(job_id)
        return self.state.jobs.get(key) or self.store.job(key)

    def job(self, who: Identity, job_id: str) -> JobRow:
        """A job the caller may see.

        Raises:
            ValueError: This can be no id.
            JobNotFound: There is none, or it is somebody else's: the two look the same.
        """
        job = self.find_job(check_id(job_id, "job_id"))
        if job is None:
            raise JobNotFound(job_id)
        if not self.may_see(who, job):
            raise HiddenJob(job_id)
        return job

    def own_job(self, who: Identity, job_id: str) -> JobRow:
        """A job the caller may change.

        Raises:
            ValueError, JobNotFound: As of `job`.
            NotPermitted: The caller sees it, and it is another user's.
        """
        job = self.job(who, job_id)
        if who.kind is TokenKind.USER and job.user != who.user:
            raise NotPermitted(f"job {job_id!r} is {_whose(job)}; it is for its user and administrators to change")
        return job

    def check_may_have_result(self, who: Identity, job: JobRow) -> None:
        """A result is unpickled by whoever fetches it: it is for those alone whose code, or whose jobs' code, made it.

        Raises:
            NotPermitted: It was made for somebody else, administrators included.
        """
        if who.kind is not TokenKind.ATTEMPT and job.user != who.user:
            raise NotPermitted(
                f"job {job.job_id!r} is {_whose(job)}; its result is for whoever launched it, because fetching "
                "unpickles it"
            )

    def may_see(self, who: Identity, job: JobRow) -> bool:
        """The administrator sees all jobs, a user those of the namespace, a job itself and its descendants."""
        match who.kind:
            case TokenKind.ADMIN:
                return True
            case TokenKind.USER:
                return job.namespace == who.namespace
            case TokenKind.ATTEMPT:
                return self._descends_from_caller(who, job)
            case TokenKind.WORKER | TokenKind.JOIN:
                return False

    def _descends_from_caller(self, who: Identity, job: JobRow) -> bool:
        own = self.caller_job(who)
        if own is None:
            return False
        seen: JobRow | None = job
        while seen is not None and seen.depth >= own.depth:
            if seen.job_id == own.job_id:
                return True
            seen = self.find_job(seen.parent) if seen.parent is not None else None
        return False

    def tasks(self, job: JobRow) -> tuple[Sequence[TaskRow], list[list[AttemptRow]]]:
        """The job's tasks, and each one's attempts, oldest first."""
        if job.job_id in self.state.jobs:
            tasks = self.state.tasks[job.job_id]
            return tasks, [list(self.state.history.get((job.job_id, task.index), ())) for task in tasks]
        stored = self.store.tasks(job.job_id)
        attempts: list[list[AttemptRow]] = [[] for _ in stored]
        for attempt in self.store.attempts(job.job_id):
            attempts[attempt.task].append(attempt)
        return stored, attempts

    def what_is_built(self, job: JobRow) -> list[str]:
        """What a job in memory waits for though all of it is placed: every wait says why."""
        found = (self.state.current(job.job_id, task.index) for task in self.state.tasks.get(job.job_id, ()))
        return self.building.told((attempt for attempt in found if attempt is not None), self.loop.now())

    def _live(self, job: JobRow, *, with_tasks: bool = True) -> types_pb.JobInfo:
        message = view.live_job_message(self.state, job, with_tasks=with_tasks)
        if not message.pending_reason and not message.has_field("started_at"):
            message.pending_reason = "; ".join(self.what_is_built(job))
        return message

    def summary(self, job: JobRow) -> types_pb.JobInfo:
        """The job without its tasks."""
        if job.job_id in self.state.jobs:
            return self._live(job, with_tasks=False)
        return view.finished_summary(job, self.store.started_at(job.job_id))

    def message(self, job: JobRow) -> types_pb.JobInfo:
        """The job with its tasks."""
        if job.job_id in self.state.jobs:
            return self._live(job)
        tasks, attempts = self.tasks(job)
        return view.finished_message(job, tasks, [each[-1] if each else None for each in attempts])


def _whose(job: JobRow) -> str:
    return f"user {job.user}'s" if job.user else "the administrator's"
