"""Runs Python on many machines: jobs, and the clusters they run on.

Names resolve when first used, so that importing this package costs nothing a program does not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluster.cluster.client import Cluster
    from fluster.cluster.job import Job
    from fluster.cluster.local import LocalCluster, current_cluster
    from fluster.cluster.types import (
        GPU_VARIANTS,
        TPU_TOPOLOGIES,
        Cause,
        CpuConfig,
        Endpoint,
        EndpointId,
        Entrypoint,
        EnvironmentConfig,
        Event,
        Explanation,
        GpuConfig,
        JobId,
        JobInfo,
        JobRequest,
        JobStatus,
        LogLine,
        Namespace,
        Priority,
        ResourceConfig,
        RetryPolicy,
        TaskState,
        TaskStatus,
        TpuConfig,
        TpuTopologyInfo,
        VMId,
        VMInfo,
        VMStatus,
        WorkerId,
        WorkerInfo,
        WorkerResources,
        WorkerStatus,
        create_environment,
        get_tpu_topology,
    )
    from fluster.errors import (
        ActorCallTimeout,
        ActorError,
        ActorNotFound,
        ActorUnavailable,
        AlreadyExists,
        FailedPrecondition,
        FlusterError,
        JobFailed,
        JobNotFound,
        NotInCluster,
        NotPermitted,
        RemoteError,
        RemoteFault,
        ResourceExhausted,
        Unreachable,
    )

    __version__: str

__all__ = [
    "GPU_VARIANTS",
    "TPU_TOPOLOGIES",
    "ActorCallTimeout",
    "ActorError",
    "ActorNotFound",
    "ActorUnavailable",
    "AlreadyExists",
    "Cause",
    "Cluster",
    "CpuConfig",
    "Endpoint",
    "EndpointId",
    "Entrypoint",
    "EnvironmentConfig",
    "Event",
    "Explanation",
    "FailedPrecondition",
    "FlusterError",
    "GpuConfig",
    "Job",
    "JobFailed",
    "JobId",
    "JobInfo",
    "JobNotFound",
    "JobRequest",
    "JobStatus",
    "LocalCluster",
    "LogLine",
    "Namespace",
    "NotInCluster",
    "NotPermitted",
    "Priority",
    "RemoteError",
    "RemoteFault",
    "ResourceConfig",
    "ResourceExhausted",
    "RetryPolicy",
    "TaskState",
    "TaskStatus",
    "TpuConfig",
    "TpuTopologyInfo",
    "Unreachable",
    "VMId",
    "VMInfo",
    "VMStatus",
    "WorkerId",
    "WorkerInfo",
    "WorkerResources",
    "WorkerStatus",
    "__version__",
    "create_environment",
    "current_cluster",
    "get_tpu_topology",
]

_HOME = {
    "Cluster": "fluster.cluster.client",
    "Job": "fluster.cluster.job",
    "LocalCluster": "fluster.cluster.local",
    "current_cluster": "fluster.cluster.local",
    **dict.fromkeys(
        (
            *("ActorCallTimeout", "ActorError", "ActorNotFound", "ActorUnavailable", "AlreadyExists"),
            *("FailedPrecondition", "FlusterError", "JobFailed", "JobNotFound", "NotInCluster", "NotPermitted"),
            *("RemoteError", "RemoteFault", "ResourceExhausted", "Unreachable"),
        ),
        "fluster.errors",
    ),
}
"""Module of each public name; all others are nouns."""
_NOUNS = "fluster.cluster.types"


if not TYPE_CHECKING:  # a type checker would take any name for a public one

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            value: Any = _version()
        elif name in __all__:
            value = getattr(import_module(_HOME.get(name, _NOUNS)), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("fluster-cluster")
    except PackageNotFoundError:  # the files were copied, not installed
        return "0+unknown"
