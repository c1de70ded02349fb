"""Jobs on a real cluster: what comes back, and what is said when it does not."""

import os
import signal
import time
from pathlib import Path

import pytest

from fluster import (
    Cause,
    Cluster,
    Entrypoint,
    JobFailed,
    JobRequest,
    JobStatus,
    ResourceConfig,
    RetryPolicy,
    TaskState,
)

SMALL = ResourceConfig.with_cpu(cpu=0.5, memory="200MB")


def command(*argv: str, **options: object) -> JobRequest:
    return JobRequest("command", Entrypoint.from_command(*argv), **{"resources": SMALL, **options})  # type: ignore[arg-type]


def python(code: str, **options: object) -> JobRequest:
    return command("python3", "-c", code, **options)


@pytest.mark.everywhere
def test_local_cluster_job_launch_end_to_end(cluster: Cluster) -> None:
    def my_task() -> int:
        return 42

    job_id = cluster.launch(
        JobRequest(name="test-job", resources=ResourceConfig.with_cpu(), entrypoint=Entrypoint(callable=my_task))
    )
    info = cluster.wait(job_id, timeout=30)

    assert info.status is JobStatus.SUCCEEDED
    assert info.exit_code == 0
    assert cluster.result(job_id) == 42


@pytest.mark.everywhere
def test_job_failure_propagates_type_text_and_remote_traceback(cluster: Cluster) -> None:
    def failing_task() -> None:
        raise ValueError("intentional failure")

    job = cluster.submit(failing_task)
    info = job.wait(timeout=30)

    assert info.status is JobStatus.FAILED
    assert info.cause is Cause.EXCEPTION
    assert info.exit_code == 1
    assert info.error_message is not None
    assert info.error_message.startswith("ValueError: intentional failure")
    with pytest.raises(ValueError, match="intentional failure") as caught:
        job.result()
    assert any("failing_task" in note for note in caught.value.__notes__)
    with pytest.raises(JobFailed, match="intentional failure"):
        cluster.wait(job.job_id, raise_on_failure=True)


def test_a_command_that_fails_says_its_exit_code_and_its_last_lines(cluster: Cluster) -> None:
    info = cluster.wait(cluster.launch(command("sh", "-c", "echo one; echo two >&2; exit 7")), timeout=30)

    assert (info.status, info.cause, info.exit_code) == (JobStatus.FAILED, Cause.EXIT, 7)
    assert info.error_message is not None
    assert "7" in info.error_message
    assert info.error_message.endswith("two")


@pytest.mark.parametrize(("number", "name"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGKILL, "SIGKILL")])
def test_a_signal_is_named(cluster: Cluster, number: int, name: str) -> None:
    info = cluster.wait(cluster.launch(python(f"import os; os.kill(os.getpid(), {int(number)})")), timeout=30)

    assert (info.cause, info.exit_code) == (Cause.SIGNAL, 128 + number)
    assert name in (info.error_message or "")


@pytest.mark.everywhere
def test_memory_past_its_limit_is_out_of_memory_with_limit_and_peak(cluster: Cluster) -> None:
    code = "b = []\nwhile True: b.append(bytearray(10_000_000))"
    info = cluster.wait(cluster.launch(python(code)), timeout=30)

    assert info.cause is Cause.OUT_OF_MEMORY
    assert "200" in (info.error_message or "")


def test_a_time_limit_ends_the_attempt_and_is_not_retried(cluster: Cluster) -> None:
    request = python("import time; time.sleep(60)", timeout_s=0.3, retry=RetryPolicy(max_failures=5))
    info = cluster.wait(cluster.launch(request), timeout=30)

    assert (info.status, info.cause) == (JobStatus.FAILED, Cause.TIME_LIMIT)
    assert info.tasks[0].attempt == 1


def test_a_missing_command_is_said_to_be_missing(cluster: Cluster) -> None:
    info = cluster.wait(cluster.launch(command("no-such-program")), timeout=30)

    assert (info.cause, info.exit_code) == (Cause.START_FAILED, 127)
    assert "no-such-program" in (info.error_message or "")


@pytest.mark.here
def test_a_failed_attempt_is_retried_within_its_budget(cluster: Cluster, tmp_path: Path) -> None:
    def third_time_lucky(marker: Path) -> int:
        with marker.open("a") as file:
            file.write("x")
        if len(marker.read_text()) < 3:
            raise RuntimeError("not yet")
        return len(marker.read_text())

    entrypoint = Entrypoint.from_callable(third_time_lucky, tmp_path / "marker")
    retry = RetryPolicy(max_failures=2, backoff_s=0.05)
    job_id = cluster.launch(JobRequest("lucky", entrypoint, SMALL, retry=retry))

    assert cluster.result(job_id, timeout=30) == 3
    assert cluster.poll(job_id).tasks[0].attempt == 3


@pytest.mark.everywhere
def test_a_gang_starts_together_with_ranks_and_one_port(cluster: Cluster) -> None:
    def world() -> tuple[str, ...]:
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "FLUSTER_TASK_INDEX", "FLUSTER_NUM_TASKS")
        return tuple(os.environ[name] for name in names)

    resources = ResourceConfig.with_cpu(cpu=0.5, memory="200MB", replicas=3)
    job_id = cluster.launch(JobRequest("gang", Entrypoint.from_callable(world), resources))
    worlds = [cluster.result(job_id, task=task, timeout=30) for task in range(3)]

    assert [each[0] for each in worlds] == ["0", "1", "2"]
    assert {each[1] for each in worlds} == {"3"}
    assert len({each[2:4] for each in worlds}) == 1


def test_a_gang_fails_together(cluster: Cluster) -> None:
    def one_fails() -> None:
        if os.environ["RANK"] == "1":
            raise RuntimeError("rank 1 broke")
        time.sleep(60)

    resources = ResourceConfig.with_cpu(cpu=0.5, memory="200MB", replicas=2)
    info = cluster.wait(cluster.launch(JobRequest("gang", Entrypoint.from_callable(one_fails), resources)), timeout=30)

    assert info.status is JobStatus.FAILED
    assert "rank 1 broke" in (info.error_message or "")
    assert [task.state for task in info.tasks] == [TaskState.STOPPED, TaskState.FAILED]
    assert info.tasks[0].cause is Cause.TERMINATED


@pytest.mark.everywhere
def test_terminate_stops_the_job_with_its_descendants(cluster: Cluster) -> None:
    def parent() -> None:
        from fluster import current_cluster

        child = current_cluster().submit(time.sleep, 60)
        print(child.job_id, flush=True)
        time.sleep(60)

    job = cluster.submit(JobRequest("parent", Entrypoint.from_callable(parent), SMALL))
    child_id = next(job.logs(follow=True)).data
    cluster.terminate(job.job_id)

    assert job.wait(timeout=30).status is JobStatus.STOPPED
    child = cluster.wait(child_id, timeout=30)
    assert child.status is JobStatus.STOPPED
    assert child.parent == job.job_id
    cluster.terminate(job.job_id)


def test_the_same_request_id_gives_the_same_job(cluster: Cluster) -> None:
    request = JobRequest("once", Entrypoint.from_command("true"), SMALL, request_id="the-same")

    assert cluster.launch(request) == cluster.launch(request)


@pytest.mark.everywhere
def test_logs_are_complete_in_order_and_can_be_searched(cluster: Cluster) -> None:
    code = "import sys\nfor i in range(1000): print('line', i)\nprint('oops', file=sys.stderr)"
    job_id = cluster.launch(python(code))
    cluster.wait(job_id, timeout=30)

    lines = [line for line in cluster.logs(job_id) if line.stream == "stdout"]
    assert [line.data for line in lines] == [f"line {i}" for i in range(1000)]
    assert [line.data for line in cluster.logs(job_id, grep="99[0-9]$", tail=2)] == ["line 998", "line 999"]
    assert [line.data for line in cluster.logs(job_id) if line.stream == "stderr"] == ["oops"]


@pytest.mark.here
def test_following_logs_shows_lines_while_the_job_runs_and_ends_with_it(cluster: Cluster, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    job_id = cluster.launch(python(f"print('before', flush=True); open({str(gate)!r}).read(); print('after')"))
    lines = cluster.logs(job_id, follow=True)

    assert next(lines).data == "before"
    assert cluster.poll(job_id).status is JobStatus.RUNNING
    gate.write_text("go")
    assert [line.data for line in lines] == ["after"]
    assert cluster.wait(job_id, timeout=30).status is JobStatus.SUCCEEDED


def test_a_job_that_cannot_be_placed_says_why_with_numbers(cluster: Cluster) -> None:
    request = command("true", resources=ResourceConfig.with_cpu(cpu=1000))
    job_id = cluster.launch(request)
    try:
        explanation = cluster.why(job_id)
        assert explanation.state is JobStatus.PENDING
        assert not explanation.would_fit
        assert "1000 cpu" in str(explanation)
        assert "1000 cpu" in (cluster.poll(job_id).pending_reason or "")
    finally:
        cluster.terminate(job_id)
    assert cluster.wait(job_id, timeout=10).status is JobStatus.STOPPED


def test_a_job_that_waits_too_long_for_room_fails_as_unschedulable(cluster: Cluster) -> None:
    request = command("true", resources=ResourceConfig.with_cpu(cpu=1000), scheduling_timeout_s=0.2)
    info = cluster.wait(cluster.launch(request), timeout=30)

    assert (info.status, info.cause, info.exit_code) == (JobStatus.FAILED, Cause.UNSCHEDULABLE, None)
    assert "1000 cpu" in (info.error_message or "")


def test_a_large_argument_and_a_large_result_travel_as_blobs(cluster: Cluster) -> None:
    def double(data: bytes) -> bytes:
        return data * 2

    data = os.urandom(3_000_000)
    job = cluster.submit(JobRequest("blobs", Entrypoint.from_callable(double, data), SMALL))

    assert job.result(timeout=60) == data * 2


def test_what_cannot_be_pickled_fails_at_launch_and_is_named(cluster: Cluster) -> None:
    import threading

    lock = threading.Lock()

    def uses_lock() -> bool:
        return lock.locked()

    with pytest.raises(TypeError, match="lock"):
        cluster.submit(uses_lock)


@pytest.mark.everywhere
def test_endpoint_registration_and_lookup_ends_with_the_job(cluster: Cluster) -> None:
    def serve() -> None:
        from fluster import current_cluster

        here = os.environ["FLUSTER_ADVERTISE_HOST"]
        current_cluster().register_endpoint("service", f"{here}:1234", metadata={"a": "b"})
        print("registered", flush=True)
        time.sleep(60)

    job = cluster.submit(JobRequest("server", Entrypoint.from_callable(serve), SMALL))
    assert next(job.logs(follow=True)).data == "registered"
    endpoint = cluster.lookup_endpoints("service")[0]
    assert (endpoint.job_id, dict(endpoint.metadata)) == (job.job_id, {"a": "b"})
    assert endpoint.address.endswith(":1234")
    cluster.terminate(job.job_id)
    job.wait(timeout=30)
    assert cluster.lookup_endpoints("service") == []


def test_the_journal_tells_a_jobs_life(cluster: Cluster) -> None:
    job_id = cluster.launch(command("true"))
    cluster.wait(job_id, timeout=30)

    # A worker reports that it has taken a task only if the task has not begun by then.
    kinds = [event.kind for event in cluster.events(job_id) if event.kind != "TaskAccepted"]
    assert kinds == ["JobLaunched", "TaskPlaced", "TaskStarted", "TaskSucceeded", "JobSucceeded"]


def test_jobs_are_listed_newest_first_in_pages(cluster: Cluster) -> None:
    name = f"listed-{os.getpid()}"
    job_ids = [cluster.launch(JobRequest(name, Entrypoint.from_command("true"), SMALL)) for _ in range(5)]
    cluster.wait(job_ids, timeout=30)

    assert [job.job_id for job in cluster.list_jobs(name_prefix=name)] == job_ids[::-1]
    assert [job.job_id for job in cluster.list_jobs(name_prefix=name, limit=2)] == job_ids[:2:-1]
    assert cluster.list_jobs(name_prefix=name, status=JobStatus.FAILED) == []


@pytest.mark.here
def test_a_cluster_without_its_token_is_closed(cluster: Cluster) -> None:
    from fluster import NotPermitted

    with Cluster(cluster.address, token="fla_" + "0" * 64) as stranger, pytest.raises(NotPermitted):
        stranger.list_jobs()


def test_a_job_that_waits_to_be_tried_again_says_what_it_failed_of(cluster: Cluster) -> None:
    job_id = cluster.launch(command("sh", "-c", "exit 3", retry=RetryPolicy(max_failures=1, backoff_s=60.0)))
    deadline = time.monotonic() + 10
    while (info := cluster.poll(job_id)).tasks[0].cause is None:
        assert time.monotonic() < deadline
    (listed,) = [each for each in cluster.list_jobs() if each.job_id == job_id]
    for reason in (info.pending_reason or "", listed.pending_reason or ""):
        assert reason.startswith("tried again in")
        assert reason.endswith("; attempt 1 ended: exited with code 3")
    cluster.terminate(job_id)


def test_why_a_gang_failed_names_the_task_that_did(cluster: Cluster) -> None:
    script = 'if [ "$FLUSTER_TASK_INDEX" = 1 ]; then exit 4; fi; sleep 60'
    small = ResourceConfig.with_cpu(cpu=0.1, memory="100MB", replicas=2)
    job_id = cluster.launch(command("sh", "-c", script, resources=small))
    cluster.wait(job_id, timeout=20)
    assert cluster.why(job_id).reasons[0] == "task 1: exited with code 4"
