"""Nouns of the actor layer: who an actor is, where it runs, and what a running call may ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NewType, TypeVar

from fluster.errors import NotInCluster

if TYPE_CHECKING:
    from fluster.actor.resolver import Resolver
    from fluster.cluster.client import Cluster
    from fluster.cluster.types import Endpoint

ActorId = NewType("ActorId", str)

F = TypeVar("F", bound=Callable[..., Any])
_IDEMPOTENT = "__fluster_idempotent__"


@dataclass(frozen=True, slots=True)
class ActorEndpoint:
    """One registration of an actor.

    Attributes:
        actor_id: Of this registration: an actor that is restarted gets another.
        name: What it is registered under; others may share it.
        address: ``host:port`` of its server.
        job_id: The job it runs in; empty outside of one.
        namespace: Where its name is valid.
        metadata: What its server told about it.
        access_key: Proves the server to its callers and the callers to it.
    """

    actor_id: ActorId
    name: str
    address: str
    job_id: str = ""
    namespace: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    access_key: str = field(default="", repr=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> ActorEndpoint:
        """The actor that a cluster's endpoint is."""
        return cls(
            actor_id=ActorId(endpoint.endpoint_id),
            name=endpoint.name,
            address=endpoint.address,
            job_id=endpoint.job_id,
            namespace=endpoint.namespace,
            metadata=endpoint.metadata,
            access_key=endpoint.access_key or "",
        )


@dataclass(frozen=True, slots=True)
class ActorContext:
    """What an actor's method may use of its surroundings.

    Attributes:
        cluster: The cluster its server is registered with; `None` where there is none.
        resolver: Finds other actors.
        job_id: The job it runs in; empty outside of one.
        namespace: Where names are looked up.
    """

    cluster: Cluster | None
    resolver: Resolver
    job_id: str
    namespace: str

    @classmethod
    def from_environment(cls) -> ActorContext:
        """The context of the calling task.

        Raises:
            NotInCluster: This is no job's process, or its variables are incomplete.
        """
        from fluster.actor.resolver import ClusterResolver
        from fluster.cluster.client import Cluster
        from fluster.cluster.context import TaskContext

        task = TaskContext.from_environment()
        if task is None:
            raise NotInCluster("this is no task of a job: FLUSTER_JOB_ID is not set", missing=["FLUSTER_JOB_ID"])
        cluster = Cluster(task.cluster_address)
        return cls(cluster, ClusterResolver(cluster), task.job_id, task.namespace)


CURRENT: ContextVar[ActorContext] = ContextVar("fluster_actor")


def current_actor() -> ActorContext:
    """The context of the call that runs here.

    Raises:
        NotInCluster: No actor's method runs in this thread or task.
    """
    try:
        return CURRENT.get()
    except LookupError:
        raise NotInCluster("no actor's method runs here; threads that it starts get the context handed on") from None


def idempotent(method: F) -> F:
    """Marks a method that may run twice: a call whose actor is gone is made again on another of the same name.

    Callers know of it where they name the class, as in `resolver.lookup(name, Class)`; else
    `proxy.method.options(idempotent=True)` says so.
    """
    setattr(method, _IDEMPOTENT, True)
    return method


def is_idempotent(method: object) -> bool:
    """Whether a method was marked so."""
    return bool(getattr(method, _IDEMPOTENT, False))
