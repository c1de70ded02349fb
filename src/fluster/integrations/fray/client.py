"""`FlusterClient`: all of `fray.client.Client` on a Fluster cluster."""

from __future__ import annotations

import threading
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fray.actor import ActorContext, HostedActor
from fray.client import JobAlreadyExists
from fray.types import ActorConfig
from fray.types import ResourceConfig as FrayResources

from fluster.actor.server import ActorServer
from fluster.cluster.context import TaskContext
from fluster.cluster.environment import EnvironmentConfig
from fluster.cluster.types import Entrypoint, JobRequest
from fluster.errors import AlreadyExists
from fluster.integrations.fray import convert, hosting
from fluster.integrations.fray.actors import FlusterActorHandle
from fluster.integrations.fray.connection import connect, find_connection
from fluster.integrations.fray.groups import FlusterActorGroup
from fluster.integrations.fray.inherited import Inherited
from fluster.integrations.fray.jobs import FlusterJobHandle, unfinished

if TYPE_CHECKING:
    from fray.types import EnvironmentConfig as FrayEnvironment
    from fray.types import JobRequest as FrayRequest

    from fluster.cluster.client import Cluster
    from fluster.integrations.fray.connection import Connection

_NAME_ATTEMPTS = 20


class FlusterClient:
    """Runs fray's jobs and actors on a cluster. Any threads may use it; in jobs `current_client()` gives one.

    Args:
        cluster: `None`: the one this program means, found when it is first needed.
        environment: What tasks find where a request does not say otherwise.
    """

    def __init__(self, cluster: Cluster | None = None, *, environment: EnvironmentConfig | None = None) -> None:
        self._cluster = cluster
        self._environment = environment if environment is not None else EnvironmentConfig()
        self._lock = threading.Lock()
        self._linked: Connection | None = None
        self._groups: list[FlusterActorGroup] = []
        self._hosted: list[HostedActor] = []

    def __repr__(self) -> str:
        return f"FlusterClient({self._cluster!r})"

    @property
    def cluster(self) -> Cluster:
        """Where it runs things."""
        return self._connection.cluster

    def submit(self, request: FrayRequest, adopt_existing: bool = True) -> FlusterJobHandle:
        """Launches a job; it is durable when this returns.

        Args:
            request: The job.
            adopt_existing: Gives the unfinished job of that name, if there is one, instead of raising.

        Raises:
            JobAlreadyExists: There is an unfinished job of that name, of which it has the handle.
            ValueError: Fluster has no such thing; the text names it.
            TypeError: The callable or an argument cannot be pickled.
        """
        return self._launch(self._request(request), adopt=adopt_existing)

    def host_actor(
        self, actor_class: type, *args: Any, name: str, actor_config: Any = None, **kwargs: Any
    ) -> HostedActor:
        """Hosts an actor in this process; its handle works in every process of the cluster."""
        config = actor_config if actor_config is not None else ActorConfig()
        task = TaskContext.from_environment()
        owner = task.job_id if task is not None else ""
        full_name = f"fray-hosted/{uuid.uuid4().hex}/{name}"
        handle = FlusterActorHandle(full_name, owner, self._connection)
        instance = hosting.make(actor_class, args, kwargs, ActorContext(handle=handle, index=0, group_name=name))
        server = ActorServer(self.cluster, max_concurrency=config.max_concurrency)
        hosting.host(server, full_name, instance)
        hosted = HostedActor(handle, stop=server.shutdown)
        with self._lock:
            self._hosted.append(hosted)
        return hosted

    def create_actor(
        self,
        actor_class: type,
        *args: Any,
        name: str,
        resources: Any = None,
        actor_config: Any = None,
        environment: FrayEnvironment | None = None,
        **kwargs: Any,
    ) -> FlusterActorHandle:
        """Launches one actor; calls wait until it is there."""
        group = self._launch_group(actor_class, args, kwargs, name, 1, resources, actor_config, environment)
        return group.handle(0)

    def create_actor_group(
        self,
        actor_class: type,
        *args: Any,
        name: str,
        count: int,
        resources: Any = None,
        actor_config: Any = None,
        environment: FrayEnvironment | None = None,
        **kwargs: Any,
    ) -> FlusterActorGroup:
        """Launches N actors, each for itself: those for which there is room begin.

        In a job the group ends with that job.
        """
        return self._launch_group(actor_class, args, kwargs, name, count, resources, actor_config, environment)

    def shutdown(self, wait: bool = True) -> None:
        """Ends the actors that this client launched or hosts; jobs go on, and so does the cluster. May be repeated.

        Args:
            wait: Returns once they are gone.
        """
        with self._lock:
            groups, self._groups = self._groups, []
            hosted, self._hosted = self._hosted, []
        for actor in hosted:
            actor.shutdown()
        for group in groups:
            group.terminate()
        if wait:
            for group in groups:
                group.shutdown()

    @property
    def _connection(self) -> Connection:
        if self._linked is None:
            self._linked = connect(self._cluster) if self._cluster is not None else find_connection()
        return self._linked

    def _request(self, request: FrayRequest) -> JobRequest:
        if request.processes_per_task > 1:
            raise ValueError("processes_per_task is not supported: ask for more replicas with fewer GPUs each")
        replicas = request.replicas or 1
        return JobRequest(
            name=request.name,
            entrypoint=self._entrypoint(request.entrypoint),
            resources=convert.resources(request.resources, replicas),
            environment=self._environment_of(request.environment, request.resources),
            retry=convert.job_retry(request),
            timeout_s=convert.seconds(request.timeout),
            priority=convert.priority(request.priority),
        )

    def _entrypoint(self, asked: Any) -> Entrypoint:
        # With something of its own in each, no two requests are taken for one.
        nonce = uuid.uuid4().hex
        if asked.callable_entrypoint is not None:
            call = asked.callable_entrypoint
            return Entrypoint.from_callable(hosting.run_callable, nonce, call.callable, tuple(call.args), call.kwargs)
        if asked.binary_entrypoint is not None:
            program = asked.binary_entrypoint
            return Entrypoint.from_callable(hosting.run_command, nonce, [program.command, *program.args])
        raise ValueError("the entrypoint has neither a callable nor a binary")

    def _launch(self, request: JobRequest, *, adopt: bool) -> FlusterJobHandle:
        """Looks for an unfinished job of the name, and launches if there is none; again if another was quicker."""
        for _ in range(_NAME_ATTEMPTS):
            live, request_id = unfinished(self.cluster, request.name)
            if live is not None:
                handle = FlusterJobHandle(self.cluster, request.name, live.job_id)
                if adopt:
                    return handle
                raise JobAlreadyExists(request.name, handle)
            try:
                job_id = self.cluster.launch(replace(request, request_id=request_id))
            except AlreadyExists:
                continue
            return FlusterJobHandle(self.cluster, request.name, job_id)
        raise JobAlreadyExists(request.name)

    def _launch_group(
        self,
        actor_class: type,
        args: Any,
        kwargs: Any,
        name: str,
        count: int,
        resources: Any,
        actor_config: Any,
        environment: FrayEnvironment | None,
    ) -> FlusterActorGroup:
        wanted = resources if resources is not None else FrayResources()
        config = actor_config if actor_config is not None else ActorConfig()
        entrypoint = Entrypoint.from_callable(
            hosting.run_actor, name, config.max_concurrency, actor_class, args, kwargs
        )
        needs = convert.resources(wanted, count)
        request = JobRequest(
            name=name,
            entrypoint=entrypoint,
            resources=needs,
            environment=self._environment_of(environment, wanted),
            retry=convert.actor_retry(config),
            priority=convert.priority(config.priority),
            gang=needs.device.vm_count() > 1,
        )
        group = FlusterActorGroup(name, count, self.cluster.launch(request), self._connection)
        with self._lock:
            self._groups.append(group)
        return group

    def _environment_of(self, asked: FrayEnvironment | None, wanted: Any) -> EnvironmentConfig:
        return convert.environment(asked, wanted, self._environment, Inherited.here())
