"""The public nouns as messages and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from protobuf import Oneof

from fluster.cluster import wire
from fluster.cluster.surroundings import Surroundings
from fluster.cluster.types import (
    Cause,
    Entrypoint,
    EnvironmentConfig,
    JobId,
    JobRequest,
    JobStatus,
    Priority,
    ResourceConfig,
    RetryPolicy,
    TaskState,
)
from fluster.cluster.workspace import Workspace
from fluster.errors import RemoteFault
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb, types_pb

HERE = Surroundings(directory="/home/me", import_path=("/home/me/src",), python="/usr/bin/python3.12")


def spec_of(
    request: JobRequest,
    surroundings: Surroundings | None = None,
    parent: str | None = None,
    workspace: Workspace | None = None,
) -> types_pb.JobSpec:
    """Through its bytes, as the controller sees it."""
    spec = wire.job_spec(
        request,
        lambda _: types_pb.Payload(sha256="abc"),
        parent=JobId(parent) if parent else None,
        surroundings=surroundings,
        workspace=workspace,
    )
    return types_pb.JobSpec.from_binary(spec.to_binary())


def test_everything_a_request_says_is_sent() -> None:
    request = JobRequest(
        name="train",
        entrypoint=Entrypoint.from_command("echo", "hi"),
        resources=ResourceConfig.with_gpu("H100", 2, cpu=8, memory="1.5GiB", replicas=3, disk="10GB", zones=["a"]),
        environment=EnvironmentConfig(
            env_vars={"A": "1"}, secrets={"B": "2"}, python="3.12", pip_packages=["numpy"], extras=["gpu"]
        ),
        retry=RetryPolicy(max_failures=2, max_preemptions=5, backoff_s=0.5, max_backoff_s=9),
        timeout_s=10,
        scheduling_timeout_s=20.5,
        priority="high",
        gang=False,
        ports=["http"],
    )
    spec = spec_of(request)
    assert (spec.name, spec.num_tasks, spec.independent_tasks, spec.priority.name) == ("train", 3, True, "HIGH")
    assert (spec.timeout_s, spec.scheduling_timeout_s, list(spec.ports), spec.parent) == (10.0, 20.5, ["http"], "")
    assert spec.entrypoint is not None
    assert spec.entrypoint.kind == Oneof("command", types_pb.Command(argv=["echo", "hi"]))
    resources, environment, retry = spec.resources, spec.environment, spec.retry
    assert resources is not None
    assert (resources.cpu, resources.memory, resources.memory_bytes) == (8.0, "1.5GiB", 1_610_612_736)
    assert (resources.disk_bytes, list(resources.zones), resources.replicas) == (10_000_000_000, ["a"], 3)
    assert resources.device == Oneof("gpu", types_pb.GpuDevice(variant="H100", count=2))
    assert not resources.has_field("preemptible")
    assert environment is not None
    assert (dict(environment.env_vars), dict(environment.secrets)) == ({"A": "1"}, {"B": "2"})
    assert environment.python == "3.12"
    assert (list(environment.pip_packages), list(environment.extras)) == (["numpy"], ["gpu"])
    assert not environment.has_field("working_directory")
    assert retry == types_pb.RetrySpec(max_failures=2, max_preemptions=5, backoff_s=0.5, max_backoff_s=9.0)


def test_what_a_request_leaves_open_stays_open() -> None:
    spec = spec_of(JobRequest("idle", Entrypoint.from_callable(print)))
    assert not spec.has_field("timeout_s")
    assert not spec.has_field("scheduling_timeout_s")
    assert (spec.priority, spec.independent_tasks, spec.num_tasks) == (types_pb.Priority.NORMAL, False, 1)
    assert spec.entrypoint is not None
    assert spec.entrypoint.kind == Oneof("callable", types_pb.Payload(sha256="abc"))
    assert spec.environment is not None
    assert not spec.environment.has_field("python")
    assert spec.resources is not None
    assert spec.resources.device is None


def test_a_tpu_request_counts_its_slices_and_tasks() -> None:
    spec = spec_of(JobRequest("tpu", Entrypoint.from_callable(print), ResourceConfig.with_tpu("v5litepod-16", 2)))
    assert spec.resources is not None
    assert spec.resources.device == Oneof("tpu", types_pb.TpuDevice(variant="v5litepod-16"))
    assert (spec.resources.replicas, spec.num_tasks) == (2, 8)


def test_jobs_of_this_machine_find_what_their_submitter_has() -> None:
    environment = spec_of(JobRequest("local", Entrypoint.from_callable(print)), HERE).environment
    assert environment is not None
    assert environment.working_directory == "/home/me"
    assert list(environment.import_path) == ["/home/me/src"]
    assert environment.python == "/usr/bin/python3.12"


def test_a_request_wins_over_its_surroundings() -> None:
    chosen = EnvironmentConfig(workspace="/project", python="3.11")
    request = JobRequest("local", Entrypoint.from_callable(print), environment=chosen)
    environment = spec_of(
        request, HERE, workspace=Workspace(Path("/project"), "ab" * 32, (".", "src"), frozenset())
    ).environment
    assert environment is not None
    assert (environment.workspace_hash, environment.python) == ("ab" * 32, "3.11")
    assert list(environment.workspace_import_path) == [".", "src"]
    assert not environment.has_field("working_directory")
    assert not environment.import_path


def test_a_parent_is_filled_in_unless_one_is_named() -> None:
    plain = JobRequest("child", Entrypoint.from_callable(print))
    assert spec_of(plain, parent="j1").parent == "j1"
    named = JobRequest("child", Entrypoint.from_callable(print), parent=JobId("j2"))
    assert spec_of(named, parent="j1").parent == "j2"


def test_a_job_comes_back_with_nothing_for_what_is_unknown() -> None:
    info = wire.job_info(types_pb.JobInfo(job_id="j1", name="n", status=types_pb.JobStatus.PENDING, num_tasks=1))
    assert (info.status, info.tasks, info.namespace) == (JobStatus.PENDING, (), "")
    assert (info.error_message, info.exit_code, info.cause, info.pending_reason, info.parent) == (None,) * 5
    assert (info.submitted_at, info.started_at, info.finished_at) == (None,) * 3


def test_a_finished_job_comes_back_whole() -> None:
    task = types_pb.TaskInfo(
        index=1,
        state=types_pb.TaskState.FAILED,
        attempt=2,
        worker_id="w",
        exit_code=0,
        error_message="boom",
        cause=types_pb.Cause.EXCEPTION,
        started_at=1.0,
        finished_at=2.0,
    )
    info = wire.job_info(
        types_pb.JobInfo(
            job_id="j1",
            name="n",
            status=types_pb.JobStatus.FAILED,
            exit_code=0,
            cause=types_pb.Cause.EXCEPTION,
            error_message="boom",
            submitted_at=0.5,
            finished_at=2.0,
            parent="j0",
            namespace="ns",
            tasks=[task],
        )
    )
    assert (info.exit_code, info.cause, info.parent, info.namespace) == (0, Cause.EXCEPTION, "j0", "ns")
    (found,) = info.tasks
    assert (found.state, found.attempt, found.worker_id, found.exit_code) == (TaskState.FAILED, 2, "w", 0)
    assert (found.cause, found.started_at, found.finished_at) == (Cause.EXCEPTION, 1.0, 2.0)


@pytest.mark.parametrize("kind", [JobStatus, TaskState, Cause, Priority])
def test_every_state_has_a_number_and_every_number_a_state(
    kind: type[JobStatus] | type[TaskState] | type[Cause] | type[Priority],
) -> None:
    numbers = getattr(types_pb, kind.__name__)
    assert {each.name for each in kind} == {each.name for each in numbers} - {"UNSPECIFIED"}


def test_a_state_of_a_newer_controller_is_named() -> None:
    message = types_pb.JobInfo.from_binary(b"\x18\x63")
    with pytest.raises(RemoteFault, match="JobStatus"):
        wire.job_info(message)


def test_log_bytes_become_text_whatever_they_are() -> None:
    line = controller_pb.LogLine(
        task=1, attempt=2, stream=types_pb.LogStream.STDERR, timestamp=3.0, data=b"caf\xc3\xa9 \xff\x1b[31m"
    )
    found = wire.log_line(JobId("j1"), line)
    assert (found.data, found.stream) == ("café \N{REPLACEMENT CHARACTER}\x1b[31m", "stderr")


def test_events_of_no_task_say_so() -> None:
    event = wire.event(controller_pb.Event(seq=4, timestamp=1.0, kind="JobLaunched", job_id="j1", task=-1))
    assert (event.task, event.attempt, event.worker_id, event.job_id) == (None, None, None, "j1")
    of_task = wire.event(controller_pb.Event(seq=5, kind="TaskPlaced", task=0, attempt=1, worker_id="w"))
    assert (of_task.task, of_task.attempt, of_task.worker_id, of_task.job_id) == (0, 1, "w", None)


def test_an_explanation_keeps_its_place_in_the_queue() -> None:
    asked = controller_pb.ExplainJobResponse(state="pending", reasons=["2 cpu needed, 1 free"], would_fit=True)
    assert wire.explanation(asked).queue_position is None
    asked.queue_position = 3
    found = wire.explanation(controller_pb.ExplainJobResponse.from_binary(asked.to_binary()))
    assert (found.state, found.queue_position, found.would_fit) == (JobStatus.PENDING, 3, True)


def test_workers_and_endpoints_come_back() -> None:
    worker = wire.worker_info(
        controller_pb.WorkerInfo(
            worker_id="w", status="ready", resources=types_pb.WorkerResources(cpu=2.0, cgroup="v2")
        )
    )
    assert (worker.resources.cpu, worker.resources.cgroup, worker.free.cpu, worker.last_seen_at) == (2.0, "v2", 0, None)
    endpoint = wire.endpoint(controller_pb.Endpoint(endpoint_id="e", name="n", address="h:1", metadata={"a": "b"}))
    assert (endpoint.access_key, endpoint.metadata, endpoint.job_id) == (None, {"a": "b"}, "")
    with pytest.raises(RemoteFault):
        wire.endpoint(None)
