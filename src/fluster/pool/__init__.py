"""Functions run by a pool of worker processes on a cluster."""

from fluster.pool.pool import WorkerPool
from fluster.pool.stats import PoolStats

__all__ = ["PoolStats", "WorkerPool"]
