"""Where actors run: as tasks of a job, or in the process that asks for it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any, Final, NoReturn

from fray.actor import ActorContext, _reset_current_actor, _set_current_actor

from fluster.actor.hosted import refused
from fluster.actor.server import ActorServer
from fluster.cluster.context import TaskContext
from fluster.errors import NotInCluster
from fluster.integrations.fray.actors import FlusterActorHandle, actor_name
from fluster.integrations.fray.connection import Connection, find_connection
from fluster.integrations.fray.default import prepare_subprocesses, set_default

_GRACE_S: Final = 10.0
"""So long calls that run when an actor asked to end may take."""


class Facade:
    """What is registered for an actor: its methods as they are, whatever their first parameter is called.

    Fluster gives a context of its own to methods whose first parameter is named ``ctx``; fray's have no such rule.
    """

    def __init__(self, instance: object) -> None:
        self._instance = instance

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._instance, name)
        if not callable(method):
            raise refused(f"{type(self._instance).__qualname__}.{name} is not callable")

        def call(*args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs)

        return call


def make(actor_class: Callable[..., Any], args: Any, kwargs: Any, context: ActorContext) -> Any:
    """The instance; `fray.actor.current_actor()` gives the context while its `__init__` runs, and only then."""
    token = _set_current_actor(context)
    try:
        return actor_class(*args, **kwargs)
    finally:
        _reset_current_actor(token)


def host(server: ActorServer, name: str, instance: object) -> None:
    """Has the server serve an instance."""
    server.register(name, Facade(instance))
    server.serve_background()


def run_actor(group: str, max_concurrency: int, actor_class: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """The entrypoint of an actor's task; returns when the actor asks to end.

    Raises:
        BaseException: What its `__init__` raised, or the first error it recorded.
    """
    task, connection = enter_job()
    name = actor_name(task.job_id, task.task_index)
    wanted_end = threading.Event()
    handle = FlusterActorHandle(name, task.job_id, connection)
    context = ActorContext(handle=handle, index=task.task_index, group_name=group, shutdown_event=wanted_end)
    with ActorServer(connection.cluster, max_concurrency=max_concurrency) as server:
        host(server, name, make(actor_class, args, kwargs, context))
        wanted_end.wait()
        server.shutdown(_GRACE_S)
    if context._errors:
        raise context._errors[0]


def run_callable(_nonce: str, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """The entrypoint of a job that calls a function; what it returns is nobody's."""
    enter_job()
    function(*args, **kwargs)


def run_command(_nonce: str, argv: list[str]) -> NoReturn:
    """The entrypoint of a job that runs a program, in this process."""
    enter_job()
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.execvp(argv[0], argv)


def enter_job() -> tuple[TaskContext, Connection]:
    """Makes fray find Fluster in this process and in those that it starts."""
    from fluster.integrations.fray.client import FlusterClient

    task = TaskContext.from_environment()
    if task is None:
        raise NotInCluster("this is no task of a job: FLUSTER_JOB_ID is not set", missing=["FLUSTER_JOB_ID"])
    connection = find_connection()
    set_default(FlusterClient(connection.cluster))
    prepare_subprocesses()
    return task, connection
