"""How a job ended: as a line or two for people, and as an exit code."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fluster.cli.exits import ExitCode
from fluster.cli.human import format_duration
from fluster.cluster.states import Cause, JobStatus

if TYPE_CHECKING:
    from fluster.cluster.types import JobInfo

_SAID = re.compile(r"^last lines of (?:stdout|stderr):$", re.MULTILINE)
_CURES = {
    Cause.OUT_OF_MEMORY: "ask for more with --memory, or use less",
    Cause.TIME_LIMIT: "give it more with --timeout, or do less",
    Cause.WORKER_LOST: "`fluster workers` shows the machines",
    Cause.UNSCHEDULABLE: "ask for less, or add workers",
    Cause.START_FAILED: "check the command and its path on the worker; `--workspace .` sends your files with it",
    Cause.DISK_FULL: "make room on the worker, or write less",
}


def exit_code(info: JobInfo) -> int:
    """Of `fluster run`: the job's own, 124 at its time limit, 1 where there is none to pass on."""
    if info.status is JobStatus.SUCCEEDED:
        return ExitCode.OK
    if info.cause is Cause.TIME_LIMIT:
        return ExitCode.TIMED_OUT
    return info.exit_code or ExitCode.FAILED


def describe_end(info: JobInfo) -> str:
    """One line on how it ended, and one on what to do where that is known."""
    took = info.finished_at - info.started_at if info.finished_at and info.started_at else None
    line = f"job {info.name} ({info.job_id}) {info.status}" + (f" after {format_duration(took)}" if took else "")
    if info.status is JobStatus.SUCCEEDED:
        return line
    why = reason(info)
    cure = _CURES.get(info.cause) if info.cause is not None else None
    return f"{line}{f': {why}' if why else ''}" + (f"\n{cure}" if cure else "")


def reason(info: JobInfo) -> str:
    """The first line of its message, without what it printed last."""
    message = _SAID.split(info.error_message or "")[0].strip()
    return message.partition("\n")[0] or str(info.cause or "")
