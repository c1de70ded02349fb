"""Resolvers: find the actors that are registered under a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from fluster.actor.channels import Channels
from fluster.actor.own import OWN_SERVERS
from fluster.actor.pool import ActorPool
from fluster.actor.types import ActorEndpoint, ActorId
from fluster.cluster.validation import check_name

if TYPE_CHECKING:
    from fluster.cluster.client import Cluster

T = TypeVar("T")


class Resolver(Protocol):
    """Finds actors."""

    @overload
    def lookup(self, name: str) -> ActorPool[Any]: ...
    @overload
    def lookup(self, name: str, actor_class: type[T]) -> ActorPool[T]: ...
    def lookup(self, name: str, actor_class: type[Any] | None = None) -> ActorPool[Any]:
        """The actors of a name, those that are there now and those that come."""
        ...


class ClusterResolver:
    """Finds what is registered with a cluster, in the cluster's namespace.

    Its connections are closed with it, or with the cluster.

    Args:
        cluster: Whom to ask.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._channels = Channels()
        cluster._on_close(self._channels.close)

    @overload
    def lookup(self, name: str) -> ActorPool[Any]: ...
    @overload
    def lookup(self, name: str, actor_class: type[T]) -> ActorPool[T]: ...
    def lookup(self, name: str, actor_class: type[Any] | None = None) -> ActorPool[Any]:
        """The actors of a name; asks nobody before the pool is used.

        Args:
            name: What they are registered under.
            actor_class: Their class: type checkers then see its methods, and its `@idempotent` marks count.

        Raises:
            ValueError: No actor can have that name.
        """
        check_name(name, "an actor's name")
        return ActorPool(name, lambda: self._find(name), self._channels, actor_class)

    def close(self) -> None:
        """Closes connections; calls without a reply fail with `ActorUnavailable`. Repeating is harmless."""
        self._channels.close()

    def _find(self, name: str) -> list[ActorEndpoint]:
        return [ActorEndpoint.of(each) for each in self._cluster.lookup_endpoints(name) if each.access_key]


class FixedResolver:
    """Finds actors at given addresses, without a cluster.

    Args:
        addresses: By name, ``host:port`` of one server or of several.
        access_key: `ActorServer.access_key` of the servers; not needed for servers of this process.
    """

    def __init__(self, addresses: Mapping[str, str | Sequence[str]], *, access_key: str | None = None) -> None:
        self._addresses = {
            check_name(name, "an actor's name"): [value] if isinstance(value, str) else list(value)
            for name, value in addresses.items()
        }
        self._access_key = access_key
        self._seen: dict[str, str] = {}  # also of servers that were shut down since
        self._channels = Channels()

    @overload
    def lookup(self, name: str) -> ActorPool[Any]: ...
    @overload
    def lookup(self, name: str, actor_class: type[T]) -> ActorPool[T]: ...
    def lookup(self, name: str, actor_class: type[Any] | None = None) -> ActorPool[Any]:
        """The actors of a name; empty if no address was given for it.

        Raises:
            ValueError: The key of a server is not known.
        """
        check_name(name, "an actor's name")
        self._find(name)
        return ActorPool(name, lambda: self._find(name), self._channels, actor_class)

    def close(self) -> None:
        """Closes connections. Repeating is harmless."""
        self._channels.close()

    def _find(self, name: str) -> list[ActorEndpoint]:
        return [
            ActorEndpoint(ActorId(""), name, address, access_key=self._key_of(address))
            for address in self._addresses.get(name, ())
        ]

    def _key_of(self, address: str) -> str:
        key = self._access_key or OWN_SERVERS.get(address) or self._seen.get(address)
        if key is None:
            raise ValueError(
                f"no key is known for the actor server at {address}: it is none of this process;"
                " pass its ActorServer.access_key as access_key="
            )
        self._seen[address] = key
        return key
