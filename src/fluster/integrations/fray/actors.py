"""Handles of actors: locators that any process of the cluster can use, and calls through them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from fray.actor import ActorUnavailableError

from fluster.errors import ActorNotFound, ActorUnavailable, FlusterError, JobNotFound
from fluster.integrations.fray.connection import find_connection

if TYPE_CHECKING:
    from fluster.actor.pool import ActorPool
    from fluster.integrations.fray.connection import Connection

_NOT_SENT = (ActorNotFound, ActorUnavailable)
"""Raised by sending itself: nobody was there to send it to. What fails once it is sent fails the future."""
HOSTED_WAIT_S: Final = 60.0
"""So long a call waits for an actor that belongs to no job; for a job's as long as that job has not ended."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.5


class FlusterActorHandle:
    """An actor by its name: it may not be there yet, and may be restarted.

    Args:
        name: What it is registered under.
        job_id: The job that hosts it; empty if none does.
        connection: `None`: this process's.
        address: Of the cluster, for processes that know several.
    """

    def __init__(self, name: str, job_id: str, connection: Connection | None = None, address: str = "") -> None:
        self._name = name
        self._job_id = job_id
        self._connection = connection
        self._address = connection.cluster.address if connection is not None else address
        self._found: ActorPool[Any] | None = None

    def __getattr__(self, method_name: str) -> FlusterActorMethod:
        if method_name.startswith("_"):
            raise AttributeError(method_name)
        return FlusterActorMethod(self, method_name)

    def __reduce__(self) -> tuple[Any, ...]:
        return FlusterActorHandle, (self._name, self._job_id, None, self._address)

    def __repr__(self) -> str:
        return f"FlusterActorHandle({self._name!r})"

    def _link(self) -> Connection:
        if self._connection is None:
            self._connection = find_connection(self._address)
        return self._connection

    def _pool(self) -> ActorPool[Any]:
        if self._found is None:
            self._found = self._link().resolver.lookup(self._name)
        return self._found

    def _why_gone(self, waited_s: float) -> str | None:
        """Why it will not come any more; `None`: it may."""
        if not self._job_id:
            return f"it is not there after {waited_s:.0f} s" if waited_s > HOSTED_WAIT_S else None
        try:
            info = self._link().cluster.poll(self._job_id)
        except JobNotFound:
            return f"its job {self._job_id} is not known any more"
        if not info.status.finished():
            return None
        return f"its job {info.name} ({info.job_id}) has ended: {info.error_message or info.status}"


class FlusterActorMethod:
    """One method of an actor."""

    def __init__(self, handle: FlusterActorHandle, name: str) -> None:
        self._handle = handle
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls it and waits.

        Raises:
            ActorUnavailableError: Its process is gone; whether the call ran is unknown.
            BaseException: What the method raised.
        """
        return self.remote(*args, **kwargs).result()

    def remote(self, *args: Any, **kwargs: Any) -> FlusterActorFuture:
        """Calls it; at once where the actor is there, else as soon as it is."""
        return FlusterActorFuture(self._submit(args, kwargs))

    def submit(self, *args: Any, **kwargs: Any) -> FlusterActorFuture:
        """The same: no call is bound to a connection, so one that takes hours needs nothing else."""
        return self.remote(*args, **kwargs)

    def _submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        try:
            return self._send(args, kwargs)
        except _NOT_SENT:
            outer: Future[Any] = Future()
            wait = threading.Thread(target=self._wait_and_send, args=(outer, args, kwargs), daemon=True)
            wait.start()
            return outer

    def _send(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        proxy = self._handle._pool().call()
        future: Future[Any] = getattr(proxy, self._name).submit(*args, **kwargs)
        return future

    def _wait_and_send(self, outer: Future[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            inner = self._once_there(lambda: self._send(args, kwargs))
        except Exception as error:
            outer.set_exception(error)
        else:
            inner.add_done_callback(lambda done: _pass_on(done, outer))

    def _once_there(self, send: Callable[[], Future[Any]]) -> Future[Any]:
        began, pause = time.monotonic(), _FIRST_PAUSE_S
        while True:
            # Before looking: an actor that came, and went with its job, was there in between.
            why = self._handle._why_gone(time.monotonic() - began)
            try:
                return send()
            except _NOT_SENT:
                if why is not None:
                    raise ActorUnavailable(f"the actor cannot be called: {why}") from None
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)


def _pass_on(inner: Future[Any], outer: Future[Any]) -> None:
    error = inner.exception()
    if error is not None:
        outer.set_exception(error)
    else:
        outer.set_result(inner.result())


class FlusterActorFuture:
    """A call that was made; it goes on whether or not somebody waits."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def result(self, timeout: float | None = None) -> Any:
        """What the call returned; may be asked again after a `TimeoutError`.

        Raises:
            TimeoutError: There is no result yet.
            ActorUnavailableError: The actor's process is gone; whether the call ran is unknown.
            BaseException: What the method raised.
        """
        try:
            return self._future.result(timeout)
        except (ActorUnavailable, ActorNotFound) as error:
            raise ActorUnavailableError(str(error)) from error

    def done(self) -> bool:
        """Whether there is a result."""
        return self._future.done()


def actor_name(job_id: str, index: int) -> str:
    """What the actor of a task is registered under."""
    return f"{group_prefix(job_id)}{index}"


def group_prefix(job_id: str) -> str:
    """What the names of all actors of a job begin with."""
    return f"fray/{job_id}/"


def index_of(name: str) -> int:
    """The task of an actor, from its name."""
    index = name.rpartition("/")[2]
    if not index.isdigit():
        raise FlusterError(f"{name!r} is no name of an actor of a group")
    return int(index)
