"""The kinds of clusters that one suite runs on: processes, jobs in containers, machines that are containers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.e2e.outside import Server, joined_worker

from fluster import Cluster, LocalCluster
from fluster.cluster.backend.docker import stop_docker_workers
from fluster.cluster.docker.engine import Engine
from fluster.testing.docker_image import provide_test_image

PROCESSES, DOCKER_RUNTIME, DOCKER_BACKEND = "processes", "docker-runtime", "docker-backend"
_START_S = 60.0


def kinds_for(test: pytest.Item, *, all_tests: bool) -> list[object]:
    """What a test that asks for a cluster runs on: containers too if it says so, or if all that can shall do so."""
    containers = [pytest.param(kind, marks=pytest.mark.docker) for kind in (DOCKER_RUNTIME, DOCKER_BACKEND)]
    contained = all_tests or test.get_closest_marker("everywhere")
    return [PROCESSES, *containers] if contained and not test.get_closest_marker("here") else [PROCESSES]


class Clusters:
    """One of each kind, of 4 cores and 8 GB, started when it is first asked for and kept until `close`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: dict[str, Cluster] = {}
        self._stack = contextlib.ExitStack()

    def get(self, kind: str) -> Cluster:
        """The one of that kind, which has run a job."""
        if kind not in self._started:
            cluster = self._stack.enter_context(_START[kind](self._directory / kind))
            assert cluster.submit(int, 1).result(timeout=_START_S) == 1
            self._started[kind] = cluster
        return self._started[kind]

    def close(self) -> None:
        """Ends them all."""
        self._stack.close()


@contextmanager
def _processes(directory: Path) -> Iterator[Cluster]:
    with LocalCluster(cpu=4, memory="8GB") as cluster:
        yield cluster


@contextmanager
def _docker_runtime(directory: Path) -> Iterator[Cluster]:
    options = ("--runtime", "docker", "--image", _image(), "--cpu", "4", "--memory", "8GB")
    directory.mkdir()
    with (
        Server(directory / "state") as server,
        server.client() as client,
        joined_worker(client, directory / "contained", *options),
    ):
        yield client


@contextmanager
def _docker_backend(directory: Path) -> Iterator[Cluster]:
    with contained_server(directory, "wide", _image()) as server, server.client() as client:
        yield client


@contextmanager
def contained_server(directory: Path, machines: str, image: str, *options: str) -> Iterator[Server]:
    """A controller whose machines are containers, of a kind that `tests.contained` knows."""
    state_dir = directory / "state"
    directory.mkdir(exist_ok=True)
    program = ("-m", "tests.contained", machines)
    try:
        with Server(state_dir, "--backend", "docker", "--worker-image", image, *options, program=program) as server:
            yield server
    finally:
        stop_docker_workers(state_dir)


_START: dict[str, Callable[[Path], contextlib.AbstractContextManager[Cluster]]] = {
    PROCESSES: _processes,
    DOCKER_RUNTIME: _docker_runtime,
    DOCKER_BACKEND: _docker_backend,
}


def _image() -> str:
    return asyncio.run(provide_test_image(Engine()))
