"""RPCs about logs: workers append, clients read and follow."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fluster.cluster.controller import convert
from fluster.cluster.controller.context import Controller
from fluster.cluster.controller.core.rows import AttemptRow, JobRow
from fluster.cluster.controller.logmerge import STREAM_NAMES, LogMerge, MergedLine, StreamKey
from fluster.cluster.controller.logstore import MAX_OFFSET
from fluster.cluster.ids import AttemptUid, JobId
from fluster.cluster.validation import refuse
from fluster.errors import NotPermitted
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

_RESPONSE_BYTES = 256 * 1024
"""Of one message: making it takes milliseconds, in which nobody else is served, and it waits in memory to be sent."""
_LINE_COST_BYTES = 64
"""Of a line in a message, beside its text."""
_READERS = 2
"""Threads that read logs at one time: more of them would leave the loop no processor."""
_FOLLOW_S = 5.0
"""A follower looks at all streams after this: a rest without newline becomes a line when its attempt has ended."""
_MAX_TAIL = 100_000

_Attempt = tuple[int, int]
"""Task, number."""


@dataclass(slots=True)
class _Follower:
    """Somebody who reads a job's logs as they come.

    Attributes:
        news: Attempts that have printed since it looked last; `None`: look at all.
    """

    news: set[_Attempt] | None = field(default_factory=set)
    rung: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, attempt: AttemptRow) -> None:
        """There is more of this attempt."""
        if self.news is not None:
            self.news.add((attempt.task, attempt.number))
        self.rung.set()

    async def wait(self) -> None:
        """Returns when there is news, or when it is time to look at all."""
        try:
            async with asyncio.timeout(_FOLLOW_S):
                await self.rung.wait()
        except TimeoutError:
            self.news = None

    def take_news(self) -> set[_Attempt] | None:
        """What is new since the last time."""
        news, self.news = self.news, set()
        self.rung.clear()
        return news


@dataclass(frozen=True, slots=True)
class _Asked:
    """Whose lines are asked for; `None`: of all tasks, of all attempts."""

    job: JobRow
    task: int | None
    number: int | None


class Logs:
    """Handlers of the log RPCs."""

    def __init__(self, controller: Controller) -> None:
        self._c = controller
        self._followers: defaultdict[JobId, list[_Follower]] = defaultdict(list)
        self._reading = asyncio.Semaphore(_READERS)

    async def push(self, request: pb.PushLogsRequest) -> pb.PushLogsResponse:
        """Appends what a worker read; says how far each stream has come."""
        who = self._c.caller()
        now, positions = self._c.loop.now(), []
        for chunk in request.chunks:
            name = STREAM_NAMES.get(convert.known(chunk.stream, "stream"))
            if name is None or not 0 <= chunk.offset <= MAX_OFFSET:
                raise refuse("a chunk", f"of stdout or stderr at an offset from 0 to {MAX_OFFSET}", chunk.attempt_uid)
            attempt = self._c.state.attempts.get(AttemptUid(chunk.attempt_uid))
            # Of an attempt that is over nobody waits for more: what its worker still has is taken as read.
            size = chunk.offset + len(chunk.data)
            if attempt is not None:
                if attempt.worker_id != who.worker_id:
                    raise NotPermitted(f"attempt {attempt.uid!r} is not of this worker")
                at = _on_our_clock(chunk.timestamp, request, now)
                size = self._c.logs.append(
                    attempt.job_id, attempt.task, attempt.number, name, chunk.offset, chunk.data, at
                )
                for follower in self._followers.get(attempt.job_id, ()):
                    follower.hear(attempt)
            positions.append(pb.LogPosition(attempt_uid=chunk.attempt_uid, stream=chunk.stream, size=size))
        return pb.PushLogsResponse(positions=positions)

    async def fetch(self, request: pb.FetchLogsRequest) -> AsyncIterator[pb.FetchLogsResponse]:
        """Lines of a job's attempts, merged by time; with `follow` until the job has ended."""
        asked = self._asked(request)
        merge = LogMerge(self._c.logs, asked.job.job_id, _offsets(request))
        with self._following(asked.job.job_id) as follower:
            if request.has_field("tail"):
                await asyncio.to_thread(merge.skip_to_last, self._attempts(asked), _tail(request.tail))
            # What comes from now on is for followers only: a job may print faster than it is read.
            now = {} if request.follow else await asyncio.to_thread(merge.sizes, self._attempts(asked))
            due: set[_Attempt] | None = None
            ended: list[AttemptRow] | None = None
            while True:
                if ended is None and asked.job.job_id not in self._c.state.jobs:
                    ended, due = self._attempts(asked), None
                attempts = self._attempts(asked, due) if ended is None else _only(ended, due)
                async with self._reading:
                    lines, unread = await asyncio.to_thread(merge.read, attempts)
                for response in _responses(lines):
                    yield response
                due = {(task, number) for task, number, _ in unread}
                if not due and (ended is not None or not request.follow):
                    return
                if not request.follow and merge.has_read(now):
                    return
                if not due:
                    await follower.wait()
                news = follower.take_news()
                due = None if news is None else due | news

    @contextmanager
    def _following(self, job_id: JobId) -> Iterator[_Follower]:
        follower = _Follower()
        self._followers[job_id].append(follower)
        try:
            with self._c.loop.wakers.jobs.for_any([job_id]) as ended:
                ended.add_done_callback(lambda _: follower.rung.set())
                yield follower
        finally:
            self._followers[job_id].remove(follower)
            if not self._followers[job_id]:
                del self._followers[job_id]

    def _asked(self, request: pb.FetchLogsRequest) -> _Asked:
        job = self._c.job(self._c.caller(), request.job_id)
        task = request.task if request.has_field("task") else None
        if task is not None and not 0 <= task < job.num_tasks:
            raise refuse("task", f"0 to {job.num_tasks - 1}", task)
        return _Asked(job, task, request.attempt if request.has_field("attempt") else None)

    def _attempts(self, asked: _Asked, due: set[_Attempt] | None = None) -> list[AttemptRow]:
        """The attempts asked for; of an unfinished job those that are due, if that is given."""
        job_id = asked.job.job_id
        if due is not None and job_id in self._c.state.jobs:
            by_task = [self._c.state.history.get((job_id, task), []) for task in sorted({task for task, _ in due})]
        else:
            _, by_task = self._c.tasks(asked.job)
        found = [each for attempts in by_task for each in attempts]
        if asked.task is not None:
            found = [each for each in found if each.task == asked.task]
        if asked.number is not None:
            found = [each for each in found if each.number == asked.number]
        return _only(found, due)


def _on_our_clock(seen_at: float, request: pb.PushLogsRequest, now: float) -> float:
    """A worker's clock may be anywhere, but it tells how long ago that was."""
    return now - max(0.0, request.sent_at - seen_at) if request.sent_at else seen_at


def _only(attempts: list[AttemptRow], due: set[_Attempt] | None) -> list[AttemptRow]:
    return attempts if due is None else [each for each in attempts if (each.task, each.number) in due]


def _offsets(request: pb.FetchLogsRequest) -> dict[StreamKey, int]:
    for cursor in request.cursors:
        convert.known(cursor.stream, "the stream of a cursor")
        if cursor.offset < 0:
            raise refuse("the offset of a cursor", "at least 0", cursor.offset)
    return {(each.task, each.attempt, each.stream): each.offset for each in request.cursors}


def _tail(asked: int) -> int:
    if not 0 <= asked <= _MAX_TAIL:
        raise refuse("tail", f"0 to {_MAX_TAIL}", asked)
    return asked


def _responses(lines: list[MergedLine]) -> Iterator[pb.FetchLogsResponse]:
    """The lines in messages that clients can take."""
    batch: list[pb.LogLine] = []
    size = 0
    for each in lines:
        task, attempt, stream = each.key
        batch.append(
            pb.LogLine(
                task=task,
                attempt=attempt,
                stream=stream,
                timestamp=each.line.timestamp,
                data=each.line.data,
                next_offset=each.line.next_offset,
            )
        )
        size += len(each.line.data) + _LINE_COST_BYTES
        if size >= _RESPONSE_BYTES:
            yield pb.FetchLogsResponse(lines=batch)
            batch, size = [], 0
    if batch:
        yield pb.FetchLogsResponse(lines=batch)
