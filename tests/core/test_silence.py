"""Machines that are not heard from: told early, given back in time, but not when most of them fall silent at once."""

from __future__ import annotations

import pytest
from tests.core.scenario import Scenario

from fluster.cluster.controller.core import silence
from fluster.cluster.controller.core.events import AllocationWanted
from fluster.cluster.controller.core.rows import AllocationStatus, Resources
from fluster.cluster.controller.explain import silent_workers
from fluster.cluster.ids import AllocationId, WorkerId
from fluster.cluster.states import TaskState


def test_a_silent_worker_is_told_once_it_misses_its_requests(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("a")
    scenario.run("a")
    scenario.worker("idle")

    def told(after: float) -> list[str]:
        return silent_workers(scenario.state, [scenario.attempts("a")], scenario.now + after)

    assert told(24) == []
    lease_end = 300 + scenario.state.settings.stop_grace_s + scenario.state.settings.lease_margin_s
    assert told(60) == [f"worker w has not been heard from for 60 s; it is given up in {lease_end - 60:.0f} s"]
    scenario.exit("a")
    assert told(60) == []


@pytest.fixture
def ten(scenario: Scenario) -> Scenario:
    """Ten machines, each of which runs something."""
    for number in range(10):
        scenario.machine(f"m{number}", f"w{number}")
    for number in range(10):
        scenario.launch(f"job{number}", cpu=4)
        scenario.run(f"job{number}")
    return scenario


def pass_time(scenario: Scenario, seconds: int, *heard: int) -> None:
    """So many seconds; these workers are heard in each of them."""
    for _ in range(seconds):
        for number in heard:
            scenario.state.last_seen[WorkerId(f"w{number}")] = scenario.now
        scenario.wait(1)


def given_back(scenario: Scenario) -> list[str]:
    rows = scenario.state.allocations.values()
    return [row.allocation_id for row in rows if row.status is AllocationStatus.RELEASING]


def test_a_few_that_are_silent_are_given_back(ten: Scenario) -> None:
    pass_time(ten, 59, *range(4, 10))
    assert given_back(ten) == []
    pass_time(ten, 3, *range(4, 10))
    assert given_back(ten) == ["m0", "m1", "m2", "m3"]


def test_while_most_are_silent_none_is_given_back(ten: Scenario) -> None:
    pass_time(ten, 200, 9)
    assert given_back(ten) == []
    assert ten.states("job0") == [TaskState.RUNNING]
    told = [line.message for line in ten.store.journal if line.kind == "AllocationsSilent"]
    assert len(told) == 1
    assert told[0].startswith("9 of 10 of ")


def test_who_stays_silent_when_most_are_heard_again_is_given_back_a_while_later(ten: Scenario) -> None:
    pass_time(ten, 200)
    pass_time(ten, 59, *range(1, 10))
    assert given_back(ten) == []
    pass_time(ten, 3, *range(1, 10))
    assert given_back(ten) == ["m0"]


def test_the_longest_that_silent_machines_are_kept_is_their_lease(ten: Scenario) -> None:
    pass_time(ten, 314)
    assert given_back(ten) == []
    pass_time(ten, 3)
    assert len(given_back(ten)) == 10


def test_two_machines_may_die_at_once(scenario: Scenario) -> None:
    assert silence.FEW == 2
    scenario.machine("m0", "w0")
    scenario.machine("m1", "w1")
    pass_time(scenario, 62)
    assert given_back(scenario) == ["m0", "m1"]


def test_another_backends_machines_do_not_speak_for_these(scenario: Scenario) -> None:
    for number in range(6):
        if number < 3:
            scenario.apply(AllocationWanted(AllocationId(f"m{number}"), "other", Resources(4_000)))
        scenario.machine(f"m{number}", f"w{number}")
    pass_time(scenario, 100, 3, 4, 5)
    assert given_back(scenario) == []
