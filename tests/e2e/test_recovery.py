"""Processes of a cluster are killed while jobs run: the jobs go on, and nobody who waits for them notices."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e import lab, programs
from tests.e2e.lab import Witness

from fluster import Cause, Entrypoint, JobRequest, JobStatus, LocalCluster, RetryPolicy


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
    witness, child = Witness.at(tmp_path / "witness"), Witness.at(tmp_path / "child")
    job = cluster.submit(witness.request())
    parent = cluster.submit(programs.have_testified, child.directory)
    processes = [witness.wait_for_run(), child.wait_for_run()]
    cluster.register_endpoint("service", "127.0.0.1:1234")
    waiting = lab.in_thread(lambda: job.wait(timeout=lab.WITHIN_S))
    result = lab.in_thread(lambda: job.result(timeout=lab.WITHIN_S))
    followed = lab.in_thread(lambda: lab.printed(cluster, job.job_id, follow=True))

    kill(cluster)
    assert job.status() is JobStatus.RUNNING
    assert all(process.runs for process in processes)
    assert [each.address for each in cluster.lookup_endpoints("service")] == ["127.0.0.1:1234"]
    witness.let_end()
    child.let_end()

    assert waiting.result(lab.WITHIN_S).status is JobStatus.SUCCEEDED
    count = result.result(lab.WITHIN_S)
    assert followed.result(lab.WITHIN_S) == list(range(count))
    assert lab.printed(cluster, job.job_id) == list(range(count))
    assert parent.result(timeout=lab.WITHIN_S) > 0
    assert [each.tasks[0].attempt for each in (job.info(), parent.info())] == [1, 1]
    assert [witness.runs, child.runs] == [[process.pid] for process in processes]


def test_jobs_that_end_while_their_worker_is_dead_are_reported_by_the_next_one(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    witness = Witness.at(tmp_path / "witness")
    returning = cluster.submit(witness.request())
    gate = witness.directory / "gate"
    exiting = cluster.submit(lab.shell(f"echo begun; while ! test -e {gate}; do :; done; echo last words >&2; exit 7"))
    processes = [witness.wait_for_run(), lab.process_of(cluster, exiting.job_id)]
    # Stopped, it cannot start the worker again before the jobs have ended.
    boss = lab.controller(cluster)
    boss.signal(signal.SIGSTOP)
    lab.worker(cluster).kill()
    witness.let_end()
    for process in processes:
        lab.wait_until(lambda process=process: not process.runs, "the job has ended")  # type: ignore[misc]
    boss.signal(signal.SIGCONT)

    count = returning.result(timeout=lab.WITHIN_S)
    failed = exiting.wait(timeout=lab.WITHIN_S)

    assert returning.info().tasks[0].attempt == 1
    assert lab.printed(cluster, returning.job_id) == list(range(count))
    assert (failed.cause, failed.exit_code, failed.tasks[0].attempt) == (Cause.EXIT, 7, 1)
    assert failed.error_message is not None
    assert failed.error_message.endswith("last words")
    assert [line.data for line in exiting.logs()] == ["begun", "last words"]


def test_a_job_launched_while_the_worker_is_dead_runs_on_the_next_one(cluster: LocalCluster) -> None:
    assert cluster.submit(int, 1).result(timeout=lab.WITHIN_S) == 1
    boss = lab.controller(cluster)
    boss.signal(signal.SIGSTOP)
    lab.worker(cluster).kill()
    request = JobRequest("once", Entrypoint.from_callable(int, 2), retry=RetryPolicy(max_preemptions=0))
    launched = lab.in_thread(lambda: cluster.submit(request))
    boss.signal(signal.SIGCONT)

    # What was placed on the dead one had not begun, so that giving it out again costs nothing.
    assert launched.result(lab.WITHIN_S).result(timeout=lab.WITHIN_S) == 2


def test_a_killed_zygote_costs_nobody_anything(cluster: LocalCluster, tmp_path: Path) -> None:
    witness = Witness.at(tmp_path / "witness")
    job = cluster.submit(witness.request())
    witness.wait_for_run()
    lab.zygote(cluster).kill()

    assert cluster.submit(int, 2).result(timeout=lab.WITHIN_S) == 2
    witness.let_end()
    count = job.result(timeout=lab.WITHIN_S)
    assert (job.info().tasks[0].attempt, len(witness.runs)) == (1, 1)
    assert lab.printed(cluster, job.job_id) == list(range(count))


def test_a_job_whose_shim_is_killed_is_tried_again_once_nothing_of_it_is_left(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    witness = Witness.at(tmp_path / "witness")
    job = cluster.submit(witness.request(max_preemptions=1))
    first = witness.wait_for_run()
    lab.Process.of(lab.running(cluster._state_dir, job.job_id).shim).kill()
    witness.wait_for_run(2)
    assert not first.runs
    witness.let_end()

    assert job.result(timeout=lab.WITHIN_S) is not None
    assert job.info().tasks[0].attempt == 2
    assert "TaskFailed" in [event.kind for event in cluster.events(job.job_id)]


def test_a_shim_that_is_killed_without_a_retry_left_makes_the_job_fail_as_lost(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    witness = Witness.at(tmp_path / "witness")
    job = cluster.submit(witness.request())
    witness.wait_for_run()
    lab.Process.of(lab.running(cluster._state_dir, job.job_id).shim).kill()

    info = job.wait(timeout=lab.WITHIN_S)
    assert (info.status, info.cause) == (JobStatus.FAILED, Cause.WORKER_LOST)
    assert "what watched over its process was killed" in (info.error_message or "")


def test_a_killed_process_is_failed_at_a_waiting_client_within_half_a_second(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    def kill_one(number: int) -> float:
        """Seconds until its end is known."""
        witness = Witness.at(tmp_path / f"witness-{number}")
        job = cluster.submit(witness.request())
        process = witness.wait_for_run()
        ended = lab.in_thread(lambda: (job.wait(timeout=lab.WITHIN_S), time.monotonic()))
        killed_at = time.monotonic()
        process.kill()
        info, known_at = ended.result(lab.WITHIN_S)
        assert (info.status, info.cause, info.exit_code) == (JobStatus.FAILED, Cause.SIGNAL, 128 + signal.SIGKILL)
        assert "SIGKILL" in (info.error_message or "")
        return known_at - killed_at

    # A busy machine delays some, a pause or a poll on the way would delay all. benchmarks/jobs.py has the median.
    assert any(kill_one(number) <= 0.5 for number in range(5))
