"""Lines of a job's streams as one sequence by time, read a little of each stream at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heappush, heappushpop

from fluster.cluster.controller.core.rows import AttemptRow
from fluster.cluster.controller.core.state import has_process
from fluster.cluster.controller.logstore import Line, LogStore
from fluster.cluster.ids import JobId
from fluster.rpc.gen.fluster.cluster.v1.types_pb import LogStream

STREAM_NAMES = {LogStream.STDOUT: "stdout", LogStream.STDERR: "stderr"}
_READ_BYTES = 256 * 1024
"""Of one stream at a time."""
_ROUND_BYTES = 1024 * 1024
"""Of all streams at a time: a job may have thousands, and hundreds may read it, or have stopped reading."""
_LEAST_BYTES = 2 * 1024
"""Of one stream all the same: looking at it costs as much as a dozen lines."""

StreamKey = tuple[int, int, LogStream]
"""Task, attempt, stream."""

_Begin = tuple[float, int, StreamKey, int]
"""Where a line begins: its time, its number (later ones of a stream have higher ones), its stream, its offset."""


@dataclass(frozen=True, slots=True)
class MergedLine:
    """One line of one stream.

    Attributes:
        at: Its place in the sequence: its own time, or that of a line before it whose clock was ahead.
    """

    key: StreamKey
    at: float
    line: Line


class LogMerge:
    """Remembers how far each stream has been read. For one thread at a time.

    Args:
        store: The logs.
        job_id: Whose.
        offsets: Where to go on in each stream; where it says nothing, at the beginning.
    """

    def __init__(self, store: LogStore, job_id: JobId, offsets: dict[StreamKey, int]) -> None:
        self._store = store
        self._job_id = job_id
        self._offsets = offsets

    def read(self, attempts: Iterable[AttemptRow]) -> tuple[list[MergedLine], set[StreamKey]]:
        """The next lines of these attempts' streams, and those streams that have more."""
        streams = list(_streams(attempts))
        limit = max(_LEAST_BYTES, min(_READ_BYTES, _ROUND_BYTES // max(1, len(streams))))
        found: list[MergedLine] = []
        unread: set[StreamKey] = set()
        horizon = float("inf")
        for attempt, key in streams:
            lines, more = self._lines(attempt, key, self._offsets.get(key, 0), limit)
            found += lines
            if more and lines:
                # What this stream says next is not known yet: lines of others that may come after it have to wait.
                horizon = min(horizon, lines[-1].at)
                unread.add(key)
        unread.update(each.key for each in found if each.at > horizon)
        found = [each for each in found if each.at <= horizon]
        found.sort(key=lambda each: each.at)  # keeps the order within each stream
        self._offsets.update((each.key, each.line.next_offset) for each in found)
        return found, unread

    def skip_to_last(self, attempts: Iterable[AttemptRow], count: int) -> None:
        """Goes on with the last `count` lines of what these streams hold now."""
        last: list[_Begin] = []  # a heap: the oldest line first
        number = 0
        for attempt, key in _streams(attempts):
            begin = self._store.tail_offset(self._job_id, *_place(key), count)
            while True:
                lines, more = self._lines(attempt, key, begin, _READ_BYTES)
                for each in lines:
                    number += 1
                    _keep_largest(last, (each.at, number, key, begin), count)
                    begin = each.line.next_offset
                if not (lines and more):
                    break
            self._offsets[key] = begin
        for _, _, key, begin in last:
            self._offsets[key] = min(self._offsets[key], begin)

    def sizes(self, attempts: Iterable[AttemptRow]) -> dict[StreamKey, int]:
        """Where each stream ends now."""
        return {key: self._store.size(self._job_id, *_place(key)) for _, key in _streams(attempts)}

    def has_read(self, sizes: dict[StreamKey, int]) -> bool:
        """Whether all has been read up to there."""
        return all(self._offsets.get(key, 0) >= size for key, size in sizes.items())

    def _lines(
        self, attempt: AttemptRow, key: StreamKey, offset: int, limit_bytes: int
    ) -> tuple[list[MergedLine], bool]:
        final = not has_process(attempt)
        lines, more = self._store.read_lines(self._job_id, *_place(key), offset, limit_bytes=limit_bytes, final=final)
        at, merged = 0.0, []
        for line in lines:
            at = max(at, line.timestamp)
            merged.append(MergedLine(key, at, line))
        return merged, more


def _streams(attempts: Iterable[AttemptRow]) -> Iterator[tuple[AttemptRow, StreamKey]]:
    for attempt in attempts:
        for stream in STREAM_NAMES:
            yield attempt, (attempt.task, attempt.number, stream)


def _place(key: StreamKey) -> tuple[int, int, str]:
    task, attempt, stream = key
    return task, attempt, STREAM_NAMES[stream]


def _keep_largest(heap: list[_Begin], entry: _Begin, count: int) -> None:
    if len(heap) < count:
        heappush(heap, entry)
    elif count:
        heappushpop(heap, entry)
