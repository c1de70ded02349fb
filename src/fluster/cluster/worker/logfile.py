"""One append-only log file of an attempt, read while it grows and cut at its old end."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02  # fallocate(2)
_PAGE = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_libc_fallocate = getattr(_libc, "fallocate", None)  # Linux only


def size_of(path: Path) -> int:
    """Bytes ever written to the file, those cut off included; 0 if there is none."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def read(path: Path, offset: int, length: int) -> bytes:
    """Bytes from `offset` on; fewer at the end of the file, none if it is gone."""
    try:
        # The job could put a link or a FIFO in the place of its log.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(descriptor, length, offset)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def first_kept(path: Path) -> int:
    """Offset of the first byte that has not been cut off."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return os.lseek(descriptor, 0, os.SEEK_DATA)
    except OSError as error:
        # ENXIO: there is no data at all, only a hole or nothing.
        return os.fstat(descriptor).st_size if error.errno == errno.ENXIO else 0
    finally:
        os.close(descriptor)


def cut(path: Path, end: int) -> int:
    """Gives the disk space of the bytes before `end` back; the writer notices nothing.

    Returns:
        Offset of the first byte that is still there; 0 where the file system cannot do it.
    """
    end -= end % _PAGE
    if end <= 0 or _libc_fallocate is None:
        return 0
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        done = _libc_fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(0), ctypes.c_int64(end))
        return end if done == 0 else 0
    finally:
        os.close(descriptor)
