"""RPCs about jobs: launch, look, wait, fetch the result, terminate, explain."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from heapq import merge
from typing import Literal

from protobuf import Oneof

from fluster.cluster.controller import convert, explain, view
from fluster.cluster.controller.auth import Identity
from fluster.cluster.controller.context import Controller
from fluster.cluster.controller.core.events import JobsSubmitted, NewJob, TerminationRequested
from fluster.cluster.controller.core.jobs import job_status
from fluster.cluster.controller.core.rows import JobRow, RequestRow, ResultRow
from fluster.cluster.controller.pages import Page, read_page_token, write_page_token
from fluster.cluster.controller.store import JobCursor
from fluster.cluster.ids import JobId, Namespace
from fluster.cluster.states import JobStatus
from fluster.cluster.validation import check_id, check_name, refuse
from fluster.errors import FailedPrecondition
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

MAX_WAIT_S = 30.0
"""A long poll is answered after this, so that dead connections are noticed."""
MAX_WAITED_JOBS = 10_000
MAX_LAUNCHED_JOBS = 1_000
"""Jobs of one LaunchJobs: what one transaction and one message carry comfortably."""
MAX_PAGE = 1_000
_DEFAULT_PAGE = 100


def wait_s(asked: float) -> float:
    """How long to hold a long poll."""
    if not asked >= 0:
        raise refuse("wait_s", f"a number of seconds from 0 to {MAX_WAIT_S:g}", asked)
    return min(asked, MAX_WAIT_S)


_ID_LETTERS = "23456789abcdefghjkmnpqrstuvwxyz"
"""In the order of their codes, without those that are mistaken for one another when read aloud."""
_ID_EPOCH_S = 1_735_689_600.0  # 2025-01-01


def new_job_id(now: float) -> JobId:
    """An id that sorts by launch, to the millisecond, and ends in 34 random bits.

    Ids that follow one another lie side by side in the database: a commit then touches few pages, however long the
    history is.
    """
    millis = max(0, int((now - _ID_EPOCH_S) * 1000))
    time_part = ""
    for _ in range(8):  # enough for 27 years
        millis, digit = divmod(millis, len(_ID_LETTERS))
        time_part = _ID_LETTERS[digit] + time_part
    return JobId("j" + time_part + "".join(secrets.choice(_ID_LETTERS) for _ in range(7)))


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
        if namespace:
            check_name(namespace, "namespace")
        jobs = [self._new_job(who, self._c.namespace_of(who, namespace), spec) for spec in specs]
        answer = ",".join(job.row.job_id for job in jobs)
        body = convert.body_sha256(*specs, namespace)
        request = RequestRow(who.actor, request_id, kind, body, answer, self._c.loop.now())
        given = await self._c.loop.submit(JobsSubmitted(tuple(jobs), request))
        return [JobId(job_id) for job_id in given.split(",")]

    def _new_job(self, who: Identity, namespace: Namespace, spec: types_pb.JobSpec) -> NewJob:
        own = self._c.caller_job(who)
        if own is not None and not spec.parent:
            spec.parent = own.job_id
        depth = 0
        if spec.parent:
            parent = self._c.job(who, spec.parent)
            depth = parent.depth + 1
            self._inherit(parent, spec)
        now = self._c.loop.now()
        row = convert.job_row(spec, job_id=new_job_id(now), namespace=namespace, owner=who.actor, depth=depth, now=now)
        match spec.entrypoint.kind if spec.entrypoint is not None else None:
            case Oneof(field="callable", value=types_pb.Payload() as payload):
                self._check_blob(payload)
        return NewJob(row, spec.to_binary())

    def _inherit(self, parent: JobRow, spec: types_pb.JobSpec) -> None:
        """A child sees the submitter's directory and import path as its parent does, on a LocalCluster."""
        stored = self._c.store.spec(parent.job_id)
        given = types_pb.JobSpec.from_binary(stored).environment if stored is not None else None
        own = spec.environment if spec.environment is not None else types_pb.EnvironmentSpec()
        if given is None or not given.has_field("working_directory") or own.has_field("working_directory"):
            return
        if own.has_field("workspace_hash") or own.has_field("docker_image"):
            return
        own.working_directory = given.working_directory
        own.import_path = [*given.import_path]
        if given.has_field("python") and not own.has_field("python"):
            own.python = given.python
        spec.environment = own

    def _check_blob(self, payload: types_pb.Payload) -> None:
        if payload.content is not None and payload.content.field == "blob" and not self._c.blobs.renew(payload.sha256):
            raise FailedPrecondition(f"blob {payload.sha256} is not here; send it with PutBlob first")

    def _status(self, job: JobRow) -> JobStatus:
        return job_status(job, [task.state for task in self._c.state.tasks.get(job.job_id, ())])

    def status(self, request: pb.GetJobStatusRequest) -> pb.GetJobStatusResponse:
        """As last committed."""
        return pb.GetJobStatusResponse(job=self._message(self._c.job(self._c.caller(), request.job_id)))

    def _message(self, job: JobRow, *, with_tasks: bool = True) -> types_pb.JobInfo:
        if job.job_id in self._c.state.jobs:
            return view.live_job_message(self._c.state, job, with_tasks=with_tasks)
        tasks, attempts = self._c.tasks(job)
        return view.job_message(job, tasks, [each[-1] if each else None for each in attempts], with_tasks=with_tasks)

    async def terminate(self, request: pb.TerminateJobRequest) -> pb.TerminateJobResponse:
        """With all descendants; harmless for one that has ended."""
        who = self._c.caller()
        check_id(request.request_id, "request_id")
        job = self._c.job(who, request.job_id)
        if job.job_id in self._c.state.jobs or job.job_id in self._c.state.children:
            await self._c.loop.submit(TerminationRequested(job.job_id, who.actor))
        return pb.TerminateJobResponse()

    def list_page(self, request: pb.ListJobsRequest) -> pb.ListJobsResponse:
        """Newest first, unfinished from memory and finished from the store as one sequence."""
        who = self._c.caller()
        convert.known(request.status, "status")
        if not 0 <= request.page_size <= MAX_PAGE:
            raise refuse("page_size", f"0 to {MAX_PAGE}", request.page_size)
        size = request.page_size or _DEFAULT_PAGE
        page = read_page_token(self._c.page_key, request.page_token)
        found: list[JobRow] = []
        for job in self._jobs(request, page, size):
            if self._c.may_see(who, job):
                found.append(job)
            if len(found) > size:
                break
        token = ""
        if len(found) > size:
            found = found[:size]
            token = write_page_token(self._c.page_key, Page(found[-1].submitted_at, found[-1].job_id))
        return pb.ListJobsResponse(jobs=[self._message(job, with_tasks=False) for job in found], next_page_token=token)

    def _jobs(self, request: pb.ListJobsRequest, page: Page | None, size: int) -> Iterator[JobRow]:
        wanted = None if request.status is types_pb.JobStatus.UNSPECIFIED else JobStatus[str(request.status.name)]
        live: list[JobRow] = []
        if wanted is None or not wanted.finished():
            live = [job for job in self._c.state.jobs.values() if self._matches(job, request, wanted, page)]
            live.sort(key=_newest_first)
        stored: Iterator[JobRow] = iter(())
        if not request.unfinished and (wanted is None or wanted.finished()):
            stored = self._stored(request, wanted, page, size + 1)
        return merge(live, stored, key=_newest_first)

    def _matches(self, job: JobRow, request: pb.ListJobsRequest, wanted: JobStatus | None, page: Page | None) -> bool:
        return (
            (not request.namespace or job.namespace == request.namespace)
            and job.name.startswith(request.name_prefix)
            and (not request.name or job.name == request.name)
            and (page is None or (job.submitted_at, job.job_id) < (page.submitted_at, page.job_id))
            and (wanted is None or self._status(job) is wanted)
        )

    def _stored(
        self, request: pb.ListJobsRequest, wanted: JobStatus | None, page: Page | None, limit: int
    ) -> Iterator[JobRow]:
        before = None if page is None else JobCursor(page.submitted_at, JobId(page.job_id))
        while True:
            rows = self._c.store.list_jobs(
                namespace=Namespace(request.namespace) if request.namespace else None,
                status=wanted,
                name_prefix=request.name_prefix,
                name=request.name,
                before=before,
                limit=limit,
            )
            yield from (row for row in rows if row.outcome is not None)
            if len(rows) < limit:
                return
            before = JobCursor(rows[-1].submitted_at, rows[-1].job_id)

    async def wait(self, request: pb.WaitJobsRequest) -> pb.WaitJobsResponse:
        """Long poll for the end of one or of all."""
        who = self._c.caller()
        if not 0 < len(request.job_ids) <= MAX_WAITED_JOBS:
            raise refuse("the number of job_ids", f"1 to {MAX_WAITED_JOBS}", len(request.job_ids))
        deadline = asyncio.get_running_loop().time() + wait_s(request.wait_s)
        for job_id in request.job_ids:
            self._c.job(who, job_id)
        while True:
            open_ids = [JobId(job_id) for job_id in request.job_ids if JobId(job_id) in self._c.state.jobs]
            if not open_ids or (request.any and len(open_ids) < len(request.job_ids)):
                break
            if not await self._until_one_ends(open_ids, deadline):
                break
        ended = [job_id for job_id in request.job_ids if JobId(job_id) not in self._c.state.jobs]
        return pb.WaitJobsResponse(finished=[self._message(self._c.job(who, job_id)) for job_id in ended])

    async def _until_one_ends(self, job_ids: list[JobId], deadline: float) -> bool:
        """Whether one may have ended before the deadline."""
        with self._c.loop.wakers.job(job_ids) as ended:
            try:
                async with asyncio.timeout_at(deadline):
                    await ended
            except TimeoutError:
                return False
        return True

    async def result(self, request: pb.GetResultRequest) -> pb.GetResultResponse:
        """Long poll for the end, then what the task's entrypoint gave."""
        who = self._c.caller()
        job = self._c.job(who, request.job_id)
        if not 0 <= request.task < job.num_tasks:
            raise refuse("task", f"0 to {job.num_tasks - 1}", request.task)
        deadline = asyncio.get_running_loop().time() + wait_s(request.wait_s)
        while job.job_id in self._c.state.jobs:
            if not await self._until_one_ends([job.job_id], deadline):
                return pb.GetResultResponse(finished=False)
        job = self._c.job(who, request.job_id)
        response = pb.GetResultResponse(finished=True, job=self._message(job))
        _, attempts = self._c.tasks(job)
        last = attempts[request.task][-1] if attempts[request.task] else None
        stored = None if last is None else self._c.store.result(last.uid)
        if stored is not None:
            response.result = _payload(stored)
        return response

    def explain(self, request: pb.ExplainJobRequest) -> pb.ExplainJobResponse:
        """What the job waits for, or why it ended."""
        job = self._c.job(self._c.caller(), request.job_id)
        tasks, attempts = self._c.tasks(job)
        status = job_status(job, [task.state for task in tasks])
        waiting = self._c.loop.decision.waiting.get(job.job_id)
        reasons = explain.reasons(job, status, tasks, attempts, waiting)
        response = pb.ExplainJobResponse(
            state=status, reasons=reasons, would_fit=waiting.would_fit if waiting is not None else not status.finished()
        )
        if waiting is not None and waiting.position is not None:
            response.queue_position = waiting.position
        return response


def _newest_first(job: JobRow) -> tuple[float, tuple[int, ...]]:
    return -job.submitted_at, tuple(-ord(char) for char in job.job_id)


def _payload(stored: ResultRow) -> types_pb.Payload:
    if stored.inline is None:
        blob: Oneof[Literal["blob"], str] = Oneof("blob", stored.blob)
        return types_pb.Payload(content=blob, sha256=stored.sha256)
    inline: Oneof[Literal["inline"], bytes] = Oneof("inline", stored.inline)
    return types_pb.Payload(content=inline, sha256=stored.sha256)
