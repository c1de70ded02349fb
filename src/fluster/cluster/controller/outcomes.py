"""RPCs that wait for the end of jobs and tell what came of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Literal

from protobuf import Oneof

from fluster.cluster.controller import view
from fluster.cluster.controller.context import Controller
from fluster.cluster.controller.core.rows import AttemptRow, JobRow, ResultRow
from fluster.cluster.controller.wakers import woken
from fluster.cluster.ids import JobId
from fluster.cluster.states import JobStatus
from fluster.cluster.validation import refuse
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

MAX_WAIT_S = 30.0
"""A long poll is answered after this, so that dead connections are noticed."""
MAX_WAITED_JOBS = 10_000
_AT_ONCE = 100
"""Jobs told of before others are served."""


def wait_s(asked: float) -> float:
    """How long to hold a long poll."""
    if not asked >= 0:
        raise refuse("wait_s", f"a number of seconds from 0 to {MAX_WAIT_S:g}", asked)
    return min(asked, MAX_WAIT_S)


class Outcomes:
    """Handlers of WaitJobs and GetResult."""

    def __init__(self, controller: Controller) -> None:
        self._c = controller

    async def wait(self, request: pb.WaitJobsRequest) -> pb.WaitJobsResponse:
        """Long poll for the end of one or of all."""
        who = self._c.caller()
        if not 0 < len(request.job_ids) <= MAX_WAITED_JOBS:
            raise refuse("the number of job_ids", f"1 to {MAX_WAITED_JOBS}", len(request.job_ids))
        deadline = asyncio.get_running_loop().time() + wait_s(request.wait_s)
        job_ids = [JobId(job_id) for job_id in dict.fromkeys(request.job_ids)]
        for number, job_id in enumerate(job_ids):
            self._c.job(who, job_id)
            await _let_others(number)
        if request.any:
            await self._until_any(job_ids, deadline)
        else:
            await self._until_all(job_ids, deadline)
        response = pb.WaitJobsResponse()
        for number, job_id in enumerate([each for each in job_ids if each not in self._c.state.jobs]):
            response.finished.append(self._c.message(self._c.job(who, job_id)))
            await _let_others(number)
        return response

    async def _until_any(self, job_ids: list[JobId], deadline: float) -> None:
        with self._c.loop.wakers.jobs.for_any(job_ids) as ended:
            if all(job_id in self._c.state.jobs for job_id in job_ids):
                await woken(ended, deadline - asyncio.get_running_loop().time())

    async def _until_all(self, job_ids: Iterable[JobId], deadline: float) -> None:
        """One after the other: who waits for many is not woken for each."""
        for job_id in job_ids:
            if not await self._until_ended(job_id, deadline):
                return

    async def _until_ended(self, job_id: JobId, deadline: float) -> bool:
        """Whether it ended before the deadline."""
        with self._c.loop.wakers.jobs.for_any([job_id]) as ended:
            if job_id in self._c.state.jobs:
                await woken(ended, deadline - asyncio.get_running_loop().time())
        return job_id not in self._c.state.jobs

    async def result(self, request: pb.GetResultRequest) -> pb.GetResultResponse:
        """Long poll for the end, then what the task's entrypoint gave."""
        who = self._c.caller()
        job = self._c.job(who, request.job_id)
        self._c.check_may_have_result(who, job)
        if not 0 <= request.task < job.num_tasks:
            raise refuse("task", f"0 to {job.num_tasks - 1}", request.task)
        if not await self._until_ended(job.job_id, asyncio.get_running_loop().time() + wait_s(request.wait_s)):
            return pb.GetResultResponse(finished=False)
        job = self._c.job(who, request.job_id)
        attempts = self._c.store.attempts(job.job_id, request.task)
        response = pb.GetResultResponse(finished=True, job=self._told(job, request.task, attempts))
        stored = self._c.store.result(attempts[-1].uid) if attempts else None
        if stored is not None:
            response.result = _payload(stored)
        return response

    def _told(self, job: JobRow, task: int, attempts: list[AttemptRow]) -> types_pb.JobInfo:
        """Of one that succeeded the asked task alone: who fetches thousands of results has no use for all of them."""
        if job.outcome is not JobStatus.SUCCEEDED:
            return self._c.message(job)
        return view.finished_message(job, self._c.store.tasks(job.job_id, task), [attempts[-1] if attempts else None])


async def _let_others(number: int) -> None:
    if number % _AT_ONCE == _AT_ONCE - 1:
        await asyncio.sleep(0)


def _payload(stored: ResultRow) -> types_pb.Payload:
    if stored.inline is None:
        blob: Oneof[Literal["blob"], str] = Oneof("blob", stored.blob)
        return types_pb.Payload(content=blob, sha256=stored.sha256)
    inline: Oneof[Literal["inline"], bytes] = Oneof("inline", stored.inline)
    return types_pb.Payload(content=inline, sha256=stored.sha256)
