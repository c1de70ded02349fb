from tests.core.scenario import PORT, Scenario

from fluster.cluster.controller.core.desired import World, desired, world_of
from fluster.cluster.controller.core.events import Observed
from fluster.cluster.controller.core.rows import AttemptState, Retry
from fluster.cluster.controller.core.schedule import schedule
from fluster.cluster.ids import WorkerId


def wanted(scenario: Scenario, worker: str) -> list[tuple[str, bool]]:
    """Uids with their stop flags."""
    return [(each.attempt.uid, each.stop) for each in desired(scenario.state, WorkerId(worker))]


def three_on_two_workers(scenario: Scenario) -> Scenario:
    scenario.worker("w0", cpu=2)
    scenario.worker("w1", cpu=2)
    scenario.launch("g", tasks=3, retry=Retry(max_failures=1, backoff_s=0))
    scenario.turn()
    return scenario


def test_a_worker_should_run_what_was_placed_on_it_and_nothing_else(scenario: Scenario) -> None:
    scenario.worker("w0", cpu=2)
    scenario.worker("w1", cpu=1)
    for name in "abc":
        scenario.launch(name)
    scenario.turn()

    assert wanted(scenario, "w0") == [("a.0.1", False), ("b.0.1", False)]
    assert wanted(scenario, "w1") == [("c.0.1", False)]
    assert wanted(scenario, "nobody") == []


def test_placing_wakes_the_worker_it_concerns(scenario: Scenario) -> None:
    scenario.worker("w0")
    scenario.worker("w1")
    scenario.launch("a")
    (placed,) = schedule(scenario.state, scenario.now).placed

    assert scenario.apply(placed).touched_workers == {"w0"}


def test_an_attempt_that_has_ended_is_no_longer_wanted(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("a")
    scenario.run("a")
    scenario.exit("a")

    assert wanted(scenario, "w") == []


def test_a_member_that_exited_with_0_is_no_longer_wanted_while_its_gang_goes_on(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("g", tasks=2)
    scenario.run("g")
    scenario.exit("g", 0)

    assert wanted(scenario, "w") == [("g.1.1", False)]


def test_an_attempt_to_stop_stays_wanted_until_it_has_ended(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("a")
    scenario.run("a")
    changes = scenario.terminate("a")

    assert changes.touched_workers == {"w"}
    assert wanted(scenario, "w") == [("a.0.1", True)]
    scenario.exit("a", code=143, stopped=True)
    assert wanted(scenario, "w") == []


def test_the_members_of_a_gang_wait_until_rank_0_has_chosen_its_port(scenario: Scenario) -> None:
    three_on_two_workers(scenario)
    assert wanted(scenario, "w0") == [("g.0.1", False)]
    assert wanted(scenario, "w1") == []
    scenario.accept("g", 0)
    assert wanted(scenario, "w1") == []
    changes = scenario.start("g", 0, port=PORT)

    assert changes.touched_workers == {"w0", "w1"}
    assert wanted(scenario, "w0") == [("g.0.1", False), ("g.1.1", False)]
    assert wanted(scenario, "w1") == [("g.2.1", False)]


def test_a_port_told_while_rank_0_is_still_being_built_is_enough(scenario: Scenario) -> None:
    three_on_two_workers(scenario)
    scenario.accept("g", 0, state=AttemptState.BUILDING)
    uid = scenario.attempt("g", 0).uid
    changes = scenario.sync("w0", Observed(uid, AttemptState.BUILDING, None, master_port=PORT))

    assert changes.touched_workers == {"w0", "w1"}
    assert wanted(scenario, "w1") == [("g.2.1", False)]


def test_members_that_wait_for_the_port_are_told_when_to_stop(scenario: Scenario) -> None:
    three_on_two_workers(scenario)
    scenario.terminate("g")

    assert wanted(scenario, "w1") == [("g.2.1", True)]


def test_a_rank_0_that_is_over_keeps_nobody_waiting(scenario: Scenario) -> None:
    three_on_two_workers(scenario)
    scenario.start("g", 0, port=0)
    changes = scenario.exit("g", 0)

    assert changes.touched_workers == {"w0", "w1"}
    assert wanted(scenario, "w1") == [("g.2.1", False)]


def test_a_members_place_in_its_world_is_told(scenario: Scenario) -> None:
    three_on_two_workers(scenario)
    scenario.start("g", 0, port=PORT)

    assert [world_of(scenario.state, scenario.attempt("g", task)) for task in range(3)] == [
        World(3, 0, 2, 0, "", PORT, 0),
        World(3, 1, 2, 0, "", PORT, 0),
        World(3, 0, 1, 1, "w0.host", PORT, 0),
    ]


def test_the_next_attempt_avoids_the_port_of_the_one_before(scenario: Scenario) -> None:
    three_on_two_workers(scenario)
    for task in range(3):
        scenario.start("g", task, port=PORT)
    scenario.exit("g", 0, code=1)
    for task in (1, 2):
        scenario.exit("g", task, code=143, stopped=True)
    scenario.turn()

    world = world_of(scenario.state, scenario.attempt("g", 2))
    assert (world.master_port, world.avoid_port) == (0, PORT)


def test_a_task_without_a_gang_is_a_world_of_its_own(scenario: Scenario) -> None:
    scenario.worker("w0", cpu=2)
    scenario.launch("a", tasks=2, gang=False)
    scenario.turn()

    assert wanted(scenario, "w0") == [("a.0.1", False), ("a.1.1", False)]
    assert world_of(scenario.state, scenario.attempt("a", 1)) == World(1, 0, 1, 0, "", 0, 0)


def test_what_a_worker_has_told_of_stays_wanted_whatever_became_of_rank_0(scenario: Scenario) -> None:
    three_on_two_workers(scenario)
    scenario.accept("g", 2, state=AttemptState.BUILDING)

    assert wanted(scenario, "w1") == [("g.2.1", False)]
