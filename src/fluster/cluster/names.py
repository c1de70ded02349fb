"""Ids, states and causes: the words that every part of the cluster layer shares."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from enum import StrEnum
from typing import Any, NewType

JobId = NewType("JobId", str)
"""Made by the controller; unique for ever."""
Namespace = NewType("Namespace", str)
"""Scope of endpoints and of what a job's token may see."""
WorkerId = NewType("WorkerId", str)
"""Kept by a worker across its restarts."""
VMId = NewType("VMId", str)
"""Made by a backend: one allocation."""
EndpointId = NewType("EndpointId", str)
"""One registration of one name."""


class JobStatus(StrEnum):
    """Status of a job, derived from its tasks."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    def finished(self) -> bool:
        """Whether this status never changes again."""
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
        """Whether this state never changes again."""
        return self in (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.STOPPED)


class Cause(StrEnum):
    """The one reason why an attempt ended without success."""

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
    """Band of the queue a job waits in."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class WorkerState(StrEnum):
    """What the controller holds of a worker: ready, silent for too long, or known to be gone."""

    READY = "ready"
    LOST = "lost"
    GONE = "gone"


class VMState(StrEnum):
    """What a backend holds of an allocation."""

    STARTING = "starting"
    READY = "ready"
    GONE = "gone"


def job_name_of(fn: Callable[..., Any]) -> str:
    """The name of a job that runs ``fn``: the function's own, characters that a job name cannot have dropped."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__name__", None) or type(fn).__name__
    allowed = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._/-]", "", str(name)))
    return allowed.lstrip("._/-")[:128] or "job"
