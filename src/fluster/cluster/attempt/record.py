"""What a shim writes down: who runs, how it ended, and what its worker orders."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluster.cluster.attempt import files, proc
from fluster.cluster.attempt.launch import StartError

_ROOM = 4096
_LONGEST_MESSAGE = 2500  # of characters, which JSON may write with more bytes


@dataclass(frozen=True, slots=True)
class ExitFile:
    """The exit record's place on the disk, taken at the start: a job that fills the disk still ends on record."""

    directory: Path
    descriptor: int

    @classmethod
    def reserve(cls, directory: Path) -> ExitFile:
        """Takes the room."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(directory / f".{files.EXIT}", flags, 0o600)
        os.pwrite(descriptor, b" " * _ROOM, 0)
        return cls(directory, descriptor)

    def write(self, fields: dict[str, Any]) -> None:
        """Puts the record there, durable and in one step."""
        os.pwrite(self.descriptor, json.dumps(fields).encode().ljust(_ROOM), 0)
        os.fsync(self.descriptor)
        os.replace(self.directory / f".{files.EXIT}", self.directory / files.EXIT)


def running_fields(pid: int, started_at: float, hierarchies: list[tuple[str, int, tuple[str, ...]]]) -> dict[str, Any]:
    """Identifies the attempt's first process and, the caller, its shim."""
    return {
        "pid": pid,
        "started": proc.start_time(pid),
        "shim": os.getpid(),
        "shim_started": proc.start_time(os.getpid()),
        "boot_id": proc.boot_id(),
        "started_at": started_at,
        "hierarchies": hierarchies,
    }


def exit_fields(
    *,
    status: int,
    out_of_memory: bool,
    timed_out: bool,
    stop_requested: bool,
    problem: StartError | None,
    peak_memory_bytes: int,
    started_at: float | None,
    finished_at: float,
    lease_ended: bool,
) -> dict[str, Any]:
    """The fields of an `ExitRecord`."""
    exited = os.WIFEXITED(status)
    succeeded = problem is None and status == 0
    exit_code = os.WEXITSTATUS(status) if exited else None
    return {
        "exit_code": exit_code if problem is None else problem.exit_code,
        "signal": None if exited or problem is not None else os.WTERMSIG(status),
        "out_of_memory": out_of_memory and not succeeded,
        "timed_out": timed_out,
        "stop_requested": stop_requested,
        "start_error": problem.message[:_LONGEST_MESSAGE] if problem is not None else None,
        "fluster_fault": problem is not None and problem.fluster_fault,
        "peak_memory_bytes": peak_memory_bytes,
        "started_at": started_at,
        "finished_at": finished_at,
        "lease_ended": lease_ended,
    }


def unusable_interpreter(python: str, directory: Path, exit_code: int) -> StartError:
    """Why an interpreter ended before it ran anything of ours: what it said itself."""
    said = files.last_lines(directory / files.STDERR)
    return StartError(
        f"the interpreter {python!r} cannot run the job runtime: it needs Python 3.11 or newer"
        f" with fluster-cluster installed; it said: {said or 'nothing'}",
        exit_code,
    )


def stop_order(grace_s: float) -> bytes:
    """What a worker writes to the control FIFO."""
    return f"stop {grace_s!r}\n".encode()


def graces(orders: str) -> Iterator[float]:
    """The grace of each stop order; anything else the attempt itself may have written there is ignored."""
    for order in orders.splitlines():
        word, _, number = order.partition(" ")
        try:
            grace_s = float(number)
        except ValueError:
            continue
        if word == "stop" and not math.isnan(grace_s):
            yield max(0.0, grace_s)


def say(directory: Path, text: str) -> None:
    """Adds a line of Fluster's own to the attempt's stderr."""
    with open(directory / files.STDERR, "ab") as file:
        file.write(f"fluster: {text}\n".encode())
