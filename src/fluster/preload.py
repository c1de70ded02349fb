"""What jobs that talk to their cluster, host actors or work for a pool import: 0.2 s in each of them.

Zygotes import it ahead, while they have nothing else to do.
"""

from __future__ import annotations

MODULES = (
    "fluster.cluster.context",
    "fluster.rpc.client",
    "fluster.cluster.wire",
    "fluster.cluster.client",
    "fluster.cluster.local",
    "fluster.actor.transport",
    "fluster.actor.resolver",
    "fluster.actor.server",
    "fluster.pool.executor",
)
"""In this order."""
