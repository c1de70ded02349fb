"""A worker without a lease starts nothing, and what it stops late has no grace left."""

import os
import sys
from pathlib import Path

import pytest

from fluster.cluster.states import Cause, TaskState
from fluster.cluster.worker.decide import Session, lease_grace_s
from fluster.cluster.worker.manager import JobManager
from fluster.cluster.worker.process_runtime import ProcessRuntime

SESSION = Session(epoch=3, controller="c", lease_s=30.0, lease_until=130.0)


@pytest.mark.parametrize(("now", "left_s"), [(130.0, 10.0), (133.0, 7.0), (140.0, 0.0), (500.0, 0.0)])
def test_the_grace_of_an_ended_lease_began_with_its_end(now: float, left_s: float) -> None:
    assert lease_grace_s(SESSION, now, 10.0) == left_s


async def test_an_attempt_that_was_accepted_before_the_lease_ended_is_not_started_after_it(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    runtime = ProcessRuntime(f"test-{os.getpid()}", subreaper=False)
    manager = JobManager(runtime, state_dir=tmp_path / "worker", may_start=lambda: False)
    try:
        await manager.submit_job("late", [sys.executable, "-c", f"open({str(ran)!r}, 'w')"])
        done = await manager.wait_job("late")
    finally:
        await manager.close()

    assert (done.state, done.cause, done.exit_code) == (TaskState.FAILED, Cause.WORKER_LOST, None)
    assert not ran.exists()
