"""How an attempt ended, in one cause and one message a person can act on: pure."""

from __future__ import annotations

import signal
from enum import StrEnum

from fluster.cluster.worker.outcome import Thrown
from fluster.cluster.worker.runtime import ExitRecord, Gone, Limits
from fluster.cluster.worker.text import printable
from fluster.rpc.gen.fluster.cluster.v1.types_pb import Cause, ExitReport

_MESSAGE_CHARS = 8192


class StopReason(StrEnum):
    """Why this worker stops an attempt."""

    REQUESTED = "requested"
    LEASE_ENDED = "lease_ended"
    LEAVING = "leaving"
    DISK_LIMIT = "disk_limit"


_STOPPED: dict[StopReason, tuple[Cause, str]] = {
    StopReason.REQUESTED: (Cause.TERMINATED, "stopped on request"),
    StopReason.LEASE_ENDED: (
        Cause.WORKER_LOST,
        "stopped: the worker lost contact with its controller for a whole lease",
    ),
    StopReason.LEAVING: (Cause.PREEMPTED, "stopped: the worker's machine is being given back"),
    StopReason.DISK_LIMIT: (Cause.DISK_FULL, "stopped: its files grew beyond the disk it asked for"),
}


_EXPLAINED_BY_FULL_DISK = (Cause.EXIT, Cause.EXCEPTION, Cause.SIGNAL, Cause.START_FAILED)


def report_end(
    record: ExitRecord | Gone,
    *,
    limits: Limits,
    stop_reason: StopReason | None = None,
    stop_detail: str = "",
    thrown: Thrown | None = None,
    said: str = "",
    now: float,
) -> ExitReport:
    """The report of an attempt that was started.

    Args:
        record: What the runtime says.
        limits: Those it ran under.
        stop_reason: Why this worker stopped it, if it did.
        stop_detail: Numbers that belong to the reason.
        thrown: The exception its entrypoint raised, if any.
        said: The last lines it printed, with a heading.
        now: Unix seconds, where the record does not say when it ended.
    """
    if isinstance(record, Gone):
        return ExitReport(
            cause=Cause.WORKER_LOST,
            error_message=_message(record.why, said),
            finished_at=now,
        )
    if record.lease_ended and stop_reason is None:
        stop_reason = StopReason.LEASE_ENDED
    # Told to stop by this worker's own doing is not "told to stop": the controller has another word for each of these.
    own_doing = stop_reason not in (None, StopReason.REQUESTED)
    cause, headline = _cause(record, limits, stop_reason, stop_detail, thrown)
    report = ExitReport(
        cause=cause,
        error_message=_message(headline, said) if cause else "",
        peak_memory_bytes=record.peak_memory_bytes,
        stop_requested=record.stop_requested and not own_doing,
        finished_at=record.finished_at,
        fluster_fault=record.fluster_fault,
        user_fault=record.start_error is not None and not record.fluster_fault,
    )
    if (code := exit_code(record)) is not None:
        report.exit_code = code
    return report


def blame_full_disk(report: ExitReport) -> None:
    """Names the full disk of the worker as the cause of a failure that it explains."""
    if report.cause in _EXPLAINED_BY_FULL_DISK and not report.user_fault:
        report.cause = Cause.DISK_FULL
        report.error_message = f"the worker's disk is full: {report.error_message}"
        report.fluster_fault = False


def never_ran(
    cause: Cause, why: str, *, now: float, stopped: bool = False, user: bool = False, fluster: bool = False
) -> ExitReport:
    """The report of an attempt of which nothing ran."""
    return ExitReport(
        cause=cause,
        error_message=printable(why, _MESSAGE_CHARS),
        finished_at=now,
        stop_requested=stopped,
        user_fault=user,
        fluster_fault=fluster,
    )


def stopped_before_start(reason: StopReason, *, now: float) -> ExitReport:
    """The report of an attempt that was told to stop before its process was started."""
    cause, text = _STOPPED[reason]
    return never_ran(cause, f"{text} before it was started", now=now, stopped=reason is StopReason.REQUESTED)


def exit_code(record: ExitRecord) -> int | None:
    """0-255, 128+n for signal n; `None` if nothing ran."""
    return 128 + record.signal if record.signal is not None else record.exit_code


def signal_name(number: int) -> str:
    """`SIGSEGV`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _cause(
    record: ExitRecord, limits: Limits, stop_reason: StopReason | None, stop_detail: str, thrown: Thrown | None
) -> tuple[Cause, str]:
    if record.start_error is not None:
        return Cause.START_FAILED, f"could not be started: {record.start_error}"
    if record.stop_requested:
        cause, text = _STOPPED[stop_reason or StopReason.REQUESTED]
        detail = f" ({stop_detail})" if stop_detail else ""
        return cause, f"{text}{detail}; {_how(record)}"
    if record.out_of_memory:
        return Cause.OUT_OF_MEMORY, _memory_text(record, limits)
    if record.timed_out:
        return Cause.TIME_LIMIT, f"time limit of {limits.time_s:g} s reached" if limits.time_s else "time limit reached"
    if record.signal is not None:
        return Cause.SIGNAL, f"killed by {signal_name(record.signal)}"
    if record.exit_code == 0:
        return Cause.UNSPECIFIED, ""
    if thrown is not None:
        return Cause.EXCEPTION, f"{thrown.type_name}: {thrown.message}" if thrown.message else thrown.type_name
    return Cause.EXIT, f"exited with code {record.exit_code}"


def _how(record: ExitRecord) -> str:
    if record.signal is not None:
        return f"ended by {signal_name(record.signal)}"
    return f"it then exited with code {record.exit_code}"


def _memory_text(record: ExitRecord, limits: Limits) -> str:
    limit = f"{limits.memory_bytes:,} bytes" if limits.memory_bytes is not None else "the machine's memory"
    peak = f"; the peak was {record.peak_memory_bytes:,} bytes" if record.peak_memory_bytes else ""
    return f"out of memory: the limit is {limit}{peak}"


def _message(headline: str, said: str) -> str:
    head = printable(headline, _MESSAGE_CHARS)
    return f"{head}\n{said}" if said else head
