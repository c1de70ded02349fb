import pytest
from tests.core.scenario import Scenario

from fluster.cluster.controller.core.events import (
    AllocationObserved,
    AllocationUnwanted,
    AllocationWanted,
)
from fluster.cluster.controller.core.reconcile import Allocate, Release, intents, reconcile
from fluster.cluster.controller.core.rows import AllocationRow, AllocationStatus, AttemptState, Charge, Resources
from fluster.cluster.controller.core.state import Settings
from fluster.cluster.ids import AllocationId, WorkerId
from fluster.cluster.states import Cause, TaskState

SMALL, LARGE = Resources(2_000), Resources(8_000)
M = AllocationId("m")


@pytest.fixture
def machine(scenario: Scenario) -> Scenario:
    """A machine with one worker that runs a job."""
    scenario.machine("m", "w")
    scenario.launch("a")
    scenario.run("a")
    return scenario


def observe(scenario: Scenario, status: AllocationStatus, *, error: str = "") -> None:
    scenario.apply(AllocationObserved(M, status, error=error))


def test_the_pool_is_asked_for_once_and_by_names_of_its_own() -> None:
    scenario = Scenario(Settings(backend="local", pool=(SMALL, SMALL, LARGE)))
    scenario.turn()
    assert reconcile(scenario.state) == [
        Allocate(AllocationId("local-0"), "local", SMALL),
        Allocate(AllocationId("local-1"), "local", SMALL),
        Allocate(AllocationId("local-2"), "local", LARGE),
    ]
    scenario.turn()

    assert len(scenario.state.allocations) == 3


def test_what_is_asked_for_is_asked_again_until_it_is_there() -> None:
    scenario = Scenario(Settings(backend="local", pool=(SMALL,)))
    scenario.turn()
    assert reconcile(scenario.state) == reconcile(scenario.state) == [Allocate(AllocationId("local-0"), "local", SMALL)]
    scenario.apply(AllocationObserved(AllocationId("local-0"), AllocationStatus.READY, ("host",)))

    assert reconcile(scenario.state) == []
    assert scenario.state.allocations[AllocationId("local-0")].hosts == ("host",)


def test_a_machine_of_the_pool_that_is_gone_is_replaced() -> None:
    scenario = Scenario(Settings(backend="local", pool=(SMALL,)))
    scenario.turn()
    scenario.apply(AllocationObserved(AllocationId("local-0"), AllocationStatus.READY))
    scenario.apply(AllocationObserved(AllocationId("local-0"), AllocationStatus.GONE))
    assert reconcile(scenario.state) == []
    scenario.turn()

    assert reconcile(scenario.state) == [Allocate(AllocationId("local-0"), "local", SMALL)]


def test_a_machine_that_is_being_given_back_is_replaced_under_another_name() -> None:
    scenario = Scenario(Settings(backend="local", pool=(SMALL,)))
    scenario.turn()
    scenario.apply(AllocationUnwanted(AllocationId("local-0"), "test"))
    scenario.turn()

    assert reconcile(scenario.state) == [
        Release(AllocationId("local-0"), "local"),
        Allocate(AllocationId("local-1"), "local", SMALL),
    ]


def test_an_allocation_wanted_twice_is_one(scenario: Scenario) -> None:
    scenario.apply(AllocationWanted(M, "cloud", SMALL))

    assert not scenario.apply(AllocationWanted(M, "cloud", SMALL))


def test_what_a_backend_says_of_an_allocation_nobody_knows_changes_nothing(scenario: Scenario) -> None:
    assert not scenario.apply(AllocationObserved(M, AllocationStatus.READY))


def test_what_a_backend_repeats_is_written_once(machine: Scenario) -> None:
    assert not machine.apply(AllocationObserved(M, AllocationStatus.READY))


def test_an_error_of_the_backend_is_kept_and_told_to_who_waits(scenario: Scenario) -> None:
    scenario.apply(AllocationWanted(M, "cloud", SMALL))
    observe(scenario, AllocationStatus.REQUESTED, error="quota of 0 vm")
    scenario.launch("a")
    scenario.turn()

    assert scenario.reason("a") == "no worker is ready: quota of 0 vm"


def test_a_machine_that_is_gone_proves_the_end_of_its_attempts_at_once(machine: Scenario) -> None:
    machine.worker("other")
    observe(machine, AllocationStatus.GONE)

    row = machine.attempt("a")
    assert (row.state, row.cause, row.charge) == (AttemptState.FAILED, Cause.WORKER_LOST, Charge.PREEMPTION)
    assert row.error_message == "its machine m is gone"
    assert list(machine.state.workers) == ["other"]
    assert machine.state.allocations == {}
    machine.wait(1)
    assert machine.attempt("a").worker_id == "other"


def test_all_workers_of_a_slice_are_gone_with_it(scenario: Scenario) -> None:
    scenario.machine("m", "h0", "h1", cpu=1)
    scenario.launch("a", tasks=2)
    scenario.run("a")
    observe(scenario, AllocationStatus.GONE)

    assert scenario.state.workers == {}
    assert scenario.states("a") == [TaskState.PENDING] * 2
    assert sorted(row.charge for row in scenario.all_attempts("a")) == [Charge.NONE, Charge.PREEMPTION]


def test_a_machine_being_given_back_gets_no_more_work(machine: Scenario) -> None:
    machine.apply(AllocationUnwanted(M, "idle"))
    machine.launch("b")

    assert machine.turn().placed == []
    assert machine.reason("b") == "no worker is ready: 1 leaving"
    assert machine.state.leaving(machine.state.workers[WorkerId("w")])


def test_a_machine_being_given_back_stays_so_whatever_its_backend_says(machine: Scenario) -> None:
    machine.apply(AllocationUnwanted(M, "idle"))
    observe(machine, AllocationStatus.READY)

    assert machine.state.allocations[M].status is AllocationStatus.RELEASING
    assert not machine.apply(AllocationUnwanted(M, "again"))
    assert reconcile(machine.state) == [Release(M, machine.state.allocations[M].backend)]


def test_giving_a_machine_back_tells_its_workers(machine: Scenario) -> None:
    changes = machine.apply(AllocationUnwanted(M, "idle"))

    assert changes.touched_workers == {"w"}


def test_a_machine_silent_for_60_s_is_given_back_which_proves_its_death(machine: Scenario) -> None:
    machine.wait(60)
    assert machine.state.allocations[M].status is AllocationStatus.READY
    machine.wait(1)

    assert machine.state.allocations[M].status is AllocationStatus.RELEASING
    assert machine.states("a") == [TaskState.RUNNING], "not proven yet"
    observe(machine, AllocationStatus.GONE)
    assert machine.states("a") == [TaskState.PENDING]


def test_a_slice_of_which_one_host_speaks_is_kept(scenario: Scenario) -> None:
    scenario.machine("m", "h0", "h1")
    scenario.now += 61
    scenario.sync("h0")

    assert intents(scenario.state, scenario.now) == []


def test_a_slice_of_which_one_host_is_lost_is_given_back(scenario: Scenario) -> None:
    scenario.machine("m", "h0", "h1")
    for _ in range(8):
        scenario.now += 40
        scenario.sync("h0")
    scenario.wait(1)

    assert scenario.state.allocations[M].status is AllocationStatus.RELEASING


def test_a_machine_whose_worker_has_not_joined_yet_is_waited_for(scenario: Scenario) -> None:
    scenario.machine("m")
    scenario.wait(200)

    assert scenario.state.allocations[M].status is AllocationStatus.READY


def test_a_worker_started_by_hand_is_not_given_back(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.wait(200)

    assert scenario.state.workers[WorkerId("w")].status.value == "ready"


def test_a_worker_of_a_machine_that_is_gone_has_to_leave_and_gets_no_work(scenario: Scenario) -> None:
    scenario.worker("ghost", allocation="m")
    scenario.launch("a")

    assert scenario.turn().placed == []
    assert scenario.state.leaving(scenario.state.workers[WorkerId("ghost")])


def test_the_row_of_a_machine_that_is_gone_stays_written(machine: Scenario) -> None:
    observe(machine, AllocationStatus.GONE)

    row = machine.store.rows[AllocationRow, M]
    assert isinstance(row, AllocationRow)
    assert row.status is AllocationStatus.GONE
