"""Reads one log, in lines, also while it is appended to and its beginning is dropped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fluster.cluster.controller import logindex, loglines

_LINE_COST_BYTES = 200  # of a line beside its text, in memory: an answer of many short lines weighs as much as others


@dataclass(frozen=True, slots=True)
class Line:
    """A line, or a piece of a long one.

    Attributes:
        timestamp: When its first byte was first seen, unix seconds.
        data: Without the newline.
        next_offset: Where to go on.
    """

    timestamp: float
    data: bytes
    next_offset: int


class LogReader:
    """A log and its index, both open.

    Args:
        file: Descriptor of the log.
        index: Descriptor of its index.
    """

    def __init__(self, file: int, index: int) -> None:
        self._file = file
        self._index = index

    def lines(self, offset: int, *, limit_bytes: int, final: bool, cap_bytes: int) -> tuple[list[Line], bool]:
        """Lines from `offset` on, and whether there are more now; see `LogStore.read_lines`."""
        block, begin, size = self._block(offset, limit_bytes + loglines.MAX_LINE_BYTES + 1)
        times = logindex.Times(self._index, begin, os.fstat(self._file).st_mtime)
        lines: list[Line] = []
        if begin > offset:
            dropped = b"[fluster: %d earlier bytes were dropped; %d are kept of a stream]" % (begin - offset, cap_bytes)
            lines.append(Line(times.at(begin), dropped, begin))
        room, end = limit_bytes, begin + len(block)
        for first, last, following in loglines.split(block, complete=final and end == size):
            if room <= 0:
                return lines, True
            lines.append(Line(times.at(begin + first), block[first:last], begin + following))
            room -= last - first + _LINE_COST_BYTES
        return lines, end < size

    def start_of_last(self, lines: int) -> int:
        """Where the last `lines` complete lines begin; see `loglines.start_of_last`."""
        return loglines.start_of_last(self._between, self._start(), self._size(), lines)

    def _size(self) -> int:
        return os.fstat(self._file).st_size

    def _start(self) -> int:
        return min(logindex.read_start(self._index) or 0, self._size())

    def _between(self, begin: int, end: int) -> bytes:
        return os.pread(self._file, end - begin, begin)

    def _block(self, offset: int, length: int) -> tuple[bytes, int, int]:
        """Bytes from `offset`, or from the first that is kept, on; where they begin; the size of the log."""
        while True:
            size = self._size()
            if offset >= size:
                return b"", offset, size
            begin = min(max(offset, self._start()), size)
            block = self._between(begin, min(begin + length, size))
            # What was dropped while it was read may have been read as zeros.
            if self._start() <= begin:
                return block, begin, size


@contextmanager
def open_log(path: Path) -> Iterator[LogReader | None]:
    """The log at `path`; None when there is none."""
    try:
        file = open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        yield None
        return
    try:
        index = open_file(index_of(path), os.O_RDONLY)
    except FileNotFoundError:
        index = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)  # an index that knows nothing
    try:
        yield LogReader(file, index)
    finally:
        os.close(file)
        os.close(index)


def index_of(path: Path) -> Path:
    """The index beside a log."""
    return path.with_name(f"{path.name}.index")


def open_file(path: Path, flags: int) -> int:
    """A descriptor of a file that is ours: no link is followed."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
