"""RPCs about logs: workers append, clients read and follow."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fluster.cluster.controller import convert
from fluster.cluster.controller.context import Controller
from fluster.cluster.controller.core.rows import AttemptRow
from fluster.cluster.controller.core.state import has_process
from fluster.cluster.controller.logstore import Line
from fluster.cluster.controller.loop import wake
from fluster.cluster.ids import AttemptUid, JobId
from fluster.cluster.validation import refuse
from fluster.errors import NotPermitted
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1.types_pb import LogStream

_READ_BYTES = 256 * 1024
"""Read of each stream at a time: streams are merged by time without reading them whole."""
_RESPONSE_BYTES = 1024 * 1024
_FOLLOW_S = 5.0
"""A follower looks again after this even if nobody woke it: for attempts that appear without printing."""
_MAX_TAIL = 1_000_000
_NAMES = {LogStream.STDOUT: "stdout", LogStream.STDERR: "stderr"}

_Key = tuple[int, int, LogStream]
"""Task, attempt, stream."""


@dataclass(frozen=True, slots=True)
class _Read:
    """One line of one stream."""

    key: _Key
    line: Line


class Logs:
    """Handlers of the log RPCs."""

    def __init__(self, controller: Controller) -> None:
        self._c = controller
        self._followers: defaultdict[JobId, set[asyncio.Future[None]]] = defaultdict(set)

    async def push(self, request: pb.PushLogsRequest) -> pb.PushLogsResponse:
        """Appends what a worker read; says how far each stream has come."""
        who = self._c.caller()
        positions = []
        for chunk in request.chunks:
            name = _NAMES.get(convert.known(chunk.stream, "stream"))
            if name is None or chunk.offset < 0:
                raise refuse("a chunk", "of stdout or stderr at an offset from 0", chunk.attempt_uid)
            attempt = self._c.state.attempts.get(AttemptUid(chunk.attempt_uid))
            # Of an attempt that is over nobody waits for more: what its worker still has is taken as read.
            size = chunk.offset + len(chunk.data)
            if attempt is not None:
                if attempt.worker_id != who.worker_id:
                    raise NotPermitted(f"attempt {attempt.uid!r} is not of this worker")
                size = self._c.logs.append(
                    attempt.job_id, attempt.task, attempt.number, name, chunk.offset, chunk.data, chunk.timestamp
                )
                wake(self._followers.get(attempt.job_id, set()))
            positions.append(pb.LogPosition(attempt_uid=chunk.attempt_uid, stream=chunk.stream, size=size))
        return pb.PushLogsResponse(positions=positions)

    async def fetch(self, request: pb.FetchLogsRequest) -> AsyncIterator[pb.FetchLogsResponse]:
        """Lines of a job's attempts, merged by time; with `follow` until the job has ended."""
        job = self._c.job(self._c.caller(), request.job_id)
        task = request.task if request.has_field("task") else None
        if task is not None and not 0 <= task < job.num_tasks:
            raise refuse("task", f"0 to {job.num_tasks - 1}", task)
        number = request.attempt if request.has_field("attempt") else None
        offsets = {(each.task, each.attempt, each.stream): each.offset for each in request.cursors}
        if request.has_field("tail"):
            if not 0 <= request.tail <= _MAX_TAIL:
                raise refuse("tail", f"0 to {_MAX_TAIL}", request.tail)
            last = await asyncio.to_thread(
                self._tail, job.job_id, self._attempts(job.job_id, task, number), request.tail
            )
            for response in _responses(last[0]):
                yield response
            offsets.update(last[1])
        while True:
            with self._following(job.job_id) as woken:
                over = job.job_id not in self._c.state.jobs
                attempts = self._attempts(job.job_id, task, number)
                lines = await asyncio.to_thread(self._round, job.job_id, attempts, offsets)
                for response in _responses(lines):
                    yield response
                if lines:
                    continue
                if over or not request.follow:
                    return
                with self._c.loop.wakers.job([job.job_id]) as ended:
                    if job.job_id in self._c.state.jobs:
                        await asyncio.wait((woken, ended), timeout=_FOLLOW_S, return_when=asyncio.FIRST_COMPLETED)

    @contextmanager
    def _following(self, job_id: JobId) -> Iterator[asyncio.Future[None]]:
        woken = asyncio.get_running_loop().create_future()
        self._followers[job_id].add(woken)
        try:
            yield woken
        finally:
            self._followers[job_id].discard(woken)
            if not self._followers[job_id]:
                del self._followers[job_id]
            woken.cancel()

    def _attempts(self, job_id: JobId, task: int | None, number: int | None) -> list[AttemptRow]:
        job = self._c.find_job(job_id)
        if job is None:
            return []
        _, attempts = self._c.tasks(job)
        return [
            each
            for index, of_task in enumerate(attempts)
            if task is None or index == task
            for each in of_task
            if number is None or each.number == number
        ]

    def _round(self, job_id: JobId, attempts: list[AttemptRow], offsets: dict[_Key, int]) -> list[_Read]:
        """The next lines of all streams, by time; `offsets` move on past them."""
        found: list[_Read] = []
        horizon = float("inf")
        for attempt in attempts:
            for stream, name in _NAMES.items():
                key = (attempt.task, attempt.number, stream)
                lines, more = self._c.logs.read_lines(
                    job_id,
                    attempt.task,
                    attempt.number,
                    name,
                    offsets.get(key, 0),
                    limit_bytes=_READ_BYTES,
                    final=not has_process(attempt),
                )
                if more and lines:
                    # What this stream says later is not known yet: lines of others after it have to wait.
                    horizon = min(horizon, lines[-1].timestamp)
                found += [_Read(key, line) for line in lines]
        found = [each for each in found if each.line.timestamp <= horizon]
        found.sort(key=lambda each: each.line.timestamp)
        for each in found:
            offsets[each.key] = max(offsets.get(each.key, 0), each.line.next_offset)
        return found

    def _tail(self, job_id: JobId, attempts: list[AttemptRow], count: int) -> tuple[list[_Read], dict[_Key, int]]:
        """The last lines of all streams together, and where to go on in each."""
        found: list[_Read] = []
        ends: dict[_Key, int] = {}
        for attempt in attempts:
            for stream, name in _NAMES.items():
                key = (attempt.task, attempt.number, stream)
                start = self._c.logs.tail_offset(job_id, attempt.task, attempt.number, name, count)
                ends[key] = start
                more = True
                while more:
                    lines, more = self._c.logs.read_lines(
                        job_id,
                        attempt.task,
                        attempt.number,
                        name,
                        ends[key],
                        limit_bytes=_READ_BYTES,
                        final=not has_process(attempt),
                    )
                    found += [_Read(key, line) for line in lines]
                    if not lines:
                        break
                    ends[key] = lines[-1].next_offset
        found.sort(key=lambda each: each.line.timestamp)
        return found[max(0, len(found) - count) :] if count else [], ends


def _responses(lines: list[_Read]) -> Iterator[pb.FetchLogsResponse]:
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
        size += len(each.line.data) + 64
        if size >= _RESPONSE_BYTES:
            yield pb.FetchLogsResponse(lines=batch)
            batch, size = [], 0
    if batch:
        yield pb.FetchLogsResponse(lines=batch)
