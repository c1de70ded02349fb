"""A private network of a cluster's containers on this machine."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from fluster.cluster.docker.engine import Engine, EngineError
from fluster.cluster.docker.labels import CLUSTER
from fluster.errors import FlusterError

_RANGE = ipaddress.IPv4Network("198.18.0.0/15")
"""For benchmarks between networks (RFC 2544): no machine has addresses of it, and no office or cloud uses it."""
_PREFIX = 24
_TRIES = 32


@dataclass(frozen=True, slots=True)
class ContainerNetwork:
    """A bridge. `gateway`: this machine's own address on it."""

    name: str
    gateway: str


async def provide_network(engine: Engine, cluster: str) -> ContainerNetwork:
    """The network of a cluster; made unless it is there.

    Raises:
        FlusterError: It cannot be made.
    """
    name = f"fluster-{cluster}"
    problem: EngineError | None = None
    for subnet in _subnets(cluster):
        found = await engine.network(name)
        if found is not None:
            return ContainerNetwork(name, found["IPAM"]["Config"][0].get("Gateway") or _first(found))
        try:
            await engine.create_network(name, subnet, {CLUSTER: cluster})
        except EngineError as error:  # another network has it, or somebody just made this one
            problem = error
    raise FlusterError(f"the container network {name} cannot be made: {problem}")


def _subnets(cluster: str) -> Iterator[str]:
    """Somewhere in the range, where few look first."""
    count = 2 ** (_PREFIX - _RANGE.prefixlen)
    first = int.from_bytes(hashlib.sha256(cluster.encode()).digest()[:4], "big")
    for step in range(_TRIES):
        start = int(_RANGE.network_address) + (first + step * 37) % count * 2 ** (32 - _PREFIX)
        yield f"{ipaddress.IPv4Address(start)}/{_PREFIX}"


def _first(network: dict[str, object]) -> str:
    ipam = network["IPAM"]
    assert isinstance(ipam, dict)
    return str(next(ipaddress.ip_network(ipam["Config"][0]["Subnet"]).hosts()))
