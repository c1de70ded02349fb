"""Launching, waiting, results: what users of a cluster meet."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fluster.cluster import log_reader, waiting
from fluster.cluster.client import Cluster
from fluster.cluster.types import Cause, Entrypoint, JobRequest, JobStatus, ResourceConfig
from fluster.errors import (
    AlreadyExists,
    JobFailed,
    JobNotFound,
    NotInCluster,
    NotPermitted,
    RemoteFault,
    Unreachable,
)
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb
from fluster.testing.serving import ServerThread

if TYPE_CHECKING:
    from tests.cluster.client.conftest import Controller

TOKEN = "fla_correct"


def add(x: int, y: int = 0) -> int:
    return x + y


def explode(text: str) -> None:
    raise LookupError(text)


def command(name: str = "job", **options: Any) -> JobRequest:
    return JobRequest(name, Entrypoint.from_command("true"), **options)


def launched(controller: Controller, job_id: str) -> types_pb.EntrypointSpec:
    entrypoint = controller.specs[job_id].entrypoint
    assert entrypoint is not None
    return entrypoint


# Launching.


def test_a_functions_value_is_the_jobs_result(cluster: Cluster, controller: Controller) -> None:
    job = cluster.submit(add, 40, y=2)
    assert controller.specs[job.job_id].name == "add"
    controller.run(job.job_id)
    assert cluster.result(job.job_id) == 42


def test_the_same_request_id_gives_the_same_job(cluster: Cluster) -> None:
    first = cluster.launch(command(request_id="nightly"))
    assert cluster.launch(command(request_id="nightly")) == first
    assert cluster.launch(command()) != first
    with pytest.raises(AlreadyExists):
        cluster.launch(command("another", request_id="nightly"))


def test_what_cannot_be_pickled_fails_at_launch_and_nothing_is_sent(cluster: Cluster, controller: Controller) -> None:
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"argument 0 of 'add' is a _thread\.lock"):
        cluster.submit(add, lock)
    with pytest.raises(TypeError, match=r"the closure variable 'lock' of the entrypoint .* is a _thread\.lock"):
        cluster.submit(lambda: lock)
    with pytest.raises(TypeError, match=r"argument 0 of 'add' is a _thread\.lock"):
        cluster.launch_group([command(), JobRequest("bad", Entrypoint.from_callable(add, lock))])
    assert controller.asked == []


def test_submit_takes_functions_and_requests_only(cluster: Cluster) -> None:
    with pytest.raises(TypeError, match="got a int"):
        cluster.submit(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="carries its own arguments"):
        cluster.submit(command(), 5)


def test_a_large_entrypoint_goes_ahead_in_chunks(cluster: Cluster, controller: Controller) -> None:
    job = cluster.submit(len, bytes(5_000_000))
    assert controller.chunks[:-1] == [2 * 1024 * 1024] * 2
    assert controller.methods() == ["PutBlob"] * 3 + ["LaunchJob"]
    controller.run(job.job_id)
    assert job.result() == 5_000_000


def test_a_small_entrypoint_travels_in_the_request(cluster: Cluster, controller: Controller) -> None:
    cluster.submit(len, bytes(60_000))
    assert controller.methods() == ["LaunchJob"]


def test_a_group_keeps_its_order(cluster: Cluster, controller: Controller) -> None:
    job_ids = cluster.launch_group([command(f"job{index}") for index in range(5)], request_id="group-1")
    assert [controller.specs[job_id].name for job_id in job_ids] == [f"job{index}" for index in range(5)]
    assert cluster.launch_group([command(f"job{index}") for index in range(5)], request_id="group-1") == job_ids
    assert cluster.launch_group([]) == []
    with pytest.raises(ValueError, match="a group has one request id"):
        cluster.launch_group([command(request_id="own")])


def test_a_group_of_many_entrypoints_fits_a_message(cluster: Cluster, controller: Controller) -> None:
    requests = [JobRequest("big", Entrypoint.from_callable(len, bytes([index]) * 60_000)) for index in range(100)]
    job_ids = cluster.launch_group(requests)
    assert controller.methods().count("PutBlob") == 100
    controller.run(job_ids[99])
    assert cluster.result(job_ids[99]) == 60_000


# Waiting.


def test_waiting_for_one_gives_its_info(cluster: Cluster, controller: Controller) -> None:
    job_id = cluster.launch(command())
    controller.finish(job_id)
    assert cluster.wait(job_id).status is JobStatus.SUCCEEDED


def test_waiting_for_several_keeps_their_order(cluster: Cluster, controller: Controller) -> None:
    job_ids = [cluster.launch(command(f"job{index}")) for index in range(3)]
    timers = [threading.Timer(0.05 * (3 - index), controller.finish, [job_id]) for index, job_id in enumerate(job_ids)]
    for timer in timers:
        timer.start()
    assert [info.job_id for info in cluster.wait(job_ids)] == job_ids
    assert [info.job_id for info in cluster.wait([job_ids[2], job_ids[0], job_ids[2]])] == [
        *(job_ids[2], job_ids[0], job_ids[2])
    ]
    assert cluster.wait([]) == []
    for timer in timers:
        timer.join()


def test_waiting_too_long_says_what_the_job_waits_for(cluster: Cluster) -> None:
    job_id = cluster.launch(command())
    with pytest.raises(TimeoutError, match=r"job 'j0' had not finished after 0\.1 s: it is pending, 2 cpu needed"):
        cluster.wait(job_id, timeout=0.1)
    with pytest.raises(TimeoutError):
        cluster.result(job_id, timeout=0)
    other = cluster.launch(command())
    with pytest.raises(TimeoutError, match="2 of 2 jobs"):
        cluster.wait([job_id, other], timeout=0.1)


def test_a_failure_can_be_raised_with_what_is_known(cluster: Cluster, controller: Controller) -> None:
    job_id = cluster.launch(command())
    message = "exited with code 3\nlast lines of stderr:\ncannot open the file\ngiving up"
    controller.finish(job_id, types_pb.Cause.EXIT, exit_code=3, message=message)
    assert cluster.wait(job_id).status is JobStatus.FAILED
    with pytest.raises(JobFailed, match="exited with code 3") as caught:
        cluster.wait(job_id, raise_on_failure=True)
    error = caught.value
    assert (error.job_id, error.cause, error.exit_code) == (job_id, Cause.EXIT, 3)
    assert (error.remote_message, error.last_lines) == (message, ("cannot open the file", "giving up"))
    assert error.info == cluster.poll(job_id)


def test_the_first_failure_ends_the_wait_for_all(cluster: Cluster, controller: Controller) -> None:
    running, failing = cluster.launch(command()), cluster.launch(command())
    timer = threading.Timer(0.1, controller.finish, [failing, types_pb.Cause.EXIT])
    timer.start()
    with pytest.raises(JobFailed) as caught:
        cluster.wait([running, failing], timeout=20, raise_on_failure=True)
    assert caught.value.job_id == failing
    timer.join()


def test_a_wait_outlives_a_restart_of_the_controller(
    cluster: Cluster, controller: Controller, server: ServerThread
) -> None:
    job_id = cluster.launch(command())

    def restart() -> None:
        server.stop()
        server.start()
        controller.finish(job_id)

    timer = threading.Timer(0.1, restart)
    timer.start()
    assert cluster.wait(job_id, timeout=20).status is JobStatus.SUCCEEDED
    timer.join()


def test_a_wait_outlives_broken_connections(cluster: Cluster, controller: Controller, server: ServerThread) -> None:
    job_id = cluster.launch(command())

    def disturb() -> None:
        for _ in range(5):
            time.sleep(0.02)
            server.break_connections()
        controller.finish(job_id)

    thread = threading.Thread(target=disturb)
    thread.start()
    assert cluster.wait(job_id, timeout=20).status is JobStatus.SUCCEEDED
    thread.join()


@pytest.mark.parametrize("way", ["wait", "logs"])
def test_waiting_goes_on_for_as_long_as_the_controller_is_there_between_its_interruptions(
    cluster: Cluster, controller: Controller, server: ServerThread, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(waiting, "RETRY_S", 1.5)
    monkeypatch.setattr(log_reader, "RETRY_S", 1.5)
    job_id = cluster.launch(command())

    def disturb() -> None:
        for _ in range(8):
            time.sleep(0.3)
            server.break_connections()
        controller.finish(job_id)

    thread = threading.Thread(target=disturb)
    thread.start()
    if way == "wait":
        assert cluster.wait(job_id, timeout=20).status is JobStatus.SUCCEEDED
    else:
        assert list(cluster.logs(job_id, follow=True)) == []
    thread.join()


def test_ctrl_c_stops_waiting_at_once_and_leaves_the_job(
    cluster: Cluster, controller: Controller, server: ServerThread
) -> None:
    job_id = cluster.launch(command())
    program = (
        "import sys; from fluster.cluster.client import Cluster\n"
        f"cluster = Cluster({server.address!r}, token={TOKEN!r})\n"
        f"try: cluster.wait({job_id!r})\n"
        "except KeyboardInterrupt: print(cluster.poll('j0').status)\n"
        "cluster.close()"
    )
    command_line = [sys.executable, "-X", "dev", "-W", "error", "-c", program]
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 20
        while "WaitJobs" not in controller.methods():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.communicate(timeout=10) == ("pending\n", "")
    assert time.monotonic() - began < 5
    assert "TerminateJob" not in controller.methods()


def test_unknown_jobs_are_not_found(cluster: Cluster) -> None:
    for ask in (cluster.poll, cluster.wait, cluster.result, cluster.terminate, cluster.why):
        with pytest.raises(JobNotFound) as caught:
            ask("nobody")
        assert caught.value.job_id == "nobody"
    with pytest.raises(JobNotFound):
        list(cluster.logs("nobody"))
    with pytest.raises(ValueError, match="job_id"):
        cluster.poll("")


# Results.


def test_an_exception_arrives_as_itself_with_the_remote_traceback(cluster: Cluster, controller: Controller) -> None:
    job = cluster.submit(explode, "no such word")
    controller.run(job.job_id)
    with pytest.raises(LookupError, match="no such word") as caught:
        job.result()
    assert type(caught.value) is LookupError
    assert "in explode" in caught.value.__notes__[0]


def test_a_command_that_succeeded_has_no_result(cluster: Cluster, controller: Controller) -> None:
    job_id = cluster.launch(command())
    controller.finish(job_id)
    assert cluster.result(job_id) is None


@pytest.mark.parametrize("cause", [types_pb.Cause.SIGNAL, types_pb.Cause.TERMINATED, types_pb.Cause.OUT_OF_MEMORY])
def test_every_other_end_is_a_failed_job(cluster: Cluster, controller: Controller, cause: types_pb.Cause) -> None:
    job_id = cluster.launch(command())
    controller.finish(job_id, cause, exit_code=137, message="killed by SIGKILL")
    with pytest.raises(JobFailed, match="killed by SIGKILL") as caught:
        cluster.result(job_id)
    assert caught.value.cause == Cause[cause.name]


def test_an_exception_without_an_outcome_of_its_own_is_a_failed_job(cluster: Cluster, controller: Controller) -> None:
    without, with_value = cluster.submit(add, 1), cluster.submit(add, 1)
    controller.finish(without.job_id, types_pb.Cause.EXCEPTION, message="ValueError: no")
    controller.run(with_value.job_id)
    controller.finish(with_value.job_id, types_pb.Cause.EXCEPTION, message="ValueError: no")
    for job in (without, with_value):
        with pytest.raises(JobFailed, match="ValueError: no"):
            job.result()


def test_a_large_result_arrives_whole_through_broken_streams(cluster: Cluster, controller: Controller) -> None:
    job = cluster.submit(bytes, 1_000_000)
    controller.run(job.job_id)
    controller.break_stream_after = [3, 0, 2]
    assert job.result() == bytes(1_000_000)
    assert controller.methods().count("GetBlob") >= 4


def test_a_result_with_another_hash_is_refused(cluster: Cluster, controller: Controller) -> None:
    job_id = cluster.launch(command())
    controller.finish(job_id, outcome=b"forged", sha256="0" * 64)
    with pytest.raises(RemoteFault, match="sha256"):
        cluster.result(job_id)


# Looking.


def test_jobs_are_listed_newest_first_through_pages(cluster: Cluster, controller: Controller) -> None:
    job_ids = [cluster.launch(command(f"train-{index}")) for index in range(5)]
    controller.finish(cluster.launch(command("eval")))
    assert [info.job_id for info in cluster.list_jobs(name_prefix="train")] == job_ids[::-1]
    assert [info.name for info in cluster.list_jobs(status=JobStatus.SUCCEEDED)] == ["eval"]
    assert [info.name for info in cluster.list_jobs(status="succeeded")] == ["eval"]
    assert [info.name for info in cluster.list_jobs(limit=3)] == ["eval", "train-4", "train-3"]
    assert cluster.list_jobs(limit=0) == []
    with pytest.raises(ValueError, match="sleeping"):
        cluster.list_jobs(status="sleeping")


def test_terminating_twice_is_harmless(cluster: Cluster) -> None:
    job_id = cluster.launch(command())
    cluster.terminate(job_id)
    cluster.terminate(job_id)
    assert cluster.wait(job_id).status is JobStatus.STOPPED


def test_why_prints_its_reasons(cluster: Cluster) -> None:
    explanation = cluster.why(cluster.launch(command()))
    assert str(explanation) == "pending, number 1 in the queue\n  2 cpu needed, 1 free"


def test_all_events_of_a_job_are_read_through_pages(cluster: Cluster, controller: Controller) -> None:
    job_id = cluster.launch(command())
    controller.events = [pb.Event(seq=seq, kind="TaskPlaced", job_id=job_id) for seq in range(1, 2_501)]
    assert [event.seq for event in cluster.events(job_id)] == list(range(1, 2_501))


def test_workers_are_shown_with_what_is_free(cluster: Cluster) -> None:
    (worker,) = cluster.workers()
    assert (worker.worker_id, worker.resources.cpu, worker.free.cpu) == ("w", 2.0, 1.0)


# Who and where.


def test_a_wrong_token_is_not_permitted(server: ServerThread) -> None:
    with Cluster(server.address, token="wrong") as cluster, pytest.raises(NotPermitted):
        cluster.list_jobs()


def test_no_token_at_all_is_not_permitted(server: ServerThread) -> None:
    with Cluster(server.address) as cluster, pytest.raises(NotPermitted):
        cluster.list_jobs()


def test_a_token_is_found_in_variables_and_files(
    server: ServerThread, controller: Controller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def who() -> str:
        with Cluster(server.address) as cluster:
            cluster.workers()
        return controller.asked[-1][1]

    (tmp_path / "token").write_text("fla_file\n")
    monkeypatch.setenv("FLUSTER_TOKEN_FILE", str(tmp_path / "token"))
    assert who() == "fla_file"
    monkeypatch.setenv("FLUSTER_TOKEN", "fla_variable")
    assert who() == "fla_variable"
    with Cluster(server.address, token="fla_given") as cluster:
        cluster.workers()
        assert "fla_given" not in repr(cluster)
    assert controller.asked[-1][1] == "fla_given"


def test_nobody_there_fails_at_once_and_names_the_address() -> None:
    with Cluster("127.0.0.1:1", token=TOKEN) as cluster:
        assert cluster.address == "http://127.0.0.1:1"
        with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:1"):
            cluster.launch(command())


def test_the_namespace_is_the_given_one_or_what_the_controller_says(
    server: ServerThread, controller: Controller
) -> None:
    with Cluster(server.address, "mine", token=TOKEN) as cluster:
        assert cluster.namespace == "mine"
        assert controller.asked == []
        assert controller.namespaces[cluster.launch(command())] == "mine"
    with Cluster(server.address, token=TOKEN) as cluster:
        assert controller.namespaces[cluster.launch(command())] == ""
        assert cluster.namespace == "default-of-the-controller"
    with pytest.raises(ValueError, match="namespace"):
        Cluster(server.address, "not a name", token=TOKEN)


def in_a_job(monkeypatch: pytest.MonkeyPatch, address: str, token_file: Path) -> None:
    token_file.write_text("flt_own")
    variables = {
        "CLUSTER_ADDRESS": address,
        "NAMESPACE": "of-the-job",
        "JOB_ID": "parent",
        "JOB_NAME": "parent-name",
        "TASK_INDEX": "0",
        "NUM_TASKS": "1",
        "ATTEMPT": "1",
        "ATTEMPT_UID": "uid",
        "WORKER_ID": "w",
        "TOKEN_FILE": str(token_file),
        "ADVERTISE_HOST": "127.0.0.1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"FLUSTER_{name}", value)


def test_inside_a_job_parent_namespace_and_token_are_the_jobs(
    server: ServerThread, controller: Controller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_a_job(monkeypatch, server.address, tmp_path / "token")
    with Cluster(server.address) as cluster:
        job_id = cluster.launch(command())
        assert cluster.namespace == "of-the-job"
    assert controller.specs[job_id].parent == "parent"
    assert controller.namespaces[job_id] == "of-the-job"
    assert controller.asked[-1] == ("LaunchJob", "flt_own")


def test_inside_a_job_another_cluster_gets_neither_its_token_nor_its_id(
    server: ServerThread, controller: Controller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_a_job(monkeypatch, "http://127.0.0.1:1", tmp_path / "token")
    with Cluster(server.address) as cluster, pytest.raises(NotPermitted):
        cluster.launch(command())
    with Cluster(server.address, token=TOKEN) as cluster:
        job_id = cluster.launch(command())
    assert controller.specs[job_id].parent == ""
    assert controller.namespaces[job_id] == ""


def test_inside_a_job_with_incomplete_variables_a_cluster_is_refused(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUSTER_JOB_ID", "parent")
    with pytest.raises(NotInCluster):
        Cluster(server.address, token=TOKEN)


def test_a_closed_cluster_says_so(cluster: Cluster) -> None:
    cluster.close()
    cluster.close()
    with pytest.raises(RuntimeError, match="closed"):
        cluster.list_jobs()


def test_a_forked_child_may_go_on_using_its_copy(cluster: Cluster, controller: Controller) -> None:
    job_id = cluster.launch(command(resources=ResourceConfig.with_cpu(2)))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            controller_says = cluster.poll(job_id)
            status = 0 if controller_says.status is JobStatus.PENDING else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert cluster.poll(job_id).job_id == job_id
