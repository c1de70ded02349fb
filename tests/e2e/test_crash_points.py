"""The controller dies at the first, second, third ... boundary of a job's life: nobody who uses the cluster notices.

`FLUSTER_CRASH_ROUNDS`: so many times, at every boundary, and the controller that follows dies as well; else at every
third or so.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from tests.e2e import lab, programs
from tests.e2e.lab import Witness
from tests.e2e.mortal import MortalServer
from tests.e2e.outside import joined_worker, ready

from fluster import (
    Cause,
    Cluster,
    Entrypoint,
    JobRequest,
    JobStatus,
    ResourceConfig,
    RetryPolicy,
    TaskState,
    Unreachable,
)
from fluster.cluster.attempt import proc
from fluster.cluster.backend.local import stop_local_workers
from fluster.cluster.ids import JobId
from fluster.cluster.observed import JobInfo

ROUNDS = int(os.environ.get("FLUSTER_CRASH_ROUNDS", "0"))
STRIDE = 1 if ROUNDS else 3
pytestmark = pytest.mark.timeout(60 + 300 * ROUNDS)


@dataclass(frozen=True, slots=True)
class Stage:
    """Where one journey is played: a directory of its own, and a cluster whose controller may die at any moment."""

    cluster: Cluster
    directory: Path
    name: str

    def launch(self, function: Callable[..., object], *args: object, replicas: int = 1, max_failures: int = 0) -> JobId:
        """A job under a request id of its own, asked for twice; one that may not be lost once."""
        request = JobRequest(
            self.name,
            Entrypoint.from_callable(function, *args),
            ResourceConfig.with_cpu(cpu=0.1, memory="100MB", replicas=replicas),
            retry=RetryPolicy(max_failures=max_failures, max_preemptions=0, backoff_s=0.01),
            request_id=self.name,
        )
        first, second = self.cluster.launch(request), self.cluster.launch(request)
        assert first == second
        return first

    def runs(self) -> int:
        """How often `note_run` was called."""
        return len(list(self.directory.glob(f"{self.name}.*")))

    def ended(self, job_id: JobId, *, attempts: int = 1, status: JobStatus = JobStatus.SUCCEEDED) -> JobInfo:
        """How the job ended, once it has; its journal tells the same story, and there is no other job of its name."""
        info = self.cluster.wait(job_id, timeout=lab.WITHIN_S)
        assert info.status is status, info
        assert [task.attempt for task in info.tasks] == [attempts] * len(info.tasks)
        assert [job.job_id for job in self.cluster.list_jobs(name_prefix=self.name)] == [job_id]
        told = Counter(event.kind for event in self.cluster.events(job_id))
        ends = {JobStatus.SUCCEEDED: "TaskSucceeded", JobStatus.FAILED: "TaskFailed", JobStatus.STOPPED: "TaskStopped"}
        assert told["JobLaunched"] == 1
        assert told["TaskPlaced"] == attempts * len(info.tasks)
        assert told["TaskRetried"] == (attempts - 1) * len(info.tasks)
        assert told[ends[status]] == len(info.tasks)
        return info

    def lines(self, job_id: JobId) -> list[str]:
        """All that it printed."""
        return [line.data for line in self.cluster.logs(job_id)]


def launch(stage: Stage) -> None:
    """A job runs once, and tells all."""
    job_id = stage.launch(programs.note_run, stage.directory, stage.name)
    stage.ended(job_id)
    assert stage.runs() == 1
    assert stage.cluster.result(job_id, timeout=lab.WITHIN_S) == stage.name
    assert stage.lines(job_id) == [f"{stage.name} begins", f"{stage.name} ends"]


def gang(stage: Stage) -> None:
    """Two tasks start together and end together."""
    job_id = stage.launch(programs.note_run, stage.directory, stage.name, replicas=2)
    stage.ended(job_id)
    assert stage.runs() == 2
    assert [stage.cluster.result(job_id, task=task) for task in range(2)] == [stage.name] * 2


def retry(stage: Stage) -> None:
    """A failure is charged once, and the second attempt is the last."""
    job_id = stage.launch(programs.fail_once, stage.directory, stage.name, max_failures=1)
    stage.ended(job_id, attempts=2)
    assert stage.runs() == 2
    said = [line for line in stage.lines(job_id) if line.startswith(stage.name)]
    assert said == [f"{stage.name} begins", f"{stage.name} ends"] * 2


def terminate(stage: Stage) -> None:
    """Whoever was told that it ends finds it ended, and its process gone."""
    witness = Witness.at(stage.directory / stage.name)
    job_id = stage.launch(programs.testify, witness.directory)
    process = witness.wait_for_run()
    stage.cluster.terminate(job_id)
    stage.cluster.terminate(job_id)
    info = stage.ended(job_id, status=JobStatus.STOPPED)
    assert (info.cause, info.tasks[0].state) == (Cause.TERMINATED, TaskState.STOPPED)
    assert not process.runs
    assert len(witness.runs) == 1


def cascade(stage: Stage) -> None:
    """A terminated job takes those with it that descend from it, also one that has not started."""
    witness = Witness.at(stage.directory / stage.name)
    parent = stage.launch(programs.testify, witness.directory)
    process = witness.wait_for_run()
    children = [
        stage.cluster.launch(
            JobRequest(
                f"child-of-{stage.name}",
                Entrypoint.from_command("sleep", "1000"),
                ResourceConfig.with_cpu(cpu=cpu, memory="100MB"),
                parent=parent,
                request_id=f"{stage.name}-{cpu}",
            )
        )
        for cpu in (0.1, 1000.0)
    ]
    stage.cluster.terminate(parent)
    stage.ended(parent, status=JobStatus.STOPPED)
    for info in stage.cluster.wait(children, timeout=lab.WITHIN_S):
        assert (info.status, info.cause) == (JobStatus.STOPPED, Cause.TERMINATED)
        assert parent in (info.error_message or "")
    assert not process.runs


def endpoint(stage: Stage) -> None:
    """An endpoint is there once, as long as its attempt is."""
    witness = Witness.at(stage.directory / stage.name)
    job_id = stage.launch(programs.testify, witness.directory)
    witness.wait_for_run()
    lab.wait_until(lambda: stage.cluster.poll(job_id).status is JobStatus.RUNNING, "the job runs")
    kept = stage.cluster.register_endpoint(stage.name, "127.0.0.1:1", job_id=job_id)
    withdrawn = stage.cluster.register_endpoint(stage.name, "127.0.0.1:2", job_id=job_id)
    stage.cluster.unregister_endpoint(withdrawn.endpoint_id)
    assert [each.endpoint_id for each in stage.cluster.lookup_endpoints(stage.name)] == [kept.endpoint_id]
    witness.let_end()
    stage.ended(job_id)
    assert stage.cluster.lookup_endpoints(stage.name) == []


def result(stage: Stage) -> None:
    """An argument and a result that are blobs arrive whole."""
    content = os.urandom(300_000)
    job_id = stage.launch(programs.give_back, content)
    assert stage.cluster.result(job_id, timeout=lab.WITHIN_S) == content
    stage.ended(job_id)


def logs(stage: Stage) -> None:
    """Who follows and who reads later see each line once."""
    job_id = stage.launch(programs.print_lines, 3_000)
    followed = [int(line.data.split()[0]) for line in stage.cluster.logs(job_id, follow=True)]
    stage.ended(job_id)
    assert followed == list(range(3_000))
    assert [int(line.split()[0]) for line in stage.lines(job_id)] == followed


JOURNEYS = [launch, gang, retry, terminate, cascade, endpoint, result, logs]


def seeded() -> random.Random:
    """The chance of one test; its seed is shown when it fails."""
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(1 << 32)))
    print(f"CHAOS_SEED={seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MortalServer]:
    with MortalServer(tmp_path_factory.mktemp("mortal") / "state") as server:
        yield server


@pytest.fixture(scope="module")
def worker(server: MortalServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with server.client() as client, joined_worker(client, tmp_path_factory.mktemp("worker") / "w"):
        yield


@pytest.fixture
def cluster(server: MortalServer, worker: None) -> Iterator[Cluster]:
    with server.client() as client:
        assert client.list_jobs(name_prefix="no such job") == []  # one that was never reached is not asked again
        yield client


@pytest.mark.parametrize("journey", JOURNEYS)
def test_a_crash_at_any_boundary_changes_nothing(
    server: MortalServer, cluster: Cluster, tmp_path: Path, journey: Callable[[Stage], None]
) -> None:
    chance = seeded()
    for again in range(max(1, ROUNDS)):
        crashes = 0
        for boundary in count(1 + chance.randrange(STRIDE), STRIDE):
            print(f"{journey.__name__}: round {again}, boundary {boundary}")
            server.fuse.arm(boundary, after_that=chance.randint(1, 8) if ROUNDS else 0)
            journey(Stage(cluster, tmp_path, f"{journey.__name__}-{again}-{boundary}"))
            deaths = server.fuse.disarm()
            crashes += deaths
            if not deaths:
                break
        print(f"{journey.__name__}: round {again}, {crashes} crashes")
        assert crashes >= 10 // STRIDE


def test_a_crash_while_machines_are_asked_for_leaves_none_too_many_and_none_too_few(tmp_path: Path) -> None:
    if not ROUNDS:
        assert dies_asking_for_machines(tmp_path / "state", seeded().randint(1, 8))
        return
    boundary = 1
    while dies_asking_for_machines(tmp_path / str(boundary), boundary):
        boundary += 1
    assert boundary > 8


def dies_asking_for_machines(state_dir: Path, boundary: int) -> bool:
    """Whether a controller that wants two machines died at that boundary; then there are two all the same."""
    print(f"boundary {boundary}")
    server = MortalServer(state_dir, "--backend", "local", "--workers", "2", "--cpu", "2")
    server.fuse.arm(boundary)
    try:
        with server, server.client() as client:
            wait_for_workers(client, ["local-0", "local-1"])
            assert client.submit(int, 7).result(timeout=lab.WITHIN_S) == 7
            deaths = server.fuse.disarm()
            assert workers_below(state_dir) == 2
    finally:
        stop_local_workers(state_dir, patience_s=0.0)
    return deaths > 0


def wait_for_workers(client: Cluster, names: list[str]) -> None:
    """Whatever the first call of this client meets."""

    def are_ready() -> bool:
        try:
            return ready(client) == names
        except Unreachable:
            return False

    lab.wait_until(are_ready, f"workers {names} are ready")


def workers_below(state_dir: Path) -> int:
    """Worker daemons that run on a directory below this one."""
    found = 0
    for pid in proc.all_pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        found += "fluster.cluster.worker" in words and any(word.startswith(f"{state_dir}/") for word in words)
    return found
