"""Workers of a pool: they come, die, are replaced, and go."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.pool import chaos, functions
from tests.pool.conftest import SMALL
from tests.pool.functions import process, square, until

from fluster import Cause, Cluster, EnvironmentConfig, JobFailed, JobStatus, LocalCluster, ResourceConfig
from fluster.pool import WorkerPool
from fluster.pool import executor as executor_module


def jobs_of(cluster: Cluster, prefix: str) -> list[JobStatus]:
    return [job.status for job in cluster.list_jobs(name_prefix=prefix)]


def test_workers_are_jobs_of_one_task_that_end_with_the_pool(cluster: Cluster) -> None:
    with WorkerPool(cluster, 2, SMALL, name_prefix="mine") as pool:
        pool.wait_for_workers(timeout=30)
        jobs = cluster.list_jobs(name_prefix="mine-")
        assert sorted(job.name for job in jobs) == ["mine-0", "mine-1"]
        assert [len(cluster.poll(job.job_id).tasks) for job in jobs] == [1, 1]
    assert all(status.finished() for status in jobs_of(cluster, "mine-"))


def test_tasks_submitted_before_workers_are_there_wait(cluster: Cluster) -> None:
    with WorkerPool(cluster, 1, SMALL) as pool:
        assert [future.result(timeout=9) for future in pool.map(square, range(5))] == [0, 1, 4, 9, 16]


def test_a_worker_that_exits_is_what_its_task_gets(cluster: Cluster) -> None:
    with WorkerPool(cluster, 2, SMALL, max_retries=1) as pool:
        pool.wait_for_workers(timeout=30)
        doomed = pool.submit(functions.die, 17)
        others = pool.map(square, range(200))
        with pytest.raises(JobFailed, match="killed 2 workers") as caught:
            doomed.result(timeout=9)
        assert (caught.value.cause, caught.value.exit_code) == (Cause.EXIT, 17)
        assert caught.value.info is not None
        assert [future.result(timeout=8) for future in others] == [x * x for x in range(200)]
        pool.wait_for_workers(timeout=9)
        assert (pool.stats().failed, pool.stats().retried) == (1, 1)


def test_a_task_that_is_killed_without_retries_fails_with_the_signal(cluster: Cluster) -> None:
    with WorkerPool(cluster, 1, SMALL, max_retries=0) as pool:
        with pytest.raises(JobFailed) as caught:
            pool.submit(functions.kill_itself).result(timeout=9)
        assert (caught.value.cause, caught.value.exit_code) == (Cause.SIGNAL, 137)
        assert pool.submit(square, 3).result(timeout=9) == 9


@pytest.mark.here
def test_a_task_whose_workers_die_is_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    with WorkerPool(cluster, 2, SMALL, max_retries=2) as pool:
        assert pool.submit(functions.die_the_first_times, str(tmp_path / "runs"), 2).result(timeout=9) == 3
        assert pool.stats().retried == 2


@pytest.mark.here
def test_only_the_task_that_ran_is_charged_and_a_new_worker_comes(pair: WorkerPool, tmp_path: Path) -> None:
    begun, go = [str(tmp_path / name) for name in ("begun0", "begun1")], str(tmp_path / "go")
    running = [pair.submit(functions.begin_and_wait, path, go) for path in begun]
    queued = pair.map(square, range(50))
    until(lambda: all(Path(path).exists() for path in begun))
    victims = [worker.pid for worker in pair._dispatcher.workers]
    Path(begun[0]).unlink()
    Path(begun[1]).unlink()
    os.kill(victims[0], signal.SIGKILL)
    until(lambda: any(Path(path).exists() for path in begun))
    Path(go).touch()
    pids = [future.result(timeout=9) for future in running]
    assert victims[0] not in pids
    assert [future.result(timeout=8) for future in queued] == [x * x for x in range(50)]
    assert pair.stats().retried == 1
    pair.wait_for_workers(timeout=9)
    assert {worker.pid for worker in pair._dispatcher.workers} > {victims[1]}


def test_of_many_tasks_that_travel_together_only_the_deadly_one_fails(cluster: Cluster) -> None:
    with WorkerPool(cluster, 2, SMALL, max_retries=0) as pool:
        for future in pool.starmap(functions.square_or_die, [(x, -1) for x in range(500)]):
            future.result(timeout=9)
        futures = pool.starmap(functions.square_or_die, [(x, 150) for x in range(300)])
        failed = [x for x, future in enumerate(futures) if future.exception(timeout=9) is not None]
        assert failed == [150]
        assert isinstance(futures[150].exception(), JobFailed)
        assert [future.result() for x, future in enumerate(futures) if x != 150] == [
            x * x for x in range(300) if x != 150
        ]


@pytest.mark.here
def test_all_results_are_right_while_workers_are_killed(cluster: Cluster) -> None:
    chaos.run(cluster, tasks=2_000, workers=3, every_s=0.2, kills=6)


@pytest.mark.here
def test_a_worker_whose_job_is_stopped_by_somebody_is_replaced(cluster: Cluster, tmp_path: Path) -> None:
    with WorkerPool(cluster, 1, SMALL, name_prefix="stopped") as pool:
        future = pool.submit(functions.begin_and_wait, str(tmp_path / "begun"), str(tmp_path / "go"))
        until((tmp_path / "begun").exists)
        (stopped,) = cluster.list_jobs(name_prefix="stopped-")
        cluster.terminate(stopped.job_id)
        (tmp_path / "begun").unlink()
        until((tmp_path / "begun").exists)
        (tmp_path / "go").touch()
        assert future.result(timeout=9) > 0
        until(lambda: sorted(jobs_of(cluster, "stopped-0")) == [JobStatus.RUNNING, JobStatus.STOPPED])


def test_a_forked_child_cannot_use_the_pool_and_harms_nothing(pool: WorkerPool) -> None:
    def in_child() -> int:
        try:
            pool.submit(square, 1)
        except RuntimeError as error:
            pool.shutdown()
            return 0 if "process" in str(error) else 2
        return 1

    child = os.fork()
    if not child:
        status = 3
        try:
            status = in_child()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert pool.submit(square, 4).result(timeout=8) == 16


def test_two_pools_of_one_prefix_share_no_workers(cluster: Cluster) -> None:
    with (
        WorkerPool(cluster, 1, SMALL, name_prefix="same") as one,
        WorkerPool(cluster, 1, SMALL, name_prefix="same") as two,
    ):
        for pool in (one, two):
            pool.wait_for_workers(timeout=30)
        assert (one.size, two.size) == (1, 1)
        assert {f.result(timeout=8) for f in one.map(process, range(20))}.isdisjoint(
            f.result(timeout=8) for f in two.map(process, range(20))
        )


def test_workers_that_are_not_there_in_time_are_told_of_with_what_they_wait_for(cluster: Cluster) -> None:
    pool = WorkerPool(cluster, 1, ResourceConfig.with_cpu(cpu=500, memory="1GB"))
    with pool, pytest.raises(TimeoutError, match=r"(?s)0 of 1 workers.*500 cpu needed"):
        pool.wait_for_workers(timeout=0.5)


def test_a_pool_whose_workers_never_start_gives_up_with_the_cause(cluster: Cluster) -> None:
    broken = EnvironmentConfig(env_vars={"PYTHONHOME": "/nowhere"})
    with WorkerPool(cluster, 1, SMALL, broken) as pool:
        future = pool.submit(square, 2)
        with pytest.raises(JobFailed, match="could be started"):
            pool.wait_for_workers(timeout=9)
        with pytest.raises(JobFailed, match="could be started"):
            future.result(timeout=8)
        with pytest.raises(JobFailed, match="could be started"):
            pool.submit(square, 2).result(timeout=8)


@pytest.mark.here
def test_a_pool_grows(cluster: Cluster, tmp_path: Path) -> None:
    with WorkerPool(cluster, 1, SMALL) as pool:
        pool.wait_for_workers(timeout=30)
        futures = [pool.submit(functions.meet, str(tmp_path), name, 3) for name in "abc"]
        pool.scale_to(3)
        assert [future.result(timeout=9) for future in futures] == ["a", "b", "c"]
        assert pool.size == 3


@pytest.mark.here
def test_a_pool_shrinks_and_what_runs_is_finished(cluster: Cluster, tmp_path: Path) -> None:
    with WorkerPool(cluster, 3, SMALL, name_prefix="shrinks") as pool:
        pool.wait_for_workers(timeout=30)
        running = pool.submit(functions.begin_and_wait, str(tmp_path / "begun"), str(tmp_path / "go"))
        until((tmp_path / "begun").exists)
        pool.scale_to(1)
        until(lambda: pool.size == 1)
        until(lambda: sum(not status.finished() for status in jobs_of(cluster, "shrinks-")) == 1)
        others = pool.map(square, range(5))
        pool.scale_to(0)
        (tmp_path / "go").touch()
        assert running.result(timeout=9) > 0
        until(lambda: pool.size == 0)
        pool.scale_to(1)
        assert [future.result(timeout=9) for future in others] == [0, 1, 4, 9, 16]
        assert pool.stats().retried == 0


def test_shutting_down_lets_tasks_come_to_their_end_and_takes_no_more(cluster: Cluster) -> None:
    pool = WorkerPool(cluster, 1, SMALL)
    futures = pool.map(square, range(1_000))
    pool.shutdown()
    assert [future.result(timeout=0) for future in futures] == [x * x for x in range(1_000)]
    calls: list[Callable[[], object]] = [
        lambda: pool.submit(square, 1),
        lambda: pool.map(square, [1]),
        lambda: pool.imap(square, [1]),
        lambda: pool.scale_to(2),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="shut down"):
            call()
    pool.shutdown()


@pytest.mark.here
def test_shutting_down_may_cancel_what_is_queued(cluster: Cluster, tmp_path: Path) -> None:
    pool = WorkerPool(cluster, 1, SMALL)
    running = pool.submit(functions.begin_and_wait, str(tmp_path / "begun"), str(tmp_path / "go"))
    queued = pool.map(square, range(10))
    until((tmp_path / "begun").exists)
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in queued)
    assert not running.done()
    (tmp_path / "go").touch()
    assert running.result(timeout=9) > 0
    pool.shutdown()


def test_a_pool_may_outlive_its_cluster_and_its_futures_fail(tmp_path: Path) -> None:
    with LocalCluster(cpu=2) as cluster:
        pool = WorkerPool(cluster, 1, SMALL)
        future = pool.submit(functions.wait_for, str(tmp_path / "never"))
    assert future.exception(timeout=8) is not None
    pool.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(square, 1)


def test_a_block_that_raises_does_not_wait_for_what_is_queued(cluster: Cluster) -> None:
    futures = []

    def fail() -> None:
        with WorkerPool(cluster, 1, ResourceConfig.with_cpu(cpu=500)) as pool:
            futures.append(pool.submit(square, 1))
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert futures[0].cancelled()


def test_a_worker_whose_pool_is_gone_ends(cluster: Cluster) -> None:
    job = cluster.submit(executor_module.run_worker, "nobody-looks-this-up", 1.0)
    info = job.wait(timeout=9)
    assert (info.status, info.exit_code) == (JobStatus.FAILED, 1)
    assert any("has not been heard of" in line.data for line in job.logs())


@pytest.mark.here
def test_workers_that_are_only_starting_end_at_once_too(cluster: Cluster) -> None:
    began = time.monotonic()
    for pause_s in (0.0, 0.1, 0.2, 0.3, 0.4):
        with WorkerPool(cluster, 2, SMALL):
            threading.Event().wait(pause_s)  # the moment is what is tried out
    assert time.monotonic() - began < 9  # nobody had to be killed, which takes 10 s


def test_a_worker_is_one_process(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="num_workers"):
        WorkerPool(cluster, 1, ResourceConfig.with_cpu(replicas=2))
    for wrong in (0, -1, 1.5):
        with pytest.raises(ValueError, match="num_workers"):
            WorkerPool(cluster, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name_prefix"):
        WorkerPool(cluster, 1, name_prefix="no good")
