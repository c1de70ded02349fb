"""ListJobs: unfinished jobs from memory and finished ones from the store as one sequence, newest first."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge

from fluster.cluster.controller import convert
from fluster.cluster.controller.context import Controller
from fluster.cluster.controller.core.jobs import job_status
from fluster.cluster.controller.core.rows import JobRow
from fluster.cluster.controller.pages import Page, read_page_token, write_page_token
from fluster.cluster.controller.store import JobCursor
from fluster.cluster.ids import JobId, Namespace
from fluster.cluster.states import JobStatus
from fluster.cluster.tokens import TokenKind
from fluster.cluster.validation import refuse
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

MAX_PAGE = 1_000
DEFAULT_PAGE = 100
_MAX_LOOKED = 1_000
"""Jobs looked at for one page: where a job may see few of them a page holds fewer than were asked for."""


class Listing:
    """Handler of ListJobs."""

    def __init__(self, controller: Controller) -> None:
        self._c = controller

    def page(self, request: pb.ListJobsRequest) -> pb.ListJobsResponse:
        """One page; the sequence is the same for all pages, whatever finishes meanwhile."""
        who = self._c.caller()
        size = page_size(request.page_size)
        wanted = _status(request.status)
        own = self._c.caller_job(who)
        if who.kind is TokenKind.USER:
            request.namespace = self._c.namespace_of(who, request.namespace)
        page = read_page_token(self._c.page_key, request.page_token)
        found: list[JobRow] = []
        last: JobRow | None = None
        for looked, job in enumerate(self._jobs(request, wanted, page, size + 1)):
            if own is not None and job.submitted_at < own.submitted_at:
                break  # nothing older descends from the caller
            if last is not None and (len(found) == size or looked == _MAX_LOOKED):
                token = write_page_token(self._c.page_key, Page(last.submitted_at, last.job_id))
                return pb.ListJobsResponse(jobs=[self._c.summary(each) for each in found], next_page_token=token)
            last = job
            if self._c.may_see(who, job):
                found.append(job)
        return pb.ListJobsResponse(jobs=[self._c.summary(each) for each in found])

    def _jobs(
        self, request: pb.ListJobsRequest, wanted: JobStatus | None, page: Page | None, at_once: int
    ) -> Iterator[JobRow]:
        live: list[JobRow] = []
        if wanted is None or not wanted.finished():
            live = [job for job in self._c.state.jobs.values() if self._matches(job, request, wanted, page)]
            live.sort(key=_age, reverse=True)
        stored: Iterator[JobRow] = iter(())
        if not request.unfinished and (wanted is None or wanted.finished()):
            stored = self._stored(request, wanted, page, at_once)
        return merge(live, stored, key=_age, reverse=True)

    def _matches(self, job: JobRow, request: pb.ListJobsRequest, wanted: JobStatus | None, page: Page | None) -> bool:
        return (
            (not request.namespace or job.namespace == request.namespace)
            and job.name.startswith(request.name_prefix)
            and (not request.name or job.name == request.name)
            and (page is None or _age(job) < (page.submitted_at, page.job_id))
            and (wanted is None or job_status(job, [t.state for t in self._c.state.tasks[job.job_id]]) is wanted)
        )

    def _stored(
        self, request: pb.ListJobsRequest, wanted: JobStatus | None, page: Page | None, at_once: int
    ) -> Iterator[JobRow]:
        before = None if page is None else JobCursor(page.submitted_at, JobId(page.job_id))
        while True:
            rows = self._c.store.list_jobs(
                namespace=Namespace(request.namespace) if request.namespace else None,
                status=wanted,
                finished=True,
                name_prefix=request.name_prefix,
                name=request.name,
                before=before,
                limit=at_once,
            )
            yield from rows
            if len(rows) < at_once:
                return
            before = JobCursor(rows[-1].submitted_at, rows[-1].job_id)


def page_size(asked: int) -> int:
    """How many entries a page holds."""
    if not 0 <= asked <= MAX_PAGE:
        raise refuse("page_size", f"0 to {MAX_PAGE}", asked)
    return asked or DEFAULT_PAGE


def _status(asked: types_pb.JobStatus) -> JobStatus | None:
    known = convert.known(asked, "status")
    return None if known is types_pb.JobStatus.UNSPECIFIED else JobStatus[str(known.name)]


def _age(job: JobRow) -> tuple[float, str]:
    return job.submitted_at, job.job_id
