"""A controller that stood still has heard nobody: that is no silence of theirs."""

from __future__ import annotations

from tests.core.scenario import Scenario

from fluster.cluster.controller.core.reconcile import intents
from fluster.cluster.controller.core.rows import Retry
from fluster.cluster.controller.core.workers import stood_still
from fluster.cluster.ids import WorkerId
from fluster.cluster.states import TaskState


def test_time_in_which_the_controller_stood_still_is_no_silence_of_its_workers(scenario: Scenario) -> None:
    scenario.machine("a", "w0")
    scenario.launch("job")
    scenario.run("job")
    scenario.register("calc", "e1")
    scenario.now += 400

    stood_still(scenario.state, 400, scenario.now)

    assert intents(scenario.state, scenario.now) == []
    scenario.wait(0)
    assert scenario.states("job") == [TaskState.RUNNING]
    assert "e1" in scenario.state.endpoints


def test_silence_before_counts_and_order_stays(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.worker("x")
    scenario.launch("job", tasks=2, cpu=4, retry=Retry(max_failures=1))
    scenario.run("job")
    scenario.now += 10
    scenario.exit("job", task=0, code=1)  # the other one is told to stop
    told = dict(scenario.state.stopping_since)
    heard = dict(scenario.state.last_seen)
    scenario.now += 50

    stood_still(scenario.state, 50, scenario.now)

    assert scenario.state.stopping_since == {uid: at + 50 for uid, at in told.items()}
    assert scenario.state.last_seen == {worker: at + 50 for worker, at in heard.items()}
    assert scenario.state.last_seen[WorkerId("x")] <= scenario.now


def test_who_was_heard_a_moment_ago_is_not_heard_in_the_future(scenario: Scenario) -> None:
    scenario.worker("w")
    stood_still(scenario.state, 100, scenario.now)
    assert scenario.state.last_seen == {"w": scenario.now}
