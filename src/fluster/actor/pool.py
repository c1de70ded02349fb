"""`ActorPool`: the actors of one name, and calls to one of them or to all."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from fluster.actor.channels import Channels
from fluster.actor.futures import ActorFuture
from fluster.actor.hosted import check_method_name
from fluster.actor.proxy import ActorProxy, Route
from fluster.actor.types import ActorEndpoint
from fluster.errors import ActorNotFound

T = TypeVar("T")

LOOKED_UP_S = 1.0
"""What was found is believed for so long; what turns out to be gone is looked up at once."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.05


class ActorPool(Generic[T]):
    """The actors registered under a name. Made by a resolver's `lookup`; any threads may use it."""

    def __init__(
        self,
        name: str,
        find: Callable[[], list[ActorEndpoint]],
        channels: Channels,
        actor_class: type[T] | None = None,
    ) -> None:
        self._name = name
        self._find = find
        self._channels = channels
        self._class = actor_class
        self._found: list[ActorEndpoint] = []
        self._found_at = -LOOKED_UP_S
        self._turns = itertools.count()
        self._gone: set[tuple[str, str]] = set()

    def __repr__(self) -> str:
        return f"ActorPool({self._name!r})"

    @property
    def name(self) -> str:
        """What they are registered under."""
        return self._name

    @property
    def size(self) -> int:
        """How many there are now."""
        return len(self.endpoints)

    @property
    def endpoints(self) -> list[ActorEndpoint]:
        """Those there are now, oldest first."""
        return list(self._look_up())

    def wait_for_size(self, min_size: int, timeout: float = 60.0) -> None:
        """Returns once there are at least so many.

        Raises:
            TimeoutError: There were fewer after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        pause = _FIRST_PAUSE_S
        while (size := self.size) < min_size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(
                    f"{size} of {min_size} actors {self._name!r} were there after {timeout:g} s;"
                    " `Cluster.list_jobs()` shows whether a job that registers them waits or has failed"
                )
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def call(self, timeout: float | None = None) -> T:
        """A proxy to one of them, each in turn.

        Args:
            timeout: Seconds for each call made through it; `None`: no limit.

        Raises:
            ActorNotFound: There is none.
        """
        return cast(T, ActorProxy(Route(self, self._next()), self._class, timeout))

    def broadcast(self, timeout: float | None = None) -> BroadcastHandle:
        """Calls to all of those there are now."""
        return BroadcastHandle(self, timeout)

    # For proxies

    def _next(self) -> ActorEndpoint:
        found = self._found
        if not found or time.monotonic() - self._found_at > LOOKED_UP_S:
            found = self._look_up()
        if not found:
            raise ActorNotFound(self._name)
        return found[next(self._turns) % len(found)]

    def _other_than_gone(self) -> ActorEndpoint | None:
        """One that is not known to be gone, looked up now."""
        found = self._look_up()
        if not found:
            return None
        return found[next(self._turns) % len(found)]

    def _is_gone(self, endpoint: ActorEndpoint) -> None:
        """Its server does not answer any more, whatever the registry says for a moment yet."""
        self._gone = {*self._gone, (endpoint.actor_id, endpoint.access_key)}
        self._found = self._living(self._found)

    def _look_up(self) -> list[ActorEndpoint]:
        everything = self._find()
        self._gone = self._gone & {(each.actor_id, each.access_key) for each in everything}
        found = self._found = self._living(everything)
        self._found_at = time.monotonic()
        return found

    def _living(self, endpoints: list[ActorEndpoint]) -> list[ActorEndpoint]:
        gone = self._gone
        return [each for each in endpoints if (each.actor_id, each.access_key) not in gone]


class BroadcastHandle:
    """Calls of a method on all actors of a pool: ``pool.broadcast().method(...)`` gives a future for each."""

    def __init__(self, pool: ActorPool[Any], timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout

    def __getattr__(self, name: str) -> Callable[..., list[ActorFuture[Any]]]:
        check_method_name(name)

        def call(*args: Any, **kwargs: Any) -> list[ActorFuture[Any]]:
            pool = self._pool
            proxies = [ActorProxy(Route(pool, each), pool._class, self._timeout) for each in pool._look_up()]
            if not proxies:
                raise ActorNotFound(pool.name)
            return [getattr(proxy, name).submit_here(*args, **kwargs) for proxy in proxies]

        return call
