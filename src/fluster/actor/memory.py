"""Memory for large buffers: shared with a process of the same machine, or received into and used again.

The first touch of a page costs more than the copy, so that what was touched once is kept. Memory is free again when
nothing refers to it, which the reference count of its mapping tells: an array that an actor or a caller keeps holds on
to its memory, and never sees it change.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass

SHARED_FROM_BYTES = 256 << 10
"""Smaller buffers are faster in the stream."""
SHARED_BUDGET_BYTES = 512 << 20
"""Of slabs that one end of a connection has; what does not fit goes through the stream."""
MAX_SLABS = 64
"""Each costs both ends a descriptor as long as something in it is kept; a process has 1,024 of them as a rule."""
_KEPT_BYTES = 256 << 20
_SPLIT_FROM_BYTES = 4 << 20
"""One core does not use up what memory can do; to begin a thread costs as much as a megabyte."""
_ALIGNMENT = 64
_PAGE = mmap.PAGESIZE


def _rounded(size: int) -> int:
    """A size of which there are few, so that memory fits again: at most an eighth more than asked for."""
    step = max(_PAGE, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step


def _use_huge_pages(mapping: mmap.mmap) -> None:
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    except (AttributeError, OSError, ValueError):  # another kernel
        pass


# What getrefcount says of a mapping, asked for as below, that nothing but its container refers to.
_probe = [mmap.mmap(-1, _PAGE)]
_IDLE = sys.getrefcount(_probe[0])
del _probe


class Received:
    """Private memory that buffers are received into, or kept in. For any threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mappings: list[mmap.mmap] = []

    def take(self, size: int) -> memoryview:
        """Writable memory of exactly this size; it is free once nothing refers to it or to slices of it."""
        if size < SHARED_FROM_BYTES:
            return memoryview(bytearray(size))
        with self._lock:
            return self._take(size)

    def copy(self, buffer: memoryview) -> memoryview:
        """The same content in memory of its own."""
        taken = self.take(buffer.nbytes)
        copy_into(taken, buffer)
        return taken

    def _take(self, size: int) -> memoryview:
        rounded = _rounded(size)
        for index in range(len(self._mappings)):
            if len(self._mappings[index]) == rounded and sys.getrefcount(self._mappings[index]) <= _IDLE:
                return memoryview(self._mappings[index])[:size]
        made = mmap.mmap(-1, rounded)
        _use_huge_pages(made)
        self._forget_idle(rounded)
        self._mappings.append(made)
        return memoryview(made)[:size]

    def _forget_idle(self, coming: int) -> None:
        """Lets go of the oldest that nobody uses, as far as more is kept than is worth it."""
        total = coming + sum(map(len, self._mappings))
        index = 0
        while total > _KEPT_BYTES and index < len(self._mappings):
            if sys.getrefcount(self._mappings[index]) <= _IDLE:
                total -= len(self._mappings.pop(index))
            else:
                index += 1


@dataclass(slots=True, eq=False)
class Slab:
    """Shared memory of which this end may write.

    Attributes:
        number: Names it in the connection.
        descriptor: Of the memory; -1 once the other end has it.
        lent: The other end may be using it.
        pinned: A call that may have to be sent again lies in it.
    """

    number: int
    mapping: mmap.mmap
    descriptor: int
    lent: bool = False
    pinned: bool = False

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.mapping)

    def close_descriptor(self) -> None:
        """The other end has its own now."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Slabs:
    """The slabs of one end of a connection. Used by one thread at a time."""

    def __init__(self, budget_bytes: int = SHARED_BUDGET_BYTES) -> None:
        self.dropped: list[int] = []  # the other end is to be told
        self._budget = budget_bytes
        self._slabs: dict[int, Slab] = {}
        self._last = 0

    def take(self, size: int) -> Slab | None:
        """A slab of at least this size that nobody uses; `None` if that would be more than there may be."""
        rounded = _rounded(size)
        best: Slab | None = None
        for slab in self._slabs.values():
            fits = not (slab.lent or slab.pinned) and rounded <= slab.size <= 2 * rounded
            if fits and (best is None or slab.size < best.size):
                best = slab
        if best is not None:
            best.lent = True
            return best
        if not self._make_room(rounded):
            return None
        try:
            slab = self._make(rounded)
        except OSError:  # no memfd here, or no memory
            return None
        self._slabs[slab.number] = slab
        slab.lent = True
        return slab

    def give_back(self, number: int) -> None:
        """The other end does not use it any more."""
        slab = self._slabs.get(number)
        if slab is not None:
            slab.lent = False

    def close(self) -> None:
        """Lets go of all; whoever still uses one keeps its memory."""
        for slab in self._slabs.values():
            slab.close_descriptor()
        self._slabs.clear()

    def _make_room(self, size: int) -> bool:
        used = sum(slab.size for slab in self._slabs.values())
        for slab in list(self._slabs.values()):
            if used + size <= self._budget and len(self._slabs) < MAX_SLABS:
                break
            if not (slab.lent or slab.pinned):
                used -= slab.size
                slab.close_descriptor()
                del self._slabs[slab.number]
                self.dropped.append(slab.number)
        return used + size <= self._budget and len(self._slabs) < MAX_SLABS

    def _make(self, size: int) -> Slab:
        descriptor = os.memfd_create("fluster", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            mapping = mmap.mmap(descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
        _use_huge_pages(mapping)
        self._last += 1
        return Slab(self._last, mapping, descriptor)


class Borrowed:
    """Slabs of the other end that this end has mapped. For any threads.

    Attributes:
        used: Numbers of those that may be referred to.
    """

    def __init__(self, budget_bytes: int = 2 * SHARED_BUDGET_BYTES) -> None:
        self._lock = threading.Lock()
        self._budget = budget_bytes
        self._mappings: dict[int, mmap.mmap] = {}
        self.used: set[int] = set()

    def knows(self, number: int) -> bool:
        """Whether it came before."""
        return number in self._mappings

    def drop(self, number: int) -> None:
        """The other end has no more use for it."""
        with self._lock:
            self._mappings.pop(number, None)
            self.used.discard(number)

    def add(self, number: int, size: int, descriptor: int) -> None:
        """Maps what came; the descriptor is closed.

        Raises:
            ValueError: It is not memory that keeps its size: looking at it could end this process.
        """
        try:
            seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
            if not seals & fcntl.F_SEAL_SHRINK or not 0 < size <= os.fstat(descriptor).st_size:
                raise ValueError("shared memory that may shrink is not accepted")
            if size + sum(map(len, self._mappings.values())) > self._budget:
                raise ValueError("more shared memory than was agreed on is not accepted")
            self._mappings[number] = mmap.mmap(descriptor, size)
        except OSError as error:
            raise ValueError(f"shared memory cannot be mapped: {error.strerror}") from None
        finally:
            os.close(descriptor)

    def view(self, number: int, offset: int, size: int) -> memoryview:
        """Part of it, from now on in use.

        Raises:
            ValueError: There is no such part.
        """
        mapping = self._mappings.get(number)
        if mapping is None or offset + size > len(mapping):
            raise ValueError("a buffer lies outside of the memory it names")
        with self._lock:
            self.used.add(number)
        return memoryview(mapping)[offset : offset + size]

    def freed(self) -> list[int]:
        """Those that nothing here refers to any more, once each."""
        if not self.used:
            return []
        with self._lock:
            found = [number for number in self.used if sys.getrefcount(self._mappings[number]) <= _IDLE]
            self.used.difference_update(found)
        return found


def copy_into(target: memoryview, source: memoryview) -> None:
    """Copies to memory of the same size; much of it on two cores, where numpy is loaded, which lets go of the GIL."""
    numpy = sys.modules.get("numpy")
    half = source.nbytes // 2
    if source.nbytes < _SPLIT_FROM_BYTES or not hasattr(numpy, "copyto") or len(os.sched_getaffinity(0)) < 2:
        target[:] = source
        return
    assert numpy is not None
    to, of = numpy.frombuffer(target, numpy.uint8), numpy.frombuffer(source, numpy.uint8)
    other = threading.Thread(target=numpy.copyto, args=(to[half:], of[half:]), name="fluster-actor-copy", daemon=True)
    try:
        other.start()
    except RuntimeError:  # no more threads here
        target[:] = source
        return
    try:
        numpy.copyto(to[:half], of[:half])
    finally:
        other.join()


def layout(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Where buffers of these sizes lie in a slab, and how large it must be."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return offsets, end
