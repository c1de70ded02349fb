"""Processes of a cluster are killed while jobs run: the jobs go on, and nobody who waits for them notices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e import lab
from tests.e2e.lab import Witness

from fluster import JobStatus, LocalCluster


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """One of its own for each test: a controller that is started again is a new child of this process."""
    with LocalCluster(cpu=8, memory="8GB") as cluster:
        yield cluster


def kill_controller(cluster: LocalCluster) -> None:
    lab.controller(cluster).kill()


def kill_worker(cluster: LocalCluster) -> None:
    lab.worker(cluster).kill()


def kill_both(cluster: LocalCluster) -> None:
    victims = [lab.controller(cluster), lab.worker(cluster)]
    for victim in victims:
        victim.kill()


KILLS = [kill_controller, kill_worker, kill_both]


@pytest.mark.parametrize("kill", KILLS)
def test_running_jobs_and_those_who_wait_for_them_do_not_notice_a_kill(
    cluster: LocalCluster, tmp_path: Path, kill: Callable[[LocalCluster], None]
) -> None:
    witness = Witness.at(tmp_path / "witness")
    job = cluster.submit(witness.request())
    process = witness.wait_for_run()
    waiting = lab.in_thread(lambda: job.wait(timeout=lab.WITHIN_S))
    result = lab.in_thread(lambda: job.result(timeout=lab.WITHIN_S))
    followed = lab.in_thread(lambda: lab.printed(cluster, job.job_id, follow=True))
    time_of_kill = time.monotonic()

    kill(cluster)
    assert cluster.poll(job.job_id).status is JobStatus.RUNNING
    print("controller back after", time.monotonic() - time_of_kill)
    assert process.runs
    witness.let_end()

    info = waiting.result(lab.WITHIN_S)
    print("result after", time.monotonic() - time_of_kill)
    assert (info.status, info.tasks[0].attempt) == (JobStatus.SUCCEEDED, 1), info
    count = result.result(lab.WITHIN_S)
    assert followed.result(lab.WITHIN_S) == list(range(count))
    assert lab.printed(cluster, job.job_id) == list(range(count))
    assert witness.runs == [process.pid]
