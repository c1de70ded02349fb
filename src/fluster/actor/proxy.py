"""`ActorProxy`: calls methods of an actor as if it were here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fluster.actor.futures import ActorFuture
from fluster.actor.hosted import check_method_name
from fluster.actor.pending import NotRun
from fluster.actor.protocol import target_of
from fluster.actor.stream import ActorStream
from fluster.actor.transport import Channel
from fluster.actor.types import ActorEndpoint, is_idempotent
from fluster.errors import ActorCallTimeout, ActorUnavailable

if TYPE_CHECKING:
    from fluster.actor.pool import ActorPool

IDEMPOTENT_WAIT_S = 60.0
"""So long a call that may run twice waits for a restarted actor when it has no timeout."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5


class Route:
    """Where the calls of a proxy go: to one registration, and when that is gone to another of the same name."""

    def __init__(self, pool: ActorPool[Any], endpoint: ActorEndpoint) -> None:
        self.pool = pool
        self.endpoint = endpoint
        self._targets: dict[str, bytes] = {}

    def way(self, method: str) -> tuple[Channel, bytes]:
        """The channel and the target of a method."""
        target = self._targets.get(method)
        endpoint = self.endpoint
        if target is None:
            target = self._targets[method] = target_of(endpoint.actor_id, endpoint.name, method)
        return self.pool._channels.to(endpoint), target

    def is_gone(self, endpoint: ActorEndpoint) -> bool:
        """Goes on with another registration; whether there is one."""
        self.pool._is_gone(endpoint)
        other = self.pool._other_than_gone()
        if other is None:
            return False
        self.endpoint, self._targets = other, {}
        return True


class ActorMethod:
    """One method of a remote actor: call it and wait, or `submit` it, or take what it gives as a `stream`."""

    __slots__ = ("_idempotent", "_name", "_route", "_timeout")

    def __init__(self, route: Route, name: str, timeout: float | None, idempotent: bool) -> None:
        self._route = route
        self._name = name
        self._timeout = timeout
        self._idempotent = idempotent

    def __repr__(self) -> str:
        return f"<method {self._name!r} of actor {self._route.endpoint.name!r}>"

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Calls it and waits.

        Raises:
            ActorCallTimeout: The result did not come in time.
            ActorUnavailable: The actor's registration is gone; whether the call ran is unknown.
            RemoteError: Result or exception could not travel.
            BaseException: What the method raised, the remote traceback as a note.
        """
        route = self._route
        endpoint = route.endpoint
        try:
            channel, target = route.way(self._name)
            return channel.call(target, args, kwargs, self._timeout)
        except NotRun as gone:
            error: Exception = gone.error
            may_run = True
        except ActorUnavailable as gone_in_between:
            error, may_run = gone_in_between, self._idempotent
        if not may_run:
            route.pool._is_gone(endpoint)
            try:
                raise error
            finally:
                del error  # else it would refer to itself, and keep the arguments
        return self._elsewhere(endpoint, error, lambda channel, target, left: channel.call(target, args, kwargs, left))

    def submit(self, /, *args: Any, **kwargs: Any) -> ActorFuture[Any]:
        """Calls it; the result comes to the future. Blocks only when too many calls are on their way."""
        future = self.submit_here(*args, **kwargs)
        if not self._idempotent:
            return future
        return _Again(self, args, kwargs).of(future)

    def submit_here(self, /, *args: Any, **kwargs: Any) -> ActorFuture[Any]:
        """The same, without going on to another registration once it is sent."""
        route = self._route
        endpoint = route.endpoint
        try:
            channel, target = route.way(self._name)
            return channel.submit(target, args, kwargs, self._timeout)
        except NotRun as gone:
            error = gone.error
        result: ActorFuture[Any] = self._elsewhere(
            endpoint, error, lambda channel, target, left: channel.submit(target, args, kwargs, left)
        )
        return result

    def stream(self, /, *args: Any, **kwargs: Any) -> ActorStream:
        """The items of a generator method, as they come."""
        route = self._route
        endpoint = route.endpoint
        try:
            channel, target = route.way(self._name)
            return channel.stream(target, args, kwargs, self._timeout)
        except NotRun as gone:
            error = gone.error
        found: ActorStream = self._elsewhere(
            endpoint, error, lambda channel, target, left: channel.stream(target, args, kwargs, left)
        )
        return found

    def options(self, *, timeout: float | None = None, idempotent: bool | None = None) -> ActorMethod:
        """The same method with other rules.

        Args:
            timeout: Seconds for a call; `None`: as before.
            idempotent: It may run twice: a call whose actor is gone is made again on another of the same name, and
                waits for one that is restarted, up to the timeout or for 60 s; `None`: as before.
        """
        return ActorMethod(
            self._route,
            self._name,
            self._timeout if timeout is None else timeout,
            self._idempotent if idempotent is None else idempotent,
        )

    def _elsewhere(
        self, gone: ActorEndpoint, error: Exception, make: Callable[[Channel, bytes, float | None], Any]
    ) -> Any:
        """Makes a call whose registration is gone on another one, as long as that is sound and there is hope."""
        began = time.monotonic()
        limit = IDEMPOTENT_WAIT_S if self._timeout is None else self._timeout
        pause = _FIRST_PAUSE_S
        while True:
            if self._route.is_gone(gone):
                gone = self._route.endpoint
                left = None if self._timeout is None else limit - (time.monotonic() - began)
                if left is not None and left <= 0:
                    raise ActorCallTimeout("the call's deadline passed before its reply came") from error
                try:
                    return make(*self._route.way(self._name), left)
                except NotRun as again:
                    error = again.error
                    continue
                except ActorUnavailable as again:
                    error = again
                    if not self._idempotent:
                        raise
                    continue
            if not self._idempotent or time.monotonic() - began + pause > limit:
                raise error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)


class _Again:
    """A future that outlives the registration its call was sent to."""

    def __init__(self, method: ActorMethod, args: Any, kwargs: Any) -> None:
        self._method, self._args, self._kwargs = method, args, kwargs

    def of(self, inner: ActorFuture[Any]) -> ActorFuture[Any]:
        """The outer future."""
        outer: ActorFuture[Any] = ActorFuture(lambda: (inner.cancel(), None)[1])
        inner.add_done_callback(lambda done: self._pass_on(done, outer))
        return outer

    def _pass_on(self, inner: Any, outer: ActorFuture[Any]) -> None:
        if inner.cancelled() or outer.done():
            return
        error = inner.exception()
        if isinstance(error, ActorUnavailable):
            # Not in the thread that reads replies: waiting there would keep them from coming.
            threading.Thread(target=self._repeat, args=(outer,), name="fluster-actor-again", daemon=True).start()
        elif error is not None:
            outer.set_exception(error)
        else:
            outer.set_result(inner.result())

    def _repeat(self, outer: ActorFuture[Any]) -> None:
        try:
            value = self._method(*self._args, **self._kwargs)
        except BaseException as error:
            if not outer.done():
                outer.set_exception(error)
        else:
            if not outer.done():
                outer.set_result(value)


class ActorProxy:
    """A remote actor. Its methods are called as if it were here: ``proxy.add(2, 3)``.

    ``proxy.add.submit(2, 3)`` gives a future, ``proxy.items.stream()`` iterates over what a generator method gives,
    ``proxy.add.options(timeout=5.0)(2, 3)`` calls with other rules.
    """

    def __init__(self, route: Route, actor_class: type[Any] | None, timeout: float | None) -> None:
        self._route = route
        self._class = actor_class
        self._timeout = timeout

    def __getattr__(self, name: str) -> ActorMethod:
        check_method_name(name)
        idempotent = self._class is not None and is_idempotent(getattr(self._class, name, None))
        method = self.__dict__[name] = ActorMethod(self._route, name, self._timeout, idempotent)
        return method

    def __repr__(self) -> str:
        endpoint = self._route.endpoint
        return f"<actor {endpoint.name!r} at {endpoint.address}>"
