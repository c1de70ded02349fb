from dataclasses import replace

import pytest
from tests.core.scenario import Scenario

from fluster.cluster.controller.core.events import EndpointRegistered, EndpointUnregistered
from fluster.cluster.controller.core.rows import EndpointRow, RequestRow
from fluster.cluster.controller.core.state import Settings
from fluster.cluster.controller.core.transitions import apply
from fluster.cluster.ids import EndpointId, Namespace
from fluster.errors import FailedPrecondition, ResourceExhausted


@pytest.fixture
def running(scenario: Scenario) -> Scenario:
    scenario.worker("w")
    scenario.launch("a")
    scenario.run("a")
    return scenario


def names(scenario: Scenario, name: str) -> list[str]:
    """Ids of what a lookup finds."""
    return list(scenario.state.endpoints_by_name.get((Namespace("default"), name), {}))


def test_an_endpoint_of_a_task_is_found_by_its_name(running: Scenario) -> None:
    running.register("calc", "e1", job="a")
    running.register("calc", "e2", job="a")
    running.register("other", "e3", job="a")

    assert names(running, "calc") == ["e1", "e2"]


def test_the_answer_to_a_registration_is_kept_in_the_same_turn(running: Scenario) -> None:
    row = running.register("calc", "e1", job="a")
    request = RequestRow("job:a", "r", "RegisterEndpoint", "0" * 64, "e2", running.now)
    changes = running.apply(EndpointRegistered(replace(row, endpoint_id=EndpointId("e2")), request))

    assert changes.rows[RequestRow, ("job:a", "r")] == request


@pytest.mark.parametrize("code", [0, 1])
def test_endpoints_of_an_attempt_are_gone_in_the_transaction_of_its_end(running: Scenario, code: int) -> None:
    running.register("calc", "e1", job="a")
    running.register("calc", "e2", job="a")
    changes = running.exit("a", code=code)

    assert sorted(changes.deleted_endpoints) == ["e1", "e2"]
    assert names(running, "calc") == []
    assert (EndpointRow, "e1") not in running.store.rows


def test_endpoints_of_a_gangs_member_go_when_it_exits_although_its_gang_goes_on(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("g", tasks=2)
    scenario.run("g")
    scenario.register("calc", "e0", job="g", task=0)
    scenario.register("calc", "e1", job="g", task=1)
    scenario.exit("g", 0)

    assert names(scenario, "calc") == ["e1"]


def test_endpoints_of_an_attempt_go_with_its_lost_worker(running: Scenario) -> None:
    running.register("calc", "e1", job="a")
    running.wait(1_000)

    assert names(running, "calc") == []


def test_an_attempt_that_has_ended_can_register_nothing(running: Scenario) -> None:
    row = running.register("calc", "e1", job="a")
    running.exit("a")

    with pytest.raises(FailedPrecondition, match="has ended; it can register no endpoint"):
        running.apply(EndpointRegistered(row, None))


def test_a_member_that_waits_for_its_gang_can_register_nothing(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("g", tasks=2)
    scenario.run("g")
    scenario.exit("g", 0)

    with pytest.raises(FailedPrecondition, match="has ended"):
        scenario.register("calc", "e1", job="g", task=0)


def test_an_endpoint_kept_by_a_lease_goes_when_nobody_renews_it(scenario: Scenario) -> None:
    scenario.register("calc", "e1")
    scenario.wait(59)
    assert names(scenario, "calc") == ["e1"]
    scenario.state.endpoint_seen[EndpointId("e1")] = scenario.now  # renewed
    scenario.wait(59)
    assert names(scenario, "calc") == ["e1"]
    scenario.wait(1)

    assert names(scenario, "calc") == []
    assert "EndpointExpired" in [line.kind for line in scenario.store.journal]


def test_an_endpoint_of_a_task_needs_no_renewal(running: Scenario) -> None:
    running.register("calc", "e1", job="a")
    for _ in range(5):
        running.wait(100)
        running.sync("w")

    assert names(running, "calc") == ["e1"]


def test_an_endpoint_is_withdrawn_and_withdrawing_it_again_is_harmless(running: Scenario) -> None:
    running.register("calc", "e1", job="a")
    running.apply(EndpointUnregistered(EndpointId("e1"), "job:a"))

    assert names(running, "calc") == []
    assert not running.apply(EndpointUnregistered(EndpointId("e1"), "job:a"))


def test_each_owner_has_only_so_many_endpoints() -> None:
    scenario = Scenario(Settings(max_endpoints_per_job=1))
    scenario.worker("w")
    scenario.launch("a")
    scenario.run("a")
    scenario.register("calc", "e1", job="a")
    scenario.register("calc", "e2")

    for job in ("a", None):
        with pytest.raises(ResourceExhausted, match="1 endpoints are registered already"):
            scenario.register("calc", "e3", job=job)
    assert names(scenario, "calc") == ["e1", "e2"]


def test_an_endpoint_registered_again_after_its_withdrawal_in_one_turn_stays(running: Scenario) -> None:
    row = running.register("calc", "e1", job="a")
    changes = running.apply(EndpointUnregistered(EndpointId("e1"), "job:a"))
    assert changes.deleted_endpoints == ["e1"]

    apply(running.state, EndpointRegistered(row, None), running.now, changes)
    assert changes.deleted_endpoints == []
    assert changes.rows[EndpointRow, "e1"] == row
