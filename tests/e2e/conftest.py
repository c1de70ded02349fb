"""One cluster for all tests that do not break it."""

from collections.abc import Iterator

import pytest

from fluster import LocalCluster


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[LocalCluster]:
    with LocalCluster(cpu=4, memory="8GB") as cluster:
        assert cluster.submit(int, 1).result(timeout=30) == 1
        yield cluster


@pytest.fixture
def cluster(shared_cluster: LocalCluster) -> Iterator[LocalCluster]:
    yield shared_cluster
    shared_cluster._rpc.close_idle()  # kept for the next call: what a test left open would not be told from them
