"""A LocalCluster is tied to its creator: when that is gone, or shuts it down, nothing of it is left."""

from __future__ import annotations

import os
import resource
import signal
import textwrap
import time
from pathlib import Path

import pytest
from tests.e2e import lab
from tests.e2e.lab import Witness
from tests.e2e.outside import Creator, Server

from fluster import Entrypoint, FlusterError, JobRequest, JobStatus, LocalCluster, ResourceConfig
from fluster.testing.leaks import Footprint


@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.4])
def test_shutting_down_while_the_controller_is_being_started_again_leaves_nothing(delay_s: float) -> None:
    cluster = LocalCluster(cpu=2)
    state_dir = cluster._state_dir
    job = cluster.submit(time.sleep, 60)
    process = lab.Process.of(lab.running(state_dir, job.job_id).pid)
    lab.controller(cluster).kill()
    time.sleep(delay_s)  # the moment is what is tried out

    cluster.shutdown()

    assert not process.runs
    assert not state_dir.exists()


def test_a_controller_that_dies_again_and_again_is_started_again() -> None:
    with LocalCluster(cpu=2) as cluster:
        for _ in range(8):
            lab.controller(cluster).kill()
        assert cluster.list_jobs() == []


ESCAPEE = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0:
        print('escaped', flush=True)
        time.sleep(300)
time.sleep(300)
"""

CREATOR = f"""
import fluster
from fluster import Entrypoint, JobRequest, LocalCluster, ResourceConfig
cluster = LocalCluster(cpu=2, num_workers=2)
command = Entrypoint.from_command(sys.executable, "-c", {ESCAPEE!r})
small = ResourceConfig.with_cpu(cpu=0.5, memory="100MB")
jobs = [cluster.submit(JobRequest("job", command, small)) for _ in range(2)]
for job in jobs:
    assert next(job.logs(follow=True)).data == "escaped"
"""

OUTLIVING_CHILDREN = """
import multiprocessing, multiprocessing.forkserver, multiprocessing.resource_tracker, subprocess
def rest():
    os.setsid()
    time.sleep(300)
pid = os.fork()
if pid == 0:
    rest()
works = {"fork": (rest, ()), "forkserver": (time.sleep, (300,)), "spawn": (time.sleep, (300,))}
processes = [multiprocessing.get_context(name).Process(target=work[0], args=work[1]) for name, work in works.items()]
for process in processes:
    process.start()
others = [multiprocessing.forkserver._forkserver._forkserver_pid]
others += [multiprocessing.resource_tracker._resource_tracker._pid]
plain = subprocess.Popen(["sleep", "300"], close_fds=False)
say([pid, plain.pid, *others, *(process.pid for process in processes)])
signal.pause()
"""


def test_when_its_creator_is_killed_nothing_of_a_cluster_is_left(tmp_path: Path) -> None:
    with Creator(CREATOR + "say('ready'); signal.pause()", tmp_path) as creator:
        assert creator.heard() == "ready"
        assert len(list(creator.temporary.iterdir())) == 1
        # Controller, two workers, their zygotes and spares, shims, jobs, escapees, itself.
        assert len(creator.family()) >= 12
        creator.process.kill()

        lab.wait_until(lambda: not creator.family(), "all its processes are gone")
        lab.wait_until(lambda: not any(creator.temporary.iterdir()), "its directory is gone")


def test_children_that_outlive_the_creator_keep_nothing_of_its_cluster_alive(tmp_path: Path) -> None:
    script = f"if __name__ == '__main__':\n{textwrap.indent(CREATOR + OUTLIVING_CHILDREN, '    ')}"
    with Creator(script, tmp_path) as creator:
        outliving = set(creator.heard())
        creator.process.kill()

        lab.wait_until(lambda: creator.family() <= outliving, "the cluster is gone")
        assert len(creator.family()) >= 4
        lab.wait_until(lambda: not list(creator.temporary.glob("fluster-*")), "its directory is gone")


def test_a_cluster_can_be_started_on_the_directory_of_one_whose_creator_was_just_killed(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    script = f"""
from fluster import LocalCluster
cluster = LocalCluster(cpu=2, state_dir={str(state_dir)!r})
job = cluster.submit(time.sleep, 300)
say(job.job_id)
signal.pause()
"""
    with Creator(script, tmp_path) as creator:
        job_id = creator.heard()
        first = lab.Process.of(lab.running(state_dir, job_id).pid)
        creator.process.kill()
        with LocalCluster(cpu=2, state_dir=state_dir) as cluster:
            assert not first.runs
            lab.running(state_dir, job_id, attempt=2)
            cluster.terminate(job_id)
            assert cluster.wait(job_id, timeout=lab.WITHIN_S).status is JobStatus.STOPPED


@pytest.mark.parametrize("end", ["pass", "raise ValueError"])
def test_a_program_that_ends_without_shutting_its_cluster_down_leaves_nothing(tmp_path: Path, end: str) -> None:
    with Creator(CREATOR + f"say('ready')\n{end}", tmp_path) as creator:
        assert creator.heard() == "ready"

        lab.wait_until(lambda: not creator.family(), "all its processes are gone")
        lab.wait_until(lambda: not any(creator.temporary.iterdir()), "its directory is gone")


def test_ctrl_c_is_for_the_program_and_not_for_its_cluster(tmp_path: Path) -> None:
    script = """
from fluster import LocalCluster
cluster = LocalCluster(cpu=2)
job = cluster.submit(time.sleep, 300)
try:
    for line in "xx":
        say(cluster._daemon.pid)
        job.wait()
except KeyboardInterrupt:
    say([cluster._daemon.pid, cluster.submit(int, 42).result(), job.status()])
    cluster.shutdown()
"""
    with Creator(script, tmp_path) as creator:
        pid = creator.heard()
        os.killpg(creator.process.pid, signal.SIGINT)
        assert creator.heard() == [pid, 42, "running"]
        assert creator.process.wait(lab.WITHIN_S) == 0
        assert not creator.family()


def test_after_a_fork_the_childs_copy_is_inert(tmp_path: Path) -> None:
    script = """
from fluster import LocalCluster
with LocalCluster(cpu=2) as cluster:
    assert cluster.submit(int, 1).result() == 1
    for way in range(3):
        pid = os.fork()
        if pid == 0:
            if way == 0:
                cluster.shutdown()
                os._exit(0)
            elif way == 1:
                sys.exit(0)  # leaves the with block
            else:
                os._exit(7)
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        assert cluster.submit(int, 2).result() == 2
say("done")
"""
    with Creator(script, tmp_path) as creator:
        assert [creator.heard() for _ in range(4)] == [0, 0, 7, "done"]
        assert creator.process.wait(lab.WITHIN_S) == 0
        assert not creator.family()


def test_nothing_is_left_after_the_with_block_and_shutting_down_again_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = Footprint.now()
    with LocalCluster(cpu=2) as cluster:
        job = cluster.submit(time.sleep, 300)
        process = lab.process_of(cluster, job.job_id)
        daemons = [lab.controller(cluster), lab.worker(cluster), lab.zygote(cluster)]
    assert not any(each.runs for each in [process, *daemons])
    assert not list(tmp_path.iterdir())
    assert before.growth() == []
    cluster.shutdown()
    cluster.close()
    with pytest.raises(RuntimeError, match="closed"):
        cluster.list_jobs()


def test_several_clusters_live_side_by_side() -> None:
    with LocalCluster(cpu=2) as first:
        with LocalCluster(cpu=2) as second:
            jobs = [first.submit(os.getppid), second.submit(os.getppid)]
            shims = {job.result(timeout=lab.WITHIN_S) for job in jobs}
            assert len(shims) == 2
            assert first.address != second.address
            assert [job.job_id for job in first.list_jobs()] == [jobs[0].job_id]
        assert first.submit(int, 1).result(timeout=lab.WITHIN_S) == 1


def test_workers_share_evenly_what_is_offered() -> None:
    with LocalCluster(num_workers=3, cpu=3, memory="3GB") as cluster:
        lab.wait_until(lambda: len(cluster.workers()) == 3, "three workers are there")
        workers = cluster.workers()
        assert {(each.resources.cpu, each.resources.memory_bytes) for each in workers} == {(1.0, 1_000_000_000)}
        where = Entrypoint.from_callable(os.getenv, "FLUSTER_WORKER_ID")
        job_id = cluster.launch(JobRequest("spread", where, ResourceConfig(cpu=1, memory="1GB", replicas=3)))
        assert len({cluster.result(job_id, task=task, timeout=lab.WITHIN_S) for task in range(3)}) == 3


def test_unfinished_jobs_go_on_at_the_next_start_as_new_attempts_uncharged(tmp_path: Path) -> None:
    witness = Witness.at(tmp_path / "witness")
    state_dir = tmp_path / "state"
    with LocalCluster(cpu=2, state_dir=state_dir) as cluster:
        finished = cluster.submit(int, 7)
        assert finished.result(timeout=lab.WITHIN_S) == 7
        unfinished = cluster.launch(witness.request())
        waiting = cluster.launch(JobRequest("later", Entrypoint.from_callable(int, 8), ResourceConfig(cpu=2)))
        first = witness.wait_for_run()
    assert not first.runs
    with LocalCluster(cpu=2, state_dir=state_dir) as cluster:
        assert {job.job_id for job in cluster.list_jobs()} == {finished.job_id, unfinished, waiting}
        assert cluster.result(finished.job_id) == 7
        witness.wait_for_run(2)
        witness.let_end()
        info = cluster.wait(unfinished, timeout=lab.WITHIN_S)
        assert (info.status, info.tasks[0].attempt) == (JobStatus.SUCCEEDED, 2)
        assert cluster.result(waiting, timeout=lab.WITHIN_S) == 8
    assert len(witness.runs) == 2


def test_a_second_cluster_on_a_directory_is_refused_naming_the_first_and_harms_nobody(tmp_path: Path) -> None:
    with LocalCluster(cpu=2, state_dir=tmp_path) as cluster:
        job = cluster.submit(time.sleep, 60)
        process = lab.process_of(cluster, job.job_id)
        with pytest.raises(FlusterError, match=f"in use by another controller .pid {lab.controller(cluster).pid} on"):
            LocalCluster(cpu=2, state_dir=tmp_path)
        assert process.runs
        assert cluster.submit(int, 1).result(timeout=lab.WITHIN_S) == 1


def test_what_an_earlier_cluster_left_running_on_a_directory_is_ended_first(tmp_path: Path) -> None:
    witness = Witness.at(tmp_path / "witness")
    with Server(tmp_path / "state", "--backend", "local") as server, server.client() as client:
        job = client.submit(witness.request())
        first = witness.wait_for_run()
        server.end()
        assert first.runs
        with LocalCluster(cpu=2, state_dir=tmp_path / "state") as cluster:
            assert not first.runs
            witness.wait_for_run(2)
            witness.let_end()
            assert cluster.result(job.job_id, timeout=lab.WITHIN_S) > 0
            assert cluster.poll(job.job_id).tasks[0].attempt == 2


def test_a_program_may_have_many_files_open_or_not_even_its_standard_streams(tmp_path: Path) -> None:
    script = """
import resource
os.close(0)
os.close(2)
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
from fluster import LocalCluster
with LocalCluster(cpu=2) as cluster:
    say(cluster.submit(int, 41).result())
opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
from fluster import LocalCluster
with LocalCluster(cpu=2) as cluster:
    say(cluster.submit(int, 42).result())
"""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 1200:
        pytest.skip("may not open enough files")
    with Creator(script, tmp_path) as creator:
        assert [creator.heard() for _ in range(2)] == [41, 42]
        assert creator.process.wait(lab.WITHIN_S) == 0
