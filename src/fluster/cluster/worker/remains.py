"""What shims left in an attempt's directory: who runs, how it ended, and how to end a tree that lost its shim."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from fluster.cluster.attempt import files, proc
from fluster.cluster.attempt.cgroup import AttemptCgroup, Hierarchy
from fluster.cluster.attempt.request import hierarchies_from_json
from fluster.cluster.attempt.tree import send
from fluster.cluster.worker.runtime import ExitRecord, Gone, Running

# A shim writes its running record within milliseconds of taking the lock, and releases the lock with its last breath.
_LOCK_PATIENCE_S = 10.0
_POLL_S = 0.005
_LONGEST_POLL_S = 0.5

REMOVED = Gone("its directory on the worker's machine was removed")
RESTARTED = Gone("its machine was restarted under it")


@dataclass(frozen=True, slots=True)
class RunningRecord:
    """Who runs an attempt: pids alone are not identities, so each comes with its start time, and all with the boot."""

    pid: int
    started: int
    shim: int
    shim_started: int
    boot_id: str
    started_at: float
    hierarchies: tuple[Hierarchy, ...]

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """From a running record, or a zygote's reply that carries one."""
        known = {name: fields[name] for name in cls.__slots__}
        return cls(**{**known, "hierarchies": hierarchies_from_json(fields["hierarchies"])})

    def running(self) -> Running:
        """As the worker sees it."""
        return Running(self.pid, self.started_at)


def read_running(directory: Path) -> RunningRecord | None:
    """The running record of this boot; `None` if there is none, or the machine was started again since."""
    fields = files.read_json(directory / files.RUNNING)
    return None if fields is None or is_of_another_boot(fields) else RunningRecord.from_fields(fields)


def is_of_another_boot(fields: dict[str, Any]) -> bool:
    """Whether the machine was started again since a running record was written."""
    return bool(fields["boot_id"] != proc.boot_id())


def gone(directory: Path) -> Gone:
    """Why nothing runs of an attempt whose shim did not write down its end."""
    if not directory.is_dir():
        return REMOVED
    fields = files.read_json(directory / files.RUNNING)
    return RESTARTED if fields is not None and is_of_another_boot(fields) else Gone()


def read_exit(directory: Path) -> ExitRecord | None:
    """The exit record, if the attempt has ended."""
    fields = files.read_json(directory / files.EXIT)
    return None if fields is None else ExitRecord(**fields)


def write_fault(directory: Path, message: str, *, now: float) -> ExitRecord:
    """Puts on record that Fluster could not start the attempt, so that nothing starts it later."""
    end = ExitRecord(
        exit_code=None,
        signal=None,
        out_of_memory=False,
        timed_out=False,
        stop_requested=False,
        start_error=message,
        fluster_fault=True,
        peak_memory_bytes=0,
        started_at=None,
        finished_at=now,
    )
    try:
        files.write_json(directory / files.EXIT, asdict(end), durable=True)
    except OSError:  # a full disk may be what kept it from starting
        pass
    return end


async def find_shim(directory: Path) -> RunningRecord | None:
    """The live shim of an attempt; `None` if it has none (any more, or yet)."""
    for _ in range(round(_LOCK_PATIENCE_S / _POLL_S)):
        if (lock := files.take_lock(directory)) is not None:
            os.close(lock)
            return None
        if (record := read_running(directory)) is not None:
            return record
        await asyncio.sleep(_POLL_S)
    raise TimeoutError(f"the shim of {directory} lives but wrote no running record within {_LOCK_PATIENCE_S:g} s")


async def end_remains(uid: str, directory: Path) -> ExitRecord | Gone:
    """Ends what is left of an attempt whose shim is gone, and forbids a late one. Nothing of it runs afterwards."""
    if not directory.is_dir():
        return REMOVED
    lock = await take_lock_of_ended(directory)
    try:
        if (end := read_exit(directory)) is not None:
            return end
        (directory / files.ABANDONED).touch()
        record = read_running(directory)
        await _kill_all(uid, record, AttemptCgroup(record.hierarchies if record else ()))
        return gone(directory)
    finally:
        os.close(lock)


async def take_lock_of_ended(directory: Path) -> int:
    """The lock of an attempt whose shim has ended, or is about to.

    Raises:
        TimeoutError: It holds on.
    """
    for _ in range(round(_LOCK_PATIENCE_S / _POLL_S)):
        if (lock := files.take_lock(directory)) is not None:
            return lock
        await asyncio.sleep(_POLL_S)
    raise TimeoutError(f"somebody else still holds the lock of {directory}")


async def _kill_all(uid: str, record: RunningRecord | None, cgroup: AttemptCgroup) -> None:
    """Without a bound, as in the shim: while something of it runs, the attempt is not over."""
    pause = _POLL_S
    while pids := _survivors(uid, record, cgroup):
        cgroup.kill()
        send(pids, signal.SIGKILL)
        await asyncio.sleep(pause)
        for pid in pids:
            proc.reap(pid)
        pause = min(2 * pause, _LONGEST_POLL_S)
    cgroup.remove(tries=1)
    for known in (record.shim, record.pid) if record is not None else ():
        proc.reap(known)  # children of this process, if their parents died one after the other


def _survivors(uid: str, record: RunningRecord | None, cgroup: AttemptCgroup) -> set[int]:
    """Processes found by cgroup, marker and session, with all that descends from them."""
    found = {*cgroup.pids(), *proc.marked(uid)}
    if record is not None:
        found.update(proc.in_session(record.pid, record.started))
        if proc.is_running(record.pid, record.started):  # also before it had a marker and a session
            found.add(record.pid)
    return found.union(*(proc.descendants(pid) for pid in found))
