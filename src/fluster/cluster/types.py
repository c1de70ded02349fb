"""The public nouns of the cluster layer: what a user submits, and by re-export everything a cluster reports."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fluster.cluster.environment import EnvironmentConfig, create_environment
from fluster.cluster.gpu import GPU_VARIANTS
from fluster.cluster.ids import EndpointId, JobId, Namespace, VMId, WorkerId
from fluster.cluster.observed import (
    Endpoint,
    Event,
    Explanation,
    JobInfo,
    LogLine,
    TaskStatus,
    VMInfo,
    WorkerInfo,
)
from fluster.cluster.resources import (
    CpuConfig,
    DeviceConfig,
    GpuConfig,
    ResourceConfig,
    TpuConfig,
    WorkerResources,
)
from fluster.cluster.states import Cause, JobStatus, Priority, TaskState, VMStatus, WorkerStatus
from fluster.cluster.tpu import TPU_TOPOLOGIES, TpuTopologyInfo, get_tpu_topology
from fluster.cluster.validation import (
    check_choice,
    check_command,
    check_id,
    check_name,
    check_port_names,
    check_retry,
    check_seconds,
    refuse,
)

__all__ = [
    "GPU_VARIANTS",
    "TPU_TOPOLOGIES",
    "Cause",
    "CpuConfig",
    "DeviceConfig",
    "Endpoint",
    "EndpointId",
    "Entrypoint",
    "EnvironmentConfig",
    "Event",
    "Explanation",
    "GpuConfig",
    "JobId",
    "JobInfo",
    "JobRequest",
    "JobStatus",
    "LogLine",
    "Namespace",
    "Priority",
    "ResourceConfig",
    "RetryPolicy",
    "TaskState",
    "TaskStatus",
    "TpuConfig",
    "TpuTopologyInfo",
    "VMId",
    "VMInfo",
    "VMStatus",
    "WorkerId",
    "WorkerInfo",
    "WorkerResources",
    "WorkerStatus",
    "create_environment",
    "get_tpu_topology",
    "job_name_of",
]


@dataclass(frozen=True, slots=True)
class Entrypoint:
    """What each task runs: a callable with its arguments, or a command.

    Attributes:
        callable: Pickled by value at launch; `None` for a command.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        command: Program and arguments; empty for a callable.

    Raises:
        ValueError: Neither or both are given, or the command breaks a rule.
    """

    callable: Callable[..., Any] | None = None
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    command: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.callable is not None and not callable(self.callable):
            raise refuse("callable", "something that can be called", self.callable)
        object.__setattr__(self, "args", tuple(self.args))
        object.__setattr__(self, "kwargs", dict(self.kwargs))
        command = check_command(self.command) if self.callable is None else tuple(self.command)
        object.__setattr__(self, "command", command)
        if self.callable is not None and self.command:
            raise ValueError("an entrypoint is a callable or a command, not both")
        if self.callable is None and (self.args or self.kwargs):
            raise ValueError("args and kwargs belong to a callable; a command carries its own arguments")

    @classmethod
    def from_callable(cls, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Entrypoint:
        """Calls ``fn(*args, **kwargs)`` in each task; what it returns is the task's result."""
        if fn is None:
            raise refuse("callable", "something that can be called", fn)
        return cls(callable=fn, args=args, kwargs=kwargs)

    @classmethod
    def from_command(cls, *argv: str | os.PathLike[str]) -> Entrypoint:
        """Runs a program, found on the task's PATH, without a shell."""
        return cls(command=tuple(os.fspath(item) if isinstance(item, os.PathLike) else item for item in argv))


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a gang is tried again.

    Attributes:
        max_failures: Retries after ends that are the job's own doing.
        max_preemptions: Retries after losing a machine, or Fluster's own faults.
        backoff_s: Seconds between the end of an attempt and the next, doubled each time.
        max_backoff_s: The most that doubling leads to.
        signals_are_preemptions: A task that dies of a signal, which nobody had asked for, is charged like one whose
            machine was lost; for what is killed to be moved.
    """

    max_failures: int = 0
    max_preemptions: int = 100
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    signals_are_preemptions: bool = False

    def __post_init__(self) -> None:
        check_retry(self.max_failures, self.max_preemptions, self.backoff_s, self.max_backoff_s)
        if not isinstance(self.signals_are_preemptions, bool):
            raise refuse("signals_are_preemptions", "True or False", self.signals_are_preemptions)


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job to launch: N tasks with one status.

    Attributes:
        name: 1 to 128 of `A-Z a-z 0-9 . _ / -`, the first a letter or digit, without `..`; need not be unique.
        entrypoint: What each task runs.
        resources: What each task needs, and how many there are.
        environment: What its process finds.
        retry: How often it is tried again.
        timeout_s: Bounds one attempt from its start; not retried. `None`: no limit.
        scheduling_timeout_s: Bounds the wait for machines; then it fails as unschedulable. `None`: no limit.
        priority: low, normal or high.
        gang: The tasks start together or not at all and fail together; `False`: each on its own.
        parent: The job it ends with; filled in from the calling job.
        request_id: Launching the same request twice under one id gives the same job; `None`: made at launch.
        ports: Names, each giving the task a free port as `FLUSTER_PORT_<NAME>`.

    Raises:
        ValueError: A value breaks its rule; the message names both.
    """

    name: str
    entrypoint: Entrypoint
    resources: ResourceConfig = ResourceConfig()
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    retry: RetryPolicy = RetryPolicy()
    timeout_s: float | None = None
    scheduling_timeout_s: float | None = None
    priority: Priority | str = Priority.NORMAL
    gang: bool = True
    parent: JobId | None = None
    request_id: str | None = None
    ports: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_name(self.name)
        self._check_parts()
        for what in ("timeout_s", "scheduling_timeout_s"):
            if getattr(self, what) is not None:
                check_seconds(getattr(self, what), what)
        object.__setattr__(self, "priority", Priority(check_choice(self.priority, Priority, "priority")))
        if not isinstance(self.gang, bool):
            raise refuse("gang", "True or False", self.gang)
        for what in ("parent", "request_id"):
            if getattr(self, what) is not None:
                check_id(getattr(self, what), what)
        object.__setattr__(self, "ports", check_port_names(self.ports))

    def _check_parts(self) -> None:
        if not isinstance(self.entrypoint, Entrypoint):
            rule = "an Entrypoint; `Entrypoint.from_callable(fn, …)` makes one of a function"
            raise refuse("entrypoint", rule, self.entrypoint)
        for what, kind in (("resources", ResourceConfig), ("environment", EnvironmentConfig), ("retry", RetryPolicy)):
            if not isinstance(getattr(self, what), kind):
                raise refuse(what, f"a {kind.__name__}", getattr(self, what))

    @property
    def num_tasks(self) -> int:
        """Tasks of the job: replicas, times the VMs of a slice."""
        return self.resources.num_tasks


def job_name_of(fn: Callable[..., Any]) -> str:
    """The name of a job that runs ``fn``: the function's own, characters that a job name cannot have dropped."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = str(getattr(fn, "__name__", None) or type(fn).__name__)
    allowed = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._/-]", "", name))
    return allowed.lstrip("._/-")[:128] or "job"
