"""What holds for every test: it leaves nothing behind, does not see its user's clusters, and says what it lacks."""

import asyncio
import functools
import gc
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kinds import PROCESSES, Clusters, kinds_for
from tests.proofs import is_proof

from fluster import Cluster
from fluster.cluster.attempt import proc
from fluster.testing.leaks import Footprint, end_processes


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")
    if item.get_closest_marker("docker") and (reason := _why_no_docker()):
        pytest.skip(reason)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("docker") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(180))  # the first of them waits for an image to be made
        if is_proof(item):
            item.add_marker(pytest.mark.proof)


def pytest_collection_finish() -> None:
    """Thousands of tests are looked through by every collection of garbage otherwise, those of forked children too."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def nothing_outlives_the_session() -> Iterator[None]:
    before = Footprint.now()
    yield
    _fail_on_growth(before, within_s=10.0)


@pytest.fixture(autouse=True)
def nothing_outlives_the_test() -> Iterator[None]:
    # Fixtures of wider scope are set up before this one: what they started is in the footprint.
    before = Footprint.now()
    yield
    _fail_on_growth(before, within_s=10.0)


@pytest.fixture(autouse=True)
def orphans_go_where_they_went_before() -> Iterator[None]:
    """A runtime makes its process, here the test runner, a subreaper; orphans of later tests are none of its own."""
    yield
    proc.become_subreaper(on=False)


@pytest.fixture(scope="session", autouse=True)
def no_cluster_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither variables nor a configuration file lead a test to a cluster that it did not start."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("FLUSTER_")]:
            patch.delenv(name)
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def _fail_on_growth(before: Footprint, *, within_s: float) -> None:
    if leaks := before.growth(within_s=within_s):
        end_processes(leaks)
        pytest.fail("left behind:\n" + "\n".join(f"  {leak}" for leak in leaks), pytrace=False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cluster_kind" in metafunc.fixturenames:
        kinds = kinds_for(metafunc.definition, all_tests="FLUSTER_EVERYWHERE" in os.environ)
        if len(kinds) > 1:
            metafunc.parametrize("cluster_kind", kinds, indirect=True, scope="session")


@pytest.fixture(scope="session")
def cluster_kind(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", PROCESSES))


@pytest.fixture(scope="session")
def clusters(no_cluster_of_the_user: None) -> Iterator[Clusters]:
    directory = Path(tempfile.mkdtemp(prefix="kinds-"))  # short: sockets of workers lie in it
    started = Clusters(directory)
    try:
        yield started
    finally:
        started.close()
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def shared_cluster(clusters: Clusters, cluster_kind: str) -> Cluster:
    """One cluster for all tests that do not break it, in whatever folder."""
    return clusters.get(cluster_kind)


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    yield shared_cluster
    shared_cluster._rpc.close_idle()  # kept for the next call: what a test left open would not be told from them


@pytest.fixture(scope="session")
def docker_image() -> str:
    """An image with this interpreter and everything that Fluster needs; for tests marked `docker`."""
    from fluster.cluster.docker.engine import Engine
    from fluster.testing.docker_image import provide_test_image

    return asyncio.run(provide_test_image(Engine()))


@functools.cache
def _why_no_docker() -> str:
    """Why tests with containers cannot run here; empty when they can."""
    if shutil.which("docker") is None:
        return "needs Docker: there is no docker command"
    try:
        asked = subprocess.run(["docker", "version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=10)
    except subprocess.TimeoutExpired:
        return "needs Docker: the engine did not answer in 10 s"
    return "" if asked.returncode == 0 else "needs Docker: no engine answers"
