"""Keeps a second controller off a state directory, and names or ends the one that holds it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fluster.cluster.attempt import proc
from fluster.errors import FlusterError

TERM_GRACE_S = 5.0
"""What a holder gets to end by itself; a controller stops within a second or two."""
KILL_GRACE_S = 5.0
"""After SIGKILL: longer only when it hangs in the kernel, on a dead disk for example."""
ENDING_WAIT_S = 20.0
"""For a holder that has said that it is ending: it may have jobs to end first."""
_POLL_S = 0.05
_RECORD_WAIT_S = 1.0
_MAX_RECORD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a state directory.

    Attributes:
        boot_id: Of its machine's present run; empty where the system has none.
        started: Its start in clock ticks since boot; with the pid, its identity. None where the system does not tell.
        since: Unix seconds.
        ending: It will give the directory up in a moment.
    """

    pid: int
    host: str
    boot_id: str
    started: int | None
    since: float
    ending: bool = False

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host} since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))}"

    @classmethod
    def this_process(cls) -> Holder:
        """The record of this process."""
        try:
            boot_id, started = proc.boot_id(), proc.start_time(os.getpid())
        except OSError:
            boot_id, started = "", None
        return cls(os.getpid(), socket.gethostname(), boot_id, started, time.time())

    def runs_here(self) -> bool:
        """Whether this very process can be seen from here: on this machine, in this pid namespace, still running."""
        here = Holder.this_process()
        if self.started is None or not self.boot_id or self.boot_id != here.boot_id:
            return False
        return proc.is_running(self.pid, self.started)


class StateDirBusy(FlusterError):
    """Another controller holds the state directory.

    Attributes:
        holder: Who; None if it has left no readable record.
    """

    holder: Holder | None

    def __init__(self, directory: Path, holder: Holder | None, cure: str) -> None:
        who = str(holder) if holder else "an unknown process"
        super().__init__(f"{directory} is in use by another controller ({who}); {cure}")
        self.holder = holder


class StateLock:
    """A held lock. The kernel releases it when the process ends, however that happens."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, path: Path, *, take_over: bool = False) -> StateLock:
        """Takes the lock. A holder that is ending is waited for.

        Args:
            path: Of the lock file, which says who holds it. It stays when the lock is released.
            take_over: End the holder first: SIGTERM, after 5 s SIGKILL.

        Raises:
            StateDirBusy: Somebody else has it, or could not be ended.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if not _try(descriptor):
                _oust(path.parent, descriptor, take_over=take_over)
            _write(descriptor, Holder.this_process())
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def note_ending(self) -> None:
        """Tells whoever wants the lock that it is worth waiting for."""
        if self._descriptor is not None:
            _write(self._descriptor, replace(Holder.this_process(), ending=True))

    def release(self) -> None:
        """Gives the lock back; repeating is harmless."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            try:
                os.ftruncate(descriptor, 0)
            finally:
                os.close(descriptor)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(descriptor: int, holder: Holder) -> None:
    # In place: a renamed file would be another one than the one that is locked.
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)


def _oust(directory: Path, descriptor: int, *, take_over: bool) -> None:
    """Takes a lock that somebody holds, or raises."""
    holder = _holder(descriptor)
    if holder is not None and holder.ending and _within(ENDING_WAIT_S, lambda: _try(descriptor)):
        return
    if not take_over:
        cure = "stop it, choose another state directory, or end it with --take-over"
        raise StateDirBusy(directory, holder, cure)
    _end(directory, holder, lambda: _try(descriptor))


def _holder(descriptor: int) -> Holder | None:
    """Who holds the lock. It may have taken it a moment ago and not have written its record yet."""
    deadline = time.monotonic() + _RECORD_WAIT_S
    while True:
        try:
            return Holder(**json.loads(os.pread(descriptor, _MAX_RECORD_BYTES, 0)))
        except (ValueError, TypeError):
            if time.monotonic() > deadline:
                return None
        time.sleep(_POLL_S)


def _end(directory: Path, holder: Holder | None, taken: Callable[[], bool]) -> None:
    """Ends the holder and takes what it held."""
    if holder is None or (not holder.runs_here() and not _within(1.0, taken)):
        raise StateDirBusy(directory, holder, "it cannot be seen from here and so not be ended: stop it where it runs")
    if holder.pid == os.getpid():
        raise StateDirBusy(directory, holder, "that is this very process: close the other one first")
    for number, grace_s in ((signal.SIGTERM, TERM_GRACE_S), (signal.SIGKILL, KILL_GRACE_S)):
        try:
            _signal(holder, number)
        except PermissionError:
            raise StateDirBusy(directory, holder, "it belongs to another user, who has to stop it") from None
        if _within(grace_s, taken):
            return
    raise StateDirBusy(
        directory, holder, "it did not end within 5 s of SIGKILL; look at its disk and at the kernel log"
    )


def _signal(holder: Holder, number: signal.Signals) -> None:
    """Signals the holder and nobody who got its pid after it."""
    try:
        descriptor = os.pidfd_open(holder.pid)
    except ProcessLookupError:
        return
    try:
        if holder.runs_here():
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def _within(limit_s: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
