"""Gives the disk space of a file's beginning back while the file stays and grows: offsets keep their meaning."""

from __future__ import annotations

import ctypes

_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02  # fallocate(2)
_PAGE_BYTES = 4096

_fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)  # Linux only


def punch(descriptor: int, end: int) -> bool:
    """Frees what lies before `end`, whole pages of it; it reads as zeros then.

    Returns:
        Whether the file system can do it (ext4, xfs, btrfs, tmpfs and overlays of them can).
    """
    end -= end % _PAGE_BYTES
    if _fallocate is None:
        return False
    if end <= 0:
        return True
    done = _fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(0), ctypes.c_int64(end))
    return bool(done == 0)
