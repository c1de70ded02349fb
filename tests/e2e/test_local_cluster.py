"""A LocalCluster is tied to its creator: when that is gone, or shuts it down, nothing of it is left."""

from __future__ import annotations

import time

import pytest
from tests.e2e import lab

from fluster import LocalCluster


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.1, 0.3, 0.6])
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
