"""Which cluster a handle talks to, in whatever process it has come to."""

from __future__ import annotations

import os
import threading
import weakref

from fluster.actor.resolver import ClusterResolver
from fluster.cluster.client import Cluster
from fluster.cluster.context import TaskContext
from fluster.cluster.local import current_cluster


class Connection:
    """A cluster, and the connections to actors that are found by it; shared by threads."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.resolver = ClusterResolver(cluster)


_open: weakref.WeakValueDictionary[str, Connection] = weakref.WeakValueDictionary()
_own: Connection | None = None
_lock = threading.Lock()


def _in_child() -> None:
    """The lock may be held by a thread that was not forked."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_in_child)


def connect(cluster: Cluster) -> Connection:
    """The connection to a cluster; handles that are loaded in this process find it by the cluster's address."""
    with _lock:
        found = _open.get(cluster.address)
        if found is None or found.cluster is not cluster:
            found = _open[cluster.address] = Connection(cluster)
        return found


def find_connection(address: str = "") -> Connection:
    """The connection of this process to the cluster at an address.

    In a job there is one cluster, whatever its address is elsewhere; outside of one it is a client's that is open
    here, else the cluster this program means.
    """
    global _own
    if TaskContext.from_environment() is None:
        with _lock:
            found = _open.get(address) or next(iter(_open.values()), None)
        if found is not None:
            return found
    if _own is None:
        _own = connect(current_cluster())
    return _own
