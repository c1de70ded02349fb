"""What jobs printed: one file per attempt and stream, addressed by offset, bounded by dropping the oldest bytes."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from fluster.cluster.controller import logindex
from fluster.cluster.controller.loglines import MAX_LINE_BYTES
from fluster.cluster.controller.logreader import Line, index_of, open_file, open_log
from fluster.cluster.holes import punch
from fluster.cluster.ids import JobId
from fluster.cluster.refusal import refuse
from fluster.errors import ResourceExhausted

__all__ = ["CAP_BYTES", "MAX_OFFSET", "STREAMS", "Line", "LogStore"]

CAP_BYTES = 256 * 1024 * 1024
"""Kept of one stream."""
MAX_OPEN = 128
"""Streams open for appending at one time, two descriptors each; the longest unused one is closed."""
STREAMS = ("stdout", "stderr")
MAX_OFFSET = 1 << 53
"""More than anybody prints: where a chunk ends is a number that a message can hold."""
_GAPS_TAKEN_AT = 3
# A job that prints a little for weeks must not have an index larger than its log: 16 MB hold a day of ten times a
# second, from then on times are kept to the second.
_FINE_TIMES = 1_000_000
_SAME_TIME_S = 0.01
_SAME_TIME_LATER_S = 1.0
_Key = tuple[JobId, str]
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)


@dataclass(slots=True)
class _Gap:
    """Chunks that would leave a gap: how often one was offered, and where the last one ended."""

    offered: int
    end: int


@dataclass(slots=True)
class _Open:
    """A stream that is being appended to.

    Attributes:
        start: Offset of the first byte that is kept.
        times: Records in the index.
        last_time: Of the last of them.
    """

    file: int
    index: int
    size: int
    start: int
    times: int
    last_time: float

    def close(self) -> None:
        os.close(self.file)
        os.close(self.index)


class LogStore:
    """The logs of all jobs.

    Appending takes some ten microseconds a chunk. Everything else opens what it reads anew and may run in any thread
    beside it; long reads and `delete_job` belong in one.

    Nothing is synced by itself: a killed controller loses nothing, a power cut takes what the kernel had not written
    yet, some 30 s at most. The stream is then shorter, says so by its size, and the worker sends the rest again if the
    attempt is still there; of attempts that ended within those seconds the last lines are lost.

    Args:
        directory: Made if it is missing.
        cap_bytes: Kept of each stream; the oldest bytes give way, and readers see one line that says so.
    """

    def __init__(self, directory: Path, *, cap_bytes: int = CAP_BYTES) -> None:
        self._directory = directory
        self._cap_bytes = cap_bytes
        self._lock = threading.Lock()
        self._open: OrderedDict[_Key, _Open] = OrderedDict()
        self._gaps: dict[_Key, _Gap] = {}
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def close(self) -> None:
        """Closes what is open; repeating is harmless."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(
        self, job_id: JobId, task: int, attempt: int, stream: str, offset: int, data: bytes, timestamp: float
    ) -> int:
        """Adds what is new of a chunk.

        What is there already is passed over. A chunk that would leave a gap is not taken, so that its sender goes on
        where the stream ends. If it keeps offering one it does not have the bytes between any more: the third time it
        is taken, and what came before it gives way.

        Args:
            job_id: The job.
            task: Index of its task.
            attempt: Number of the task's attempt.
            stream: "stdout" or "stderr".
            offset: Of the chunk's first byte in the stream.
            data: The chunk.
            timestamp: When it was first seen, unix seconds.

        Returns:
            The size of the stream: the offset of what to send next.

        Raises:
            ResourceExhausted: The disk is full; what fitted was taken.
        """
        if not 0 <= offset <= MAX_OFFSET:
            raise refuse("offset", f"0 to {MAX_OFFSET}", offset)
        key = job_id, _name(task, attempt, stream)
        with self._lock, _space_errors():
            opened = self._opened(key)
            if offset > opened.size:
                if not self._gap_is_real(key, offset, len(data)):
                    return opened.size
                _begin_at(opened, offset)
            self._write(opened, data[opened.size - offset :], timestamp)
            if key in self._gaps:
                del self._gaps[key]
            return opened.size

    def size(self, job_id: JobId, task: int, attempt: int, stream: str) -> int:
        """Bytes of the stream, dropped ones included; 0 when nothing came yet."""
        try:
            return self._path(job_id, _name(task, attempt, stream)).stat().st_size
        except FileNotFoundError:
            return 0

    def read_lines(
        self, job_id: JobId, task: int, attempt: int, stream: str, offset: int, *, limit_bytes: int, final: bool
    ) -> tuple[list[Line], bool]:
        """Lines from `offset` on. Where bytes were dropped before it, the first line says how many.

        Args:
            job_id: The job.
            task: Index of its task.
            attempt: Number of the task's attempt.
            stream: "stdout" or "stderr".
            offset: 0 or a line's `next_offset`.
            limit_bytes: Of the answer; it holds at least one line if there is one.
            final: The stream has ended: a last line without newline is a line.

        Returns:
            The lines, and whether there are more now.
        """
        with open_log(self._path(job_id, _name(task, attempt, stream))) as log:
            if log is None:
                return [], False
            return log.lines(offset, limit_bytes=limit_bytes, final=final, cap_bytes=self._cap_bytes)

    def tail_offset(self, job_id: JobId, task: int, attempt: int, stream: str, lines: int) -> int:
        """Where the last `lines` complete lines begin. A last line without newline comes on top of them."""
        with open_log(self._path(job_id, _name(task, attempt, stream))) as log:
            return 0 if log is None else log.start_of_last(lines)

    def delete_job(self, job_id: JobId) -> None:
        """Removes all logs of a job; repeating is harmless."""
        directory = self._job_directory(job_id)
        with self._lock:
            for key in [key for key in self._open if key[0] == job_id]:
                self._open.pop(key).close()
            for key in [key for key in self._gaps if key[0] == job_id]:
                del self._gaps[key]
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            pass

    def job_ids(self) -> list[JobId]:
        """Jobs of which there are logs."""
        return [JobId(entry.name) for entry in os.scandir(self._directory) if _JOB_ID.fullmatch(entry.name)]

    def _job_directory(self, job_id: JobId) -> Path:
        if not _JOB_ID.fullmatch(job_id):
            raise refuse("job_id", "letters, digits, '.', '_' and '-'", job_id)
        return self._directory / job_id

    def _path(self, job_id: JobId, name: str) -> Path:
        return self._job_directory(job_id) / name

    def _opened(self, key: _Key) -> _Open:
        opened = self._open.get(key)
        if opened is not None:
            self._open.move_to_end(key)
            return opened
        path = self._path(*key)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        while len(self._open) >= MAX_OPEN:
            self._open.popitem(last=False)[1].close()
        file = open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            index = open_file(index_of(path), os.O_RDWR | os.O_CREAT)
        except BaseException:
            os.close(file)
            raise
        size = os.fstat(file).st_size
        opened = self._open[key] = _Open(file, index, size, *logindex.mend(index, size))
        return opened

    def _gap_is_real(self, key: _Key, offset: int, length: int) -> bool:
        """Whether the sender has been told where the stream ends and still has nothing earlier to offer."""
        gap = self._gaps.setdefault(key, _Gap(0, -1))
        if offset != gap.end:  # else the refused one's successor in the same request
            gap.offered += 1
        gap.end = offset + length
        return gap.offered >= _GAPS_TAKEN_AT

    def _write(self, opened: _Open, data: bytes, timestamp: float) -> None:
        if not data:
            return
        if not math.isfinite(timestamp):
            timestamp = opened.last_time
        # The index first: whoever reads the bytes finds their time.
        same_s = _SAME_TIME_S if opened.times < _FINE_TIMES else _SAME_TIME_LATER_S
        if not opened.times or abs(timestamp - opened.last_time) >= same_s:
            logindex.append(opened.index, opened.times, opened.size, timestamp)
            opened.times += 1
            opened.last_time = timestamp
        rest = memoryview(data)
        while rest:
            written = os.pwrite(opened.file, rest, opened.size)
            opened.size += written
            rest = rest[written:]
        if opened.size - opened.start > self._cap_bytes:
            self._drop_oldest(opened)

    def _drop_oldest(self, opened: _Open) -> None:
        """A sixteenth more than needed, so that it is not done at each chunk; up to the end of a line."""
        keep_from = opened.size - self._cap_bytes + self._cap_bytes // 16
        newline = os.pread(opened.file, MAX_LINE_BYTES, keep_from).find(b"\n")
        _begin_at(opened, keep_from + newline + 1)


def _name(task: int, attempt: int, stream: str) -> str:
    if stream not in STREAMS:
        raise refuse("stream", "stdout or stderr", stream)
    return f"{int(task)}.{int(attempt)}.{stream}"


def _begin_at(opened: _Open, start: int) -> None:
    """Drops what is before `start`, which may be past the end. Said first, then done: zeros are not taken for text."""
    logindex.write_start(opened.index, start)
    opened.start = start
    if start > opened.size:
        os.ftruncate(opened.file, start)
        opened.size = start
    # Where the file system has no holes the bytes stay on the disk, unread, until the job's logs are deleted.
    punch(opened.file, start)


@contextmanager
def _space_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ResourceExhausted(f"logs cannot be written: {error.strerror}; free some space") from error
