"""A cluster whose machines are containers: the real controller, the real engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.e2e.lab import wait_until

from fluster import (
    ActorServer,
    Cluster,
    ClusterResolver,
    Entrypoint,
    EnvironmentConfig,
    JobRequest,
    JobStatus,
    LocalCluster,
    ResourceConfig,
    RetryPolicy,
)
from fluster.cluster.backend.docker import DockerBackend, cluster_name, remove_cluster
from fluster.cluster.controller.core.rows import Offer, Resources
from fluster.cluster.controller.core.state import Settings
from fluster.cluster.controller.server import ControllerServer
from fluster.cluster.docker import labels
from fluster.cluster.docker.engine import Engine
from fluster.cluster.docker.network import provide_network

pytestmark = pytest.mark.docker

WITHIN_S = 90.0
TASK = ResourceConfig.with_cpu(cpu=0.5, memory="100MB")
# One task fills a machine.
MACHINE = Resources(500, 200_000_000, slots=4, disk_bytes=0)
SETTINGS = Settings(
    worker_lease_s=12.0,
    stop_grace_s=1.0,
    lease_margin_s=1.0,
    silent_release_s=8.0,
    idle_release_s=3.0,
    offers=(Offer("docker", MACHINE, at_most=4),),
)


@dataclass(frozen=True, slots=True)
class Lab:
    """The cluster, and its machines as the engine sees them."""

    cluster: Cluster
    name: str

    def containers(self) -> list[dict[str, Any]]:
        return asyncio.run(Engine().containers({labels.CLUSTER: self.name}))

    def container_of(self, job_id: str) -> str:
        """That of the worker which runs the job's first task."""
        worker = wait_until(lambda: self._running_on(job_id), f"{job_id} runs", WITHIN_S)
        return f"fluster-{self.name}-{worker}"

    def _running_on(self, job_id: str) -> str | None:
        info = self.cluster.poll(job_id)
        return info.tasks[0].worker_id if info.status is JobStatus.RUNNING else None

    def engine(self, call: Callable[[Engine], Any]) -> None:
        asyncio.run(call(Engine()))


@pytest.fixture(scope="module")
def served(docker_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ControllerServer, str]]:
    state_dir = tmp_path_factory.mktemp("docker-cluster")
    name = cluster_name(state_dir)
    network = asyncio.run(provide_network(Engine(), name))
    server = ControllerServer(
        DockerBackend(state_dir, image=docker_image), host=network.gateway, state_dir=state_dir, settings=SETTINGS
    )
    try:
        server.start()
        yield server, name
    finally:
        server.shutdown()
        asyncio.run(remove_cluster(Engine(), name))


@pytest.fixture
def lab(served: tuple[ControllerServer, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    server, name = served
    monkeypatch.setenv("FLUSTER_CA_FILE", str(server.ca_file))
    with Cluster(server.address, token=server.token) as cluster:
        yield Lab(cluster, name)


def counted(steps: int) -> int:
    for _ in range(steps):
        time.sleep(0.1)
    return steps


class Adder:
    def add(self, a: int, b: int) -> int:
        return a + b


def serve_adder() -> None:
    from fluster import current_cluster

    server = ActorServer(current_cluster())
    server.register("adder", Adder())
    server.serve()


def ask_adder() -> tuple[int, str]:
    from fluster import current_cluster

    pool = ClusterResolver(current_cluster()).lookup("adder")
    pool.wait_for_size(1, timeout=60.0)
    return pool.call().add(2, 3), pool.endpoints[0].address


def request(name: str, entrypoint: Entrypoint) -> JobRequest:
    return JobRequest(name=name, entrypoint=entrypoint, resources=TASK, retry=RetryPolicy(backoff_s=0.1))


def test_a_job_in_one_container_calls_an_actor_in_another_and_both_come_and_go_with_demand(lab: Lab) -> None:
    server = lab.cluster.submit(request("server", Entrypoint.from_callable(serve_adder)))
    caller = lab.cluster.submit(request("caller", Entrypoint.from_callable(ask_adder)))
    answer, address = caller.result(timeout=WITHIN_S)
    assert answer == 5
    assert address.startswith("198.1")
    workers = {lab.cluster.poll(job.job_id).tasks[0].worker_id for job in (server, caller)}
    assert len(workers) == 2
    server.terminate()
    wait_until(lambda: lab.containers() == [], "idle machines are given back", WITHIN_S)
    assert lab.cluster.workers() == [] or all(worker.status == "gone" for worker in lab.cluster.workers())


def test_a_container_killed_at_work_costs_no_job_and_each_task_counts_once(lab: Lab) -> None:
    job = lab.cluster.submit(request("count", Entrypoint.from_callable(counted, 30)))
    lab.engine(lambda engine: engine.signal(lab.container_of(job.job_id), "SIGKILL"))
    assert job.result(timeout=WITHIN_S) == 30
    assert job.info().tasks[0].attempt == 2
    kinds = [event.kind for event in lab.cluster.events(job.job_id)]
    assert kinds.count("JobSucceeded") == 1


def test_a_container_paused_beyond_its_lease_is_given_back_and_its_work_done_once_elsewhere(lab: Lab) -> None:
    job = lab.cluster.submit(request("count", Entrypoint.from_callable(counted, 30)))
    name = lab.container_of(job.job_id)
    lab.engine(lambda engine: engine._json("POST", f"/containers/{name}/pause"))
    assert job.result(timeout=WITHIN_S) == 30
    assert job.info().tasks[0].attempt == 2
    wait_until(lambda: f"/{name}" not in [each["Names"][0] for each in lab.containers()], "it is given back", WITHIN_S)


def test_a_container_cut_from_the_network_for_a_moment_goes_on(lab: Lab) -> None:
    job = lab.cluster.submit(request("count", Entrypoint.from_callable(counted, 50)))
    name, network = lab.container_of(job.job_id), f"fluster-{lab.name}"
    with contextlib.ExitStack() as cut:
        lab.engine(lambda engine: engine.disconnect(network, name))
        cut.callback(lab.engine, lambda engine: engine.connect(network, name))
        time.sleep(2.0)  # shorter than it takes to be given back
    assert job.result(timeout=WITHIN_S) == 50
    assert job.info().tasks[0].attempt == 1


@pytest.mark.timeout(300)
def test_two_hundred_jobs_through_four_containers_leave_no_container_or_volume(lab: Lab) -> None:
    small = ResourceConfig.with_cpu(cpu=0.1, memory="20MB")
    jobs = lab.cluster.launch_group(
        [JobRequest(f"j{number}", Entrypoint.from_command("sleep", "0.3"), small) for number in range(200)]
    )
    wait_until(lambda: len(lab.containers()) == 4, "four machines are there", WITHIN_S)
    assert all(each["Mounts"] == [] for each in lab.containers())
    ended = lab.cluster.wait(jobs, timeout=150.0)
    assert [info.status for info in ended] == [JobStatus.SUCCEEDED] * 200
    assert len({info.tasks[0].worker_id for info in ended}) == 4
    wait_until(lambda: lab.containers() == [], "idle machines are given back", WITHIN_S)


@pytest.fixture(scope="module")
def local_cluster() -> Iterator[LocalCluster]:
    with LocalCluster(cpu=2, memory="2GB") as cluster:
        yield cluster


def in_image(image: str, entrypoint: Entrypoint, name: str = "contained") -> JobRequest:
    return JobRequest(name, entrypoint, TASK, EnvironmentConfig(docker_image=image, env_vars={"GREETING": "hello"}))


def where() -> tuple[str, bool, str]:
    from fluster import current_cluster

    return os.environ["GREETING"], os.path.exists("/.dockerenv"), current_cluster().namespace


def test_jobs_run_in_the_image_they_ask_for_and_reach_their_cluster_from_there(
    local_cluster: LocalCluster, docker_image: str
) -> None:
    called = local_cluster.submit(in_image(docker_image, Entrypoint.from_callable(where)))
    printed = local_cluster.submit(
        in_image(docker_image, Entrypoint.from_command("sh", "-c", "echo $GREETING; id -un"))
    )
    assert called.result(timeout=WITHIN_S) == ("hello", True, "default")
    printed.result(timeout=WITHIN_S)
    assert [line.data for line in printed.logs() if line.stream == "stdout"] == ["hello", "nobody"]
    (told,) = [line.data for line in printed.logs() if "is sha256:" in line.data]
    assert told.startswith(f"fluster: image {docker_image} is sha256:")
    local_cluster._rpc.close_idle()


def test_an_image_that_is_nowhere_fails_the_build_in_the_registrys_words(local_cluster: LocalCluster) -> None:
    job = local_cluster.submit(
        JobRequest(
            "nowhere",
            Entrypoint.from_command("true"),
            TASK,
            EnvironmentConfig(docker_image="localhost:1/no/such:1"),
            RetryPolicy(max_preemptions=0),
        )
    )
    info = job.wait(timeout=WITHIN_S)
    assert info.cause == "build_failed"
    assert "image 'localhost:1/no/such:1' cannot be pulled" in str(info.error_message)
    local_cluster._rpc.close_idle()
