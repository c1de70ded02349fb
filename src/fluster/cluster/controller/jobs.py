"""RPCs about jobs: launch, look, terminate, explain."""

from __future__ import annotations

import secrets
from contextlib import suppress

from fluster.cluster.controller import convert, explain, view
from fluster.cluster.controller.auth import Identity
from fluster.cluster.controller.context import Controller
from fluster.cluster.controller.core.events import JobsSubmitted, NewJob, TerminationRequested
from fluster.cluster.controller.core.jobs import job_status
from fluster.cluster.controller.core.rows import JobRow, RequestRow
from fluster.cluster.ids import JobId, Namespace
from fluster.cluster.states import JobStatus
from fluster.cluster.validation import check_id, refuse
from fluster.errors import FailedPrecondition, JobNotFound
from fluster.rpc.gate import current_peer
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

MAX_LAUNCHED_JOBS = 1_000
"""Jobs of one LaunchJobs: what one message carries comfortably."""
MAX_LAUNCHED_TASKS = 100_000
"""Tasks of one LaunchJobs: each is a row of one commit, during which nobody else is served."""
_ID_LETTERS = "23456789abcdefghjkmnpqrstuvwxyz"
"""In the order of their codes, without those that are mistaken for one another when read aloud."""
_ID_EPOCH_S = 1_735_689_600.0  # 2025-01-01


def new_job_id(now: float) -> JobId:
    """An id that sorts by launch, to the millisecond, and ends in 34 random bits.

    Ids that follow one another lie side by side in the database: a commit then touches few pages, however long the
    history is.
    """
    millis = max(0, int((now - _ID_EPOCH_S) * 1000))
    return JobId("j" + _letters(millis, 8) + _letters(secrets.randbelow(len(_ID_LETTERS) ** 7), 7))


def _letters(number: int, count: int) -> str:
    """The number's last digits: eight of milliseconds are enough for 27 years."""
    digits = []
    for _ in range(count):
        number, digit = divmod(number, len(_ID_LETTERS))
        digits.append(_ID_LETTERS[digit])
    return "".join(reversed(digits))


class Jobs:
    """Handlers of the job RPCs."""

    def __init__(self, controller: Controller) -> None:
        self._c = controller

    async def launch(self, request: pb.LaunchJobRequest) -> pb.LaunchJobResponse:
        """Durable when it returns."""
        if request.spec is None:
            raise ValueError("spec must be given")
        job_ids = await self._launch(request.request_id, request.namespace, [request.spec], "LaunchJob")
        job = self._c.find_job(job_ids[0])
        status = JobStatus.PENDING if job is None else self._status(job)
        return pb.LaunchJobResponse(job_id=job_ids[0], status=view.status_message(status))

    async def launch_many(self, request: pb.LaunchJobsRequest) -> pb.LaunchJobsResponse:
        """All of them or none."""
        if not 0 < len(request.specs) <= MAX_LAUNCHED_JOBS:
            raise refuse("the number of specs", f"1 to {MAX_LAUNCHED_JOBS}", len(request.specs))
        job_ids = await self._launch(request.request_id, request.namespace, list(request.specs), "LaunchJobs")
        return pb.LaunchJobsResponse(job_ids=[*job_ids])

    async def _launch(self, request_id: str, namespace: str, specs: list[types_pb.JobSpec], kind: str) -> list[JobId]:
        who = self._c.caller()
        check_id(request_id, "request_id")
        belongs_to = self._c.namespace_of(who, namespace)
        jobs = tuple(self._new_job(who, belongs_to, spec) for spec in specs)
        tasks = sum(job.row.num_tasks for job in jobs)
        if tasks > MAX_LAUNCHED_TASKS:
            raise refuse("the number of tasks in all", f"at most {MAX_LAUNCHED_TASKS}", tasks)
        answer = ",".join(job.row.job_id for job in jobs)
        body = convert.fingerprint(*(job.spec for job in jobs), namespace)
        request = RequestRow(who.actor, request_id, kind, body, answer, self._c.loop.now())
        given = await self._c.loop.submit(JobsSubmitted(jobs, request, current_peer()))
        return [JobId(job_id) for job_id in given.split(",")]

    def _new_job(self, who: Identity, namespace: Namespace, spec: types_pb.JobSpec) -> NewJob:
        own = self._c.caller_job(who)
        if own is not None and not spec.parent:
            spec.parent = own.job_id
        depth = 0
        if spec.parent:
            parent = self._c.own_job(who, spec.parent)
            depth = parent.depth + 1
            self._inherit(parent, spec)
        if spec.resources is None:
            spec.resources = convert.default_resources()
        now = self._c.loop.now()
        row = convert.job_row(
            spec,
            job_id=new_job_id(now),
            namespace=namespace,
            owner=who.actor,
            user=who.user if own is None else own.user,
            depth=depth,
            now=now,
        )
        for blob in convert.blobs_of(spec):
            if not self._c.blobs.renew(blob):
                raise FailedPrecondition(f"blob {blob} is not here; send it with PutBlob first")
        self._seal(spec)
        return NewJob(row, spec.to_binary())

    def _seal(self, spec: types_pb.JobSpec) -> None:
        """From here on the secrets are readable for nobody but the worker that needs them."""
        environment = spec.environment
        if environment is not None and environment.secrets:
            environment.sealed_secrets = self._c.sealer.seal(environment.secrets)
            environment.secrets = {}

    def _inherit(self, parent: JobRow, spec: types_pb.JobSpec) -> None:
        """A child that asks for nothing of its own finds what its parent found, but for variables."""
        stored = self._c.store.spec(parent.job_id)
        given = types_pb.JobSpec.from_binary(stored).environment if stored is not None else None
        own = spec.environment if spec.environment is not None else types_pb.EnvironmentSpec()
        if given is None or any(
            own.has_field(field) for field in ("working_directory", "workspace_hash", "docker_image")
        ):
            return
        if own.pip_packages or own.extras:
            return
        own.import_path, own.workspace_import_path = [*given.import_path], [*given.workspace_import_path]
        own.pip_packages, own.extras = [*given.pip_packages], [*given.extras]
        for field in ("working_directory", "workspace_hash", "docker_image"):
            if given.has_field(field):
                setattr(own, field, getattr(given, field))
        if given.has_field("python") and not own.has_field("python"):
            own.python = given.python
        spec.environment = own

    def _status(self, job: JobRow) -> JobStatus:
        return job_status(job, [task.state for task in self._c.state.tasks.get(job.job_id, ())])

    def status(self, request: pb.GetJobStatusRequest) -> pb.GetJobStatusResponse:
        """As last committed."""
        return pb.GetJobStatusResponse(job=self._c.message(self._c.job(self._c.caller(), request.job_id)))

    async def terminate(self, request: pb.TerminateJobRequest) -> pb.TerminateJobResponse:
        """With all descendants; harmless for one that has ended."""
        who = self._c.caller()
        check_id(request.request_id, "request_id")
        job = self._c.own_job(who, request.job_id)
        if job.job_id in self._c.state.jobs or job.job_id in self._c.state.children:
            with suppress(JobNotFound):  # it has ended meanwhile, with all that descends from it
                await self._c.loop.submit(TerminationRequested(job.job_id, who.actor, current_peer()))
        return pb.TerminateJobResponse()

    def explain(self, request: pb.ExplainJobRequest) -> pb.ExplainJobResponse:
        """What the job waits for, or why it ended."""
        job = self._c.job(self._c.caller(), request.job_id)
        tasks, attempts = self._c.tasks(job)
        status = job_status(job, [task.state for task in tasks])
        waiting = self._c.loop.decision.waiting.get(job.job_id)
        silent = explain.silent_workers(self._c.state, attempts, self._c.loop.now())
        built = self._c.what_is_built(job)
        reasons = explain.reasons(job, status, tasks, attempts, waiting, [*built, *silent])
        response = pb.ExplainJobResponse(
            state=status, reasons=reasons, would_fit=waiting.would_fit if waiting is not None else not status.finished()
        )
        if waiting is not None and waiting.position is not None:
            response.queue_position = waiting.position
        return response
