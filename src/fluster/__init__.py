"""Runs Python on many machines: jobs, actors, worker pools, and the clusters they run on.

Names resolve when first used, so that importing this package costs nothing a program does not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluster.actor.futures import ActorFuture
    from fluster.actor.pool import ActorPool, BroadcastHandle
    from fluster.actor.proxy import ActorProxy
    from fluster.actor.resolver import ClusterResolver, FixedResolver, Resolver
    from fluster.actor.server import ActorServer
    from fluster.actor.types import ActorContext, ActorEndpoint, ActorId, current_actor, idempotent
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
    from fluster.pool import PoolStats, WorkerPool

    __version__: str

__all__ = [
    "GPU_VARIANTS",
    "TPU_TOPOLOGIES",
    "ActorCallTimeout",
    "ActorContext",
    "ActorEndpoint",
    "ActorError",
    "ActorFuture",
    "ActorId",
    "ActorNotFound",
    "ActorPool",
    "ActorProxy",
    "ActorServer",
    "ActorUnavailable",
    "AlreadyExists",
    "BroadcastHandle",
    "Cause",
    "Cluster",
    "ClusterResolver",
    "CpuConfig",
    "Endpoint",
    "EndpointId",
    "Entrypoint",
    "EnvironmentConfig",
    "Event",
    "Explanation",
    "FailedPrecondition",
    "FixedResolver",
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
    "PoolStats",
    "Priority",
    "RemoteError",
    "RemoteFault",
    "Resolver",
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
    "WorkerPool",
    "WorkerResources",
    "WorkerStatus",
    "__version__",
    "create_environment",
    "current_actor",
    "current_cluster",
    "get_tpu_topology",
    "idempotent",
]

_HOME = {
    "ActorFuture": "fluster.actor.futures",
    "ActorPool": "fluster.actor.pool",
    "ActorProxy": "fluster.actor.proxy",
    "ActorServer": "fluster.actor.server",
    "BroadcastHandle": "fluster.actor.pool",
    **dict.fromkeys(("ClusterResolver", "FixedResolver", "Resolver"), "fluster.actor.resolver"),
    **dict.fromkeys(("ActorContext", "ActorEndpoint", "ActorId", "current_actor", "idempotent"), "fluster.actor.types"),
    "Cluster": "fluster.cluster.client",
    "Job": "fluster.cluster.job",
    "LocalCluster": "fluster.cluster.local",
    **dict.fromkeys(("PoolStats", "WorkerPool"), "fluster.pool"),
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
