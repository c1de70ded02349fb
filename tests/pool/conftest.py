"""One pool for all tests that leave its workers alone."""

from collections.abc import Iterator

import pytest

from fluster import Cluster, ResourceConfig
from fluster.pool import WorkerPool, fleet

SMALL = ResourceConfig.with_cpu(cpu=0.1, memory="100MB")


@pytest.fixture(scope="module")
def shared_pool(shared_cluster: Cluster) -> Iterator[WorkerPool]:
    # What the pool asks of its cluster now and then would open a connection in the middle of some test.
    with pytest.MonkeyPatch.context() as patch, WorkerPool(shared_cluster, 2, SMALL) as pool:
        patch.setattr(fleet, "_POLL_RUNNING_S", 3_600.0)
        pool.wait_for_workers(timeout=30)
        yield pool
    shared_cluster._rpc.close_idle()


@pytest.fixture
def pool(shared_pool: WorkerPool, cluster: Cluster) -> WorkerPool:
    return shared_pool


@pytest.fixture
def pair(cluster: Cluster) -> Iterator[WorkerPool]:
    """A pool of two of the test's own."""
    with WorkerPool(cluster, 2, SMALL) as pool:
        pool.wait_for_workers(timeout=30)
        yield pool
