"""The states things can be in, one enumeration for each noun."""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    """Status of a job, derived from its tasks."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    def finished(self) -> bool:
        """Whether this status is final."""
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


class TaskState(StrEnum):
    """State of one task."""

    PENDING = "pending"
    ASSIGNED = "assigned"
    BUILDING = "building"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    def finished(self) -> bool:
        """Whether this state is final."""
        return self in (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.STOPPED)


class Cause(StrEnum):
    """Why an attempt, task or job did not succeed: exactly one."""

    EXIT = "exit"
    EXCEPTION = "exception"
    SIGNAL = "signal"
    OUT_OF_MEMORY = "out_of_memory"
    TIME_LIMIT = "time_limit"
    TERMINATED = "terminated"
    PREEMPTED = "preempted"
    WORKER_LOST = "worker_lost"
    BUILD_FAILED = "build_failed"
    START_FAILED = "start_failed"
    DISK_FULL = "disk_full"
    UNSCHEDULABLE = "unschedulable"


class Priority(StrEnum):
    """Bands of the queue: all of a higher band goes before anything of a lower one."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class WorkerStatus(StrEnum):
    """READY: holds a lease. LOST: its lease ran out. GONE: its machine is known to be gone."""

    READY = "ready"
    LOST = "lost"
    GONE = "gone"


class VMStatus(StrEnum):
    """What a backend holds of an allocation."""

    STARTING = "starting"
    READY = "ready"
    GONE = "gone"
