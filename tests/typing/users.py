"""What users write, as their type checker sees it: checked by `test_typing.py`, never run."""

from typing import Any, assert_type

import fluster
from fluster import Cause, Endpoint, Entrypoint, JobFailed, JobId, JobInfo, JobRequest, JobStatus, ResourceConfig
from fluster.cluster.types import CpuConfig, GpuConfig, TpuConfig


def add(a: int, b: int) -> int:
    return a + b


request = JobRequest(
    name="train",
    resources=ResourceConfig.with_tpu("v5litepod-16", slice_count=2, memory="8g", preemptible=True),
    entrypoint=Entrypoint.from_callable(add, 1, b=2),
    priority="high",
    ports=["http"],
)
assert_type(request.num_tasks, int)
assert_type(request.resources.device, CpuConfig | GpuConfig | TpuConfig)
assert_type(request.resources.memory_bytes, int)
assert_type(request.resources.disk_bytes, int | None)
assert_type(fluster.get_tpu_topology("v4-8").chips_per_vm, int)
assert_type(fluster.__version__, str)


def report(info: JobInfo, endpoint: Endpoint) -> None:
    assert_type(info.job_id, JobId)
    assert_type(info.status, JobStatus)
    assert_type(info.status.finished(), bool)
    assert_type(info.cause, Cause | None)
    assert_type(info.tasks[0].exit_code, int | None)
    assert_type(endpoint.access_key, str | None)


def handle(error: JobFailed) -> None:
    assert_type(error.cause, Cause | None)
    assert_type(error.info, JobInfo | None)
    assert_type(error.last_lines, tuple[str, ...])


class Calculator:
    def add(self, a: int, b: int) -> int:
        return a + b

    @fluster.idempotent
    def sub(self, a: int, b: int) -> int:
        return a - b


def call(resolver: fluster.Resolver, server: fluster.ActorServer) -> None:
    typed = resolver.lookup("calculator", Calculator)
    assert_type(typed, fluster.ActorPool[Calculator])
    assert_type(typed.call().add(2, 3), int)
    assert_type(typed.call().sub(2, 3), int)
    assert_type(typed.size, int)
    typed.call().add("2", 3)  # type: ignore[arg-type]
    assert_type(resolver.lookup("calculator"), fluster.ActorPool[Any])
    assert_type(resolver.lookup("calculator").broadcast().add(2, 3), list[fluster.ActorFuture[Any]])
    assert_type(server.register("calculator", Calculator()), fluster.ActorId)
    assert_type(fluster.current_actor().cluster, fluster.Cluster | None)


# Mistakes a type checker finds; an unused ignore is an error, so each of them is one.
JobRequest("a", add)  # type: ignore[arg-type]
JobRequest("a", Entrypoint.from_command("ls"), prioritty="low")  # type: ignore[call-arg]
ResourceConfig.with_tpu("v4-8", replicas=2)  # type: ignore[call-arg]
ResourceConfig.with_cpu(memory=1.5)  # type: ignore[arg-type]
fluster.Clutser  # type: ignore[attr-defined]  # noqa: B018
