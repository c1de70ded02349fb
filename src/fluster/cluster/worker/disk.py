"""How much disk an attempt's files take, sampled."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path

_BLOCK = 512  # st_blocks counts in these, whatever the file system's own block is
_SAMPLE_S = 2.0
# Looking at a large tree may take no more than this share of the time.
_SHARE = 0.05
_FULL_BYTES = 1 << 20


async def wait_until_over(directory: Path, limit_bytes: int, *, sample_s: float = _SAMPLE_S) -> int:
    """Returns what the files below `directory` take, once that is more than `limit_bytes`."""
    while True:
        before = time.monotonic()
        used = await asyncio.to_thread(used_bytes, directory)
        if used > limit_bytes:
            return used
        await asyncio.sleep(max(sample_s, (time.monotonic() - before) / _SHARE))


def is_full(directory: Path) -> bool:
    """Whether hardly anything can be written there any more."""
    try:
        return shutil.disk_usage(directory).free < _FULL_BYTES
    except OSError:
        return False


def used_bytes(directory: Path) -> int:
    """Bytes on disk below `directory`; what vanishes meanwhile counts nothing, links are not followed."""
    total = 0
    waiting = [os.fspath(directory)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    try:
                        total += entry.stat(follow_symlinks=False).st_blocks * _BLOCK
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
                    except OSError:
                        continue
        except OSError:
            continue
    return total
