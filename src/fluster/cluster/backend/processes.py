"""Worker daemons as processes of this machine: started in sessions of their own, found again by their directories."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import time
from pathlib import Path

from fluster.cluster.attempt import proc
from fluster.cluster.worker import files
from fluster.cluster.worker.state import LOCK

LOG = "worker.log"
_LOOK_S = 0.02
_END_S = 60.0
_OURS = "FLUSTER_"


def start(command: list[str], state_dir: Path, *, lifeline_fd: int | None) -> int:
    """Starts a daemon in a session of its own, its output appended to a log in its directory; its pid."""
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(state_dir / LOG), append, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    if lifeline_fd is not None:
        actions.append((os.POSIX_SPAWN_DUP2, lifeline_fd, lifeline_fd))  # keeps it open across the exec
    # Our own variables speak of the cluster or job that this process belongs to.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(_OURS)}
    return os.posix_spawn(command[0], command, environment, file_actions=actions, setsid=True)


def holder(state_dir: Path) -> int | None:
    """Pid of the daemon that runs on the directory; `None` if there is none."""
    try:
        descriptor = os.open(state_dir / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(descriptor)


async def wait_gone(pid: int) -> None:
    """Returns when the process has ended; reaps it if it is a child of this one."""
    while not _reap(pid):
        if not hasattr(os, "pidfd_open"):
            await asyncio.sleep(_LOOK_S)
            continue
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)


async def stop(pid: int, grace_s: float) -> None:
    """Ends a daemon and leaves what it runs alone; returns when it is gone."""
    _signal(pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(grace_s):
            await wait_gone(pid)
    except TimeoutError:
        _signal(pid, signal.SIGKILL)
        await wait_gone(pid)


def end_worker(state_dir: Path, python: str, *, patience_s: float, grace_s: float) -> None:
    """Ends a worker with everything it runs. Blocks.

    Args:
        state_dir: The worker's.
        python: Interpreter of worker daemons.
        patience_s: It may be ending already: so long it is left alone.
        grace_s: From SIGTERM to SIGKILL.
    """
    if not state_dir.exists():
        return
    files.release(state_dir)
    if (pid := holder(state_dir)) is not None and not _wait_gone(pid, patience_s):
        _signal(pid, signal.SIGTERM)
        if not _wait_gone(pid, grace_s):
            _signal(pid, signal.SIGKILL)
            _wait_gone(pid, grace_s)
    if any((state_dir / "attempts").glob("*")) and not files.has_left(state_dir):
        # It died without ending what it ran.
        command = [python, "-P", "-m", "fluster.cluster.worker", "end", "--state-dir", str(state_dir)]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_END_S, check=False)


def _wait_gone(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not (gone := _reap(pid)) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    return gone


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _reap(pid: int) -> bool:
    """Whether the process is gone: also one that has ended and whose parent does not ask, as in many containers."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return proc.has_ended(pid)
