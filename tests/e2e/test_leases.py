"""A worker that goes silent loses its attempts, by itself and to its controller, before others get them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.e2e import lab
from tests.e2e.lab import Witness
from tests.e2e.outside import joined_worker, ready

from fluster import Cluster, JobStatus
from fluster.cluster.controller.core.state import Settings
from fluster.cluster.controller.server import ControllerServer
from fluster.cluster.ids import JobId

LEASE_S = 2.0
SETTINGS = Settings(worker_lease_s=LEASE_S, stop_grace_s=1.0, lease_margin_s=1.0)


@pytest.fixture
def server() -> Iterator[ControllerServer]:
    with ControllerServer(settings=SETTINGS) as server:
        yield server


@pytest.fixture
def client(server: ControllerServer) -> Iterator[Cluster]:
    with Cluster(server.address, token=server.token) as client:
        yield client


def check_second_run(client: Cluster, job_id: JobId, witness: Witness, first: lab.Process) -> None:
    """It began when nothing of the first was left, and is the only one whatever the first worker has to say."""
    second = witness.wait_for_run(2)
    assert not first.runs
    lab.wait_until(lambda: ready(client) == ["a", "b"], "the silent one is back")
    assert second.runs
    witness.let_end()
    count = client.result(job_id, timeout=lab.WITHIN_S)
    info = client.poll(job_id)
    assert (info.status, info.tasks[0].attempt, info.tasks[0].worker_id) == (JobStatus.SUCCEEDED, 2, "b")
    assert [int(line.data) for line in client.logs(job_id, attempt=2)] == list(range(count))
    assert len(witness.runs) == 2
    lost = [event for event in client.events(job_id) if event.kind == "TaskFailed"]
    assert [(event.attempt, event.worker_id) for event in lost] == [(1, "a")]
    assert "silent for" in lost[0].message


def test_a_frozen_workers_job_ends_before_another_gets_it_and_is_not_taken_up_again(
    client: Cluster, tmp_path: Path
) -> None:
    witness = Witness.at(tmp_path / "witness")
    with joined_worker(client, tmp_path / "a") as frozen:
        job = client.submit(witness.request(max_preemptions=1))
        first = witness.wait_for_run()
        with joined_worker(client, tmp_path / "b"):
            frozen.send_signal(signal.SIGSTOP)
            witness.wait_for_run(2)
            frozen.send_signal(signal.SIGCONT)
            check_second_run(client, job.job_id, witness, first)


def test_a_job_of_a_dead_worker_that_nobody_starts_again_ends_before_another_gets_it(
    client: Cluster, tmp_path: Path
) -> None:
    witness = Witness.at(tmp_path / "witness")
    with joined_worker(client, tmp_path / "a") as dead:
        job = client.submit(witness.request(max_preemptions=1))
        first = witness.wait_for_run()
        with joined_worker(client, tmp_path / "b"):
            dead.kill()
            witness.wait_for_run(2)
            with joined_worker(client, tmp_path / "a"):
                check_second_run(client, job.job_id, witness, first)


def test_a_worker_that_is_back_within_its_lease_keeps_its_job(tmp_path: Path) -> None:
    witness = Witness.at(tmp_path / "witness")
    with (
        ControllerServer(settings=replace(SETTINGS, worker_lease_s=lab.WITHIN_S)) as server,
        Cluster(server.address, token=server.token) as client,
        joined_worker(client, tmp_path / "a") as short,
    ):
        job = client.submit(witness.request())
        first = witness.wait_for_run()
        short.kill()
        short.wait()
        with joined_worker(client, tmp_path / "a"):
            assert first.runs
            witness.let_end()
            count = job.result(timeout=lab.WITHIN_S)
            assert (job.info().tasks[0].attempt, witness.runs) == (1, [first.pid])
            assert lab.printed(client, job.job_id) == list(range(count))
