"""A cluster whose machines are containers, and jobs in images: the real controller, the real engine."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from tests.e2e import programs
from tests.e2e.lab import in_thread, wait_until
from tests.e2e.outside import Server
from tests.kinds import contained_server

from fluster import (
    Cause,
    Cluster,
    Entrypoint,
    EnvironmentConfig,
    Job,
    JobInfo,
    JobRequest,
    JobStatus,
    ResourceConfig,
    RetryPolicy,
)
from fluster.cluster.backend.docker import cluster_name
from fluster.cluster.docker import labels
from fluster.cluster.docker.engine import Engine
from fluster.cluster.ids import JobId

pytestmark = pytest.mark.docker

WITHIN_S = 90.0
TASK = ResourceConfig.with_cpu(cpu=0.5, memory="100MB")


@dataclass(frozen=True, slots=True)
class Lab:
    """The cluster, whose machines are filled by one `TASK` each, and those machines as the engine sees them."""

    cluster: Cluster
    name: str

    def containers(self) -> list[dict[str, Any]]:
        return asyncio.run(Engine().containers({labels.CLUSTER: self.name}))

    def names(self) -> set[str]:
        return {each["Names"][0] for each in self.containers()}

    def container_of(self, job_id: JobId) -> str:
        """That of the worker which runs the job's first task."""
        worker = wait_until(lambda: self._running_on(job_id), f"{job_id} runs", WITHIN_S)
        return f"fluster-{self.name}-{worker}"

    def _running_on(self, job_id: JobId) -> str | None:
        info = self.cluster.poll(job_id)
        return info.tasks[0].worker_id if info.status is JobStatus.RUNNING else None

    def engine(self, call: Callable[[Engine], Any]) -> Any:
        return asyncio.run(call(Engine()))

    def networks(self) -> list[str]:
        """Names of the cluster's own: other tests have theirs."""
        return [each["Name"] for each in self.engine(lambda engine: engine.networks({labels.CLUSTER: self.name}))]

    @contextlib.contextmanager
    def cut_off(self, container: str) -> Iterator[None]:
        """As if its cable were pulled, and put in again: it keeps its address."""
        network = f"fluster-{self.name}"
        found = asyncio.run(Engine().inspect(container))
        assert found is not None
        address = found["NetworkSettings"]["Networks"][network]["IPAddress"]
        again = {"Container": container, "EndpointConfig": {"IPAMConfig": {"IPv4Address": address}}}
        out = {"Container": container, "Force": True}
        self.engine(lambda engine: engine._json("POST", f"/networks/{network}/disconnect", body=out))
        try:
            yield
        finally:
            self.engine(lambda engine: engine._json("POST", f"/networks/{network}/connect", body=again))


@pytest.fixture(scope="module")
def served(docker_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with contained_server(tmp_path_factory.mktemp("docker-cluster"), "narrow", docker_image) as server:
        yield server


@pytest.fixture
def lab(served: Server) -> Iterator[Lab]:
    with served.client() as cluster:
        yield Lab(cluster, cluster_name(served.state_dir))


def counted(steps: int) -> int:
    print("begun", flush=True)
    for _ in range(steps):
        time.sleep(0.1)
    return steps


def request(name: str, entrypoint: Entrypoint) -> JobRequest:
    return JobRequest(name=name, entrypoint=entrypoint, resources=TASK, retry=RetryPolicy(backoff_s=0.1))


def test_a_job_in_one_container_calls_an_actor_in_another_and_both_come_and_go_with_demand(lab: Lab) -> None:
    server = lab.cluster.submit(request("server", Entrypoint.from_callable(programs.serve_adder)))
    caller = lab.cluster.submit(request("caller", Entrypoint.from_callable(programs.ask_adder)))
    answer, address = caller.result(timeout=WITHIN_S)
    assert answer == 5
    assert address.startswith("198.1")
    workers = {lab.cluster.poll(job.job_id).tasks[0].worker_id for job in (server, caller)}
    assert len(workers) == 2
    server.terminate()
    wait_until(lambda: lab.containers() == [], "idle machines are given back", WITHIN_S)
    assert lab.cluster.workers() == [] or all(worker.status == "gone" for worker in lab.cluster.workers())


def test_what_containers_do_that_are_killed_paused_or_cut_off_is_done_once_all_the_same(lab: Lab) -> None:
    jobs = [lab.cluster.submit(request("count", Entrypoint.from_callable(counted, 30))) for _ in range(3)]
    killed, paused, cut = (lab.container_of(job.job_id) for job in jobs)
    assert len({killed, paused, cut}) == 3
    with lab.cut_off(cut):
        time.sleep(1.0)  # shorter than it takes for a machine to be given back
    lab.engine(lambda engine: engine._json("POST", f"/containers/{paused}/pause"))
    lab.engine(lambda engine: engine.signal(killed, "SIGKILL"))
    assert [job.result(timeout=WITHIN_S) for job in jobs] == [30, 30, 30]
    assert [job.info().tasks[0].attempt for job in jobs] == [2, 2, 1]
    for job in jobs:
        kinds = [event.kind for event in lab.cluster.events(job.job_id)]
        assert kinds.count("TaskSucceeded") == kinds.count("JobSucceeded") == 1
    wait_until(lambda: not {f"/{killed}", f"/{paused}"} & lab.names(), "both are given back", WITHIN_S)


@pytest.mark.timeout(300)
def test_two_hundred_jobs_through_four_containers_leave_no_container_network_or_volume(lab: Lab) -> None:
    small = ResourceConfig.with_cpu(cpu=0.1, memory="20MB")
    jobs = lab.cluster.launch_group(
        [JobRequest(f"j{number}", Entrypoint.from_command("sleep", "0.2"), small) for number in range(200)]
    )
    wait_until(lambda: len(lab.containers()) == 4, "four machines are there", WITHIN_S)
    assert all(each["Mounts"] == [] for each in lab.containers())
    ended = lab.cluster.wait(jobs, timeout=150.0)
    assert [info.status for info in ended] == [JobStatus.SUCCEEDED] * 200
    assert len({info.tasks[0].worker_id for info in ended}) == 4
    wait_until(lambda: lab.containers() == [], "idle machines are given back", WITHIN_S)
    assert lab.networks() == [f"fluster-{lab.name}"]  # which is the controller's, and goes with it


def in_image(image: str, entrypoint: Entrypoint, name: str = "contained") -> JobRequest:
    return JobRequest(name, entrypoint, TASK, EnvironmentConfig(docker_image=image, env_vars={"GREETING": "hello"}))


def where() -> tuple[str, bool, str]:
    from fluster import current_cluster

    return os.environ["GREETING"], os.path.exists("/.dockerenv"), current_cluster().namespace


@pytest.mark.here
def test_jobs_run_in_the_image_they_ask_for_and_reach_their_cluster_from_there(
    cluster: Cluster, docker_image: str
) -> None:
    called = cluster.submit(in_image(docker_image, Entrypoint.from_callable(where)))
    printed = cluster.submit(in_image(docker_image, Entrypoint.from_command("sh", "-c", "echo $GREETING; id -un")))
    assert called.result(timeout=WITHIN_S) == ("hello", True, "default")
    printed.result(timeout=WITHIN_S)
    assert [line.data for line in printed.logs()] == ["hello", "nobody"]
    (told,) = [event.message for event in cluster.events(printed.job_id) if event.kind == "TaskStarted"]
    assert f"image {docker_image} is sha256:" in told


@pytest.fixture
def registry() -> Iterator[str]:
    """Where a registry answers that has no image."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            missing = self.path != "/v2/"
            body = b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}' if missing else b"{}"
            self.send_response(404 if missing else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        serving = in_thread(server.serve_forever)
        yield f"localhost:{server.server_port}"
        server.shutdown()
        serving.result(10)


def without_image(cluster: Cluster, image: str) -> JobInfo:
    retry = RetryPolicy(max_preemptions=1, backoff_s=0.05)
    request = JobRequest("x", Entrypoint.from_command("true"), TASK, EnvironmentConfig(docker_image=image), retry)
    info = cluster.wait(cluster.launch(request), timeout=WITHIN_S)
    assert info.cause is Cause.BUILD_FAILED
    return info


@pytest.mark.here
def test_an_image_that_its_registry_does_not_have_fails_once_in_the_registrys_words(
    cluster: Cluster, registry: str
) -> None:
    info = without_image(cluster, f"{registry}/no/such:1")
    assert f"image '{registry}/no/such:1' cannot be pulled" in str(info.error_message)
    assert "manifest unknown" in str(info.error_message)
    assert info.tasks[0].attempt == 1


@pytest.mark.here
def test_an_image_whose_registry_does_not_answer_is_asked_for_again(cluster: Cluster) -> None:
    info = without_image(cluster, "localhost:1/no/such:1")
    assert "connection refused" in str(info.error_message)
    assert info.tasks[0].attempt == 2


@pytest.mark.here
def test_a_container_killed_under_its_job_is_a_failure_and_one_that_was_paused_goes_on(
    cluster: Cluster, docker_image: str
) -> None:
    retry = RetryPolicy(max_failures=1, max_preemptions=0, backoff_s=0.1)
    request = replace(in_image(docker_image, Entrypoint.from_callable(counted, 30)), retry=retry)
    engine = Engine()

    async def strike(job: Job, *orders: str) -> None:
        (found,) = await engine.containers({labels.ATTEMPT: f"{job.job_id}.0.1"})
        for order in orders:
            await engine._json("POST", f"/containers/{found['Id']}/{order}")
            await asyncio.sleep(0.5)

    def begun_and_struck(*orders: str) -> Job:
        job = cluster.submit(request)
        assert next(job.logs(follow=True)).data == "begun"
        asyncio.run(strike(job, *orders))
        return job

    killed, paused = begun_and_struck("kill"), begun_and_struck("pause", "unpause")
    assert (killed.result(timeout=WITHIN_S), paused.result(timeout=WITHIN_S)) == (30, 30)
    assert [job.info().tasks[0].attempt for job in (killed, paused)] == [2, 1]
    (message,) = [event.message for event in cluster.events(killed.job_id) if event.kind == "TaskRetried"]
    assert "(signal)" in message
