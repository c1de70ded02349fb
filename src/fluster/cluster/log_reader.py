"""What jobs printed, as one stream that goes on where it was when a connection breaks: no line lost, none twice."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

from fluster.cluster import wire
from fluster.cluster.ids import JobId
from fluster.cluster.observed import LogLine
from fluster.cluster.transfer import RETRY_S
from fluster.errors import Unreachable
from fluster.rpc.client import ConnectClient, Patience
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1.types_pb import LogStream

_Key = tuple[int, int, LogStream]


def read_logs(
    rpc: ConnectClient,
    job_id: JobId,
    *,
    task: int | None,
    attempt: int | None,
    follow: bool,
    tail: int | None,
    pattern: re.Pattern[str] | None,
) -> Iterator[LogLine]:
    """Lines as `Cluster.logs` promises them; `tail` counts those that match."""
    reader = _Reader(rpc, job_id, task, attempt)
    if pattern is None:
        yield from reader.lines(follow=follow, tail=tail)
        return
    if tail is not None:
        # The controller does not know the pattern, so everything there is now has to pass by.
        matching = (line for line in reader.lines(follow=False) if pattern.search(line.data))
        yield from deque(matching, maxlen=tail)
        if not follow:
            return
    yield from (line for line in reader.lines(follow=follow) if pattern.search(line.data))


class _Reader:
    """Remembers for each stream of each attempt what has been read."""

    def __init__(self, rpc: ConnectClient, job_id: JobId, task: int | None, attempt: int | None) -> None:
        self._rpc = rpc
        self._job_id = job_id
        self._task = task
        self._attempt = attempt
        self._offsets: dict[_Key, int] = {}
        # Of a tail: its oldest line. Once its stream has broken, what is older was not asked for.
        self._oldest: float | None = None
        self._tail_broke = False

    def lines(self, *, follow: bool, tail: int | None = None) -> Iterator[LogLine]:
        """From where it is now to what is there, or to the end of the job."""
        patience = Patience(RETRY_S)
        while True:
            try:
                for message in self._stream(follow, tail):
                    patience = Patience(RETRY_S)
                    yield from self._new(message.lines)
                return
            except Unreachable as error:
                self._tail_broke = tail is not None and self._oldest is not None
                patience.pause(error, seen_at=self._rpc.heard_at)

    def _stream(self, follow: bool, tail: int | None) -> Iterator[pb.FetchLogsResponse]:
        cursors = [
            pb.LogCursor(task=task, attempt=attempt, stream=stream, offset=offset)
            for (task, attempt, stream), offset in self._offsets.items()
        ]
        request = pb.FetchLogsRequest(job_id=self._job_id, follow=follow, cursors=cursors)
        if self._task is not None:
            request.task = self._task
        if self._attempt is not None:
            request.attempt = self._attempt
        if tail is not None and self._oldest is None:
            request.tail = tail
        return self._rpc.stream("FetchLogs", request, pb.FetchLogsResponse, retry_s=RETRY_S)

    def _new(self, lines: list[pb.LogLine]) -> Iterator[LogLine]:
        for line in lines:
            key = (line.task, line.attempt, line.stream)
            seen = self._offsets.get(key)
            if seen is not None and line.next_offset <= seen:
                continue
            if seen is None and self._tail_broke and self._oldest is not None and line.timestamp < self._oldest:
                continue
            self._offsets[key] = line.next_offset
            self._oldest = min(line.timestamp, self._oldest) if self._oldest is not None else line.timestamp
            yield wire.log_line(self._job_id, line)
