"""Waits for the end of a process, whoever its parent is."""

from __future__ import annotations

import asyncio
import os

from fluster.cluster.attempt import proc


async def end_of_process(pid: int, started: int | None = None) -> None:
    """Returns when the process has ended, reaped or not; at once if there is none, or none that started then."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    try:
        if started in (None, proc.start_time(pid)):
            loop.add_reader(descriptor, ended.set)
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
