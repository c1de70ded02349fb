"""The small file beside a log: where the log still begins, and which of its bytes came when.

A header (magic, offset of the first byte that is kept), then one record (offset, unix seconds) for each moment at
which bytes arrived. A torn end, and records of bytes that a power cut took, are passed over and cut off later.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import overload

_MAGIC = b"FLI1"
_HEADER = struct.Struct("<4s4xQ")
_RECORD = struct.Struct("<Qd")
_AT_ONCE = 512


def read_start(descriptor: int) -> int | None:
    """Offset of the first byte of the log that is kept; None when this is no index."""
    header = os.pread(descriptor, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        return None
    magic, start = _HEADER.unpack(header)
    return int(start) if magic == _MAGIC else None


def write_start(descriptor: int, start: int) -> None:
    """Says where the log begins."""
    os.pwrite(descriptor, _HEADER.pack(_MAGIC, start), 0)


def append(descriptor: int, count: int, offset: int, timestamp: float) -> None:
    """Notes that the bytes from `offset` on came at this time, after `count` records."""
    os.pwrite(descriptor, _RECORD.pack(offset, timestamp), _HEADER.size + count * _RECORD.size)


def mend(descriptor: int, size: int) -> tuple[int, int, float]:
    """Makes the index fit a log of `size` bytes, as it may not after a crash.

    Returns:
        Where the log begins, how many records there are, and when its last bytes came (0: unknown).
    """
    start = read_start(descriptor)
    if start is None:
        os.ftruncate(descriptor, 0)
        write_start(descriptor, 0)
        return 0, 0, 0.0
    if start > size:
        start = size
        write_start(descriptor, start)
    records = _Records(descriptor)
    count = len(records)
    while count and records.at(count - 1)[0] >= size:
        count -= 1
    os.ftruncate(descriptor, _HEADER.size + count * _RECORD.size)
    return start, count, records.at(count - 1)[1] if count else 0.0


class Times:
    """When bytes came, asked for rising offsets.

    Args:
        descriptor: Of the index.
        offset: Where asking starts.
        unknown: Answer for bytes of which the index says nothing.
    """

    def __init__(self, descriptor: int, offset: int, unknown: float) -> None:
        records = _Records(descriptor)
        first = bisect_right(records, offset)
        self._time = records.at(first - 1)[1] if first else unknown
        self._rest = records.since(first)
        self._next = next(self._rest, None)

    def at(self, offset: int) -> float:
        """When the byte at `offset` came."""
        while self._next is not None and self._next[0] <= offset:
            self._time = self._next[1]
            self._next = next(self._rest, None)
        return self._time


class _Records(Sequence[int]):
    """The records' offsets as a sequence to search in, without reading it whole."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._count = max(0, os.fstat(descriptor).st_size - _HEADER.size) // _RECORD.size

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            return [self.at(i)[0] for i in range(*index.indices(self._count))]
        return self.at(index)[0]

    def at(self, index: int) -> tuple[int, float]:
        """One record: offset and time."""
        return _RECORD.unpack(os.pread(self._descriptor, _RECORD.size, _HEADER.size + index * _RECORD.size))

    def since(self, index: int) -> Iterator[tuple[int, float]]:
        """The records from `index` on."""
        while index < self._count:
            count = min(_AT_ONCE, self._count - index)
            block = os.pread(self._descriptor, count * _RECORD.size, _HEADER.size + index * _RECORD.size)
            yield from _RECORD.iter_unpack(block[: len(block) - len(block) % _RECORD.size])
            index += count
