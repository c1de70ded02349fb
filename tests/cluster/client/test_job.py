"""The handle of a job, waited for and awaited."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from fluster.cluster.client import Cluster
from fluster.cluster.types import JobStatus
from fluster.errors import JobFailed
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

if TYPE_CHECKING:
    from tests.cluster.client.conftest import Controller

Until = Callable[[Callable[[], object]], None]


def test_a_handle_does_what_the_cluster_does(cluster: Cluster, controller: Controller) -> None:
    job = cluster.submit(pow, 2, 5)
    assert job.status() is JobStatus.PENDING
    assert job.info().name == "pow"
    assert job.why().queue_position == 1
    controller.print_lines(job.job_id, b"counting")
    controller.run(job.job_id)
    assert job.wait(timeout=5).status is JobStatus.SUCCEEDED
    assert job.result(timeout=5) == 32
    assert [line.data for line in job.logs(follow=True)] == ["counting"]
    job.terminate()
    assert job.job_id in repr(job)


def test_a_handle_is_taken_wherever_a_job_is_meant(cluster: Cluster, controller: Controller) -> None:
    job, other = cluster.submit(pow, 2, 5), cluster.submit(pow, 3, 2)
    controller.run(job.job_id)
    controller.run(other.job_id)
    assert cluster.wait(job, timeout=5).job_id == job.job_id
    assert [info.job_id for info in cluster.wait([other, job.job_id], timeout=5)] == [other.job_id, job.job_id]
    assert cluster.result(other, timeout=5) == 9
    assert list(cluster.logs(job)) == []
    assert cluster.poll(job) == cluster.poll(job.job_id)
    cluster.terminate(job)
    with pytest.raises(ValueError, match=r"job_id must be .* got 3"):
        cluster.wait(3)  # type: ignore[call-overload]


def test_awaiting_gives_the_result_and_lets_the_loop_run(cluster: Cluster, controller: Controller) -> None:
    job = cluster.submit(pow, 2, 5)

    async def main() -> tuple[object, int]:
        turns = 0
        waiting = asyncio.ensure_future(_result(job))
        while "GetResult" not in controller.methods():
            await asyncio.sleep(0.005)
            turns += 1
        controller.run(job.job_id)
        return await waiting, turns

    result, turns = asyncio.run(main())
    assert result == 32
    assert turns > 0


async def _result(job: object) -> object:
    return await job  # type: ignore[misc]


def test_awaiting_raises_what_the_job_raised(cluster: Cluster, controller: Controller) -> None:
    failing, killed = cluster.submit(int, "no number"), cluster.submit(int)
    controller.run(failing.job_id)
    controller.finish(killed.job_id, types_pb.Cause.SIGNAL, exit_code=137)
    with pytest.raises(ValueError, match="invalid literal"):
        asyncio.run(_result(failing))
    with pytest.raises(JobFailed):
        asyncio.run(_result(killed))


def test_many_jobs_can_be_awaited_together(cluster: Cluster, controller: Controller) -> None:
    jobs = [cluster.submit(pow, 2, exponent) for exponent in range(10)]
    for job in jobs:
        controller.run(job.job_id)

    async def main() -> list[object]:
        return await asyncio.gather(*map(_result, jobs))

    assert asyncio.run(main()) == [2**exponent for exponent in range(10)]


def test_giving_up_an_await_ends_its_thread_and_leaves_the_job(
    cluster: Cluster, controller: Controller, until: Until
) -> None:
    job = cluster.submit(pow, 2, 5)
    before = set(threading.enumerate())

    async def main() -> None:
        async with asyncio.timeout(0.2):
            await job

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert time.monotonic() - began < 5
    until(lambda: set(threading.enumerate()) <= before)
    assert job.status() is JobStatus.PENDING
