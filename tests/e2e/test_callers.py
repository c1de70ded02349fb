"""One client used by threads, by coroutines, in a running event loop, and by forked children."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from operator import add

import pytest
from tests.e2e import lab

from fluster import Cluster, Job, JobStatus, LocalCluster
from fluster.cluster.context import read_token_file

# Python 3.12 warns of what is tried here: its users fork all the same.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def in_child(work: Callable[[], object]) -> int:
    """How a forked child ends that does this: 0 when it went well."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_sixteen_threads_launch_and_wait_at_once(cluster: LocalCluster) -> None:
    def call(number: int) -> int:
        job = cluster.submit(add, number, 1000)
        assert job.wait(timeout=lab.WITHIN_S).status.finished()
        result: int = job.result(timeout=lab.WITHIN_S)
        return result

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(call, range(48))) == [number + 1000 for number in range(48)]


def test_jobs_can_be_awaited_together_and_waiting_be_given_up(cluster: LocalCluster) -> None:
    async def main() -> None:
        # Calls that block work in a running loop, as in a notebook.
        sleeper = cluster.submit(time.sleep, 60)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_result_of(sleeper), 0.2)
        assert await asyncio.gather(*(cluster.submit(add, number, 1) for number in range(8))) == list(range(1, 9))
        assert sleeper.status() is not JobStatus.STOPPED
        sleeper.terminate()
        assert sleeper.wait(timeout=lab.WITHIN_S).status is JobStatus.STOPPED

    asyncio.run(main())


async def _result_of(job: Job) -> object:
    return await job


def test_the_event_loop_goes_on_while_a_job_is_awaited(cluster: LocalCluster) -> None:
    async def main() -> int:
        job = cluster.submit(time.sleep, 0.3)
        waiting = asyncio.create_task(_result_of(job))
        turns = 0
        while not waiting.done():
            await asyncio.sleep(0.01)
            turns += 1
        return turns

    assert asyncio.run(main()) > 10


def test_a_forked_child_goes_on_with_its_copy_of_a_client(cluster: LocalCluster) -> None:
    token = read_token_file(cluster._daemon.token_file)
    with Cluster(cluster.address, token=token) as client:
        assert client.submit(add, 1, 1).result(timeout=lab.WITHIN_S) == 2

        def work() -> None:
            assert client.submit(add, 2, 2).result(timeout=lab.WITHIN_S) == 4
            client.close()

        assert in_child(work) == 0
        assert client.submit(add, 3, 3).result(timeout=lab.WITHIN_S) == 6


def test_a_child_forked_while_threads_wait_disturbs_nobody(cluster: LocalCluster) -> None:
    job = cluster.submit(time.sleep, 1.0)
    waiting = [lab.in_thread(lambda: job.wait(timeout=lab.WITHIN_S)) for _ in range(4)]

    def work() -> None:
        assert cluster.submit(add, 2, 2).result(timeout=lab.WITHIN_S) == 4

    assert [in_child(work) for _ in range(3)] == [0, 0, 0]
    assert {each.result(lab.WITHIN_S).status.value for each in waiting} == {"succeeded"}
