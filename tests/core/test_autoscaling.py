"""Machines that come with demand and go when nobody needs them."""

from __future__ import annotations

import pytest
from tests.core.scenario import GB, Scenario

from fluster.cluster.controller.core.events import AllocationObserved, AllocationRefused
from fluster.cluster.controller.core.reconcile import Allocate, Release, reconcile
from fluster.cluster.controller.core.rows import AllocationRow, AllocationStatus, Offer, Resources
from fluster.cluster.controller.core.state import Settings
from fluster.cluster.ids import AllocationId

MACHINE = Resources(4_000, 16 * GB, 100 * GB, slots=10)
LARGE = Resources(16_000, 64 * GB, 100 * GB, slots=10)
NEAR, FAR = Offer("near", MACHINE, at_most=3), Offer("far", MACHINE, at_most=3)


def cluster(*offers: Offer) -> Scenario:
    return Scenario(Settings(offers=offers))


def rows(scenario: Scenario, backend: str = "near") -> list[AllocationRow]:
    found = [row for row in scenario.state.allocations.values() if row.backend == backend]
    return [row for row in found if row.status is not AllocationStatus.RELEASING]


def comes(scenario: Scenario, row: AllocationRow) -> str:
    """The machine starts and its worker joins."""
    scenario.apply(AllocationObserved(row.allocation_id, AllocationStatus.READY, ("host",)))
    joins(scenario, row)
    return row.allocation_id


def joins(scenario: Scenario, row: AllocationRow) -> None:
    need = row.resources
    scenario.worker(
        row.allocation_id, cpu=need.cpu_milli / 1000, memory=need.memory_bytes, allocation=row.allocation_id
    )


def idles(scenario: Scenario, seconds: float, *busy: str) -> None:
    """Time passes while all workers are heard from."""
    for _ in range(int(seconds / 20) + 1):
        scenario.now += 20
        for worker_id in list(scenario.state.workers):
            scenario.sync(worker_id)
        scenario.wait(0)


def test_a_job_without_room_brings_a_machine_and_is_asked_for_once() -> None:
    scenario = cluster(NEAR)
    scenario.launch("a", cpu=2)
    scenario.turn()
    (row,) = rows(scenario)
    assert reconcile(scenario.state) == [Allocate(row.allocation_id, "near", MACHINE)]
    scenario.wait(1)
    assert len(rows(scenario)) == 1
    assert scenario.reason("a") == "no worker is ready yet: 1 starting; 1 machine starting"

    comes(scenario, row)
    scenario.turn()
    assert str(scenario.attempt("a").worker_id) == row.allocation_id


def test_machines_on_their_way_are_given_to_those_who_wait_before_more_are_asked_for() -> None:
    scenario = cluster(NEAR)
    for name in "abcd":
        scenario.launch(name, cpu=2)
    scenario.turn()
    assert len(rows(scenario)) == 2
    comes(scenario, rows(scenario)[0])
    scenario.turn()
    assert len(rows(scenario)) == 2


def test_what_waits_for_its_users_quota_brings_none() -> None:
    scenario = cluster(NEAR)
    scenario.user("alice", cpu_milli=4_000)
    for name in "abc":
        scenario.launch(name, cpu=2, user="alice")
    scenario.turn()
    (row,) = rows(scenario)
    comes(scenario, row)
    scenario.turn()
    assert len(rows(scenario)) == 1
    assert scenario.reason("c") == "the quota of user alice is 4 cpu, 4 used, 2 needed"


def test_what_fits_on_machines_that_are_there_brings_none() -> None:
    scenario = cluster(NEAR)
    scenario.worker("w")
    scenario.launch("a", cpu=4)
    scenario.turn()
    assert rows(scenario) == []


def test_a_gang_brings_all_the_machines_it_lacks_or_none() -> None:
    scenario = cluster(NEAR)
    scenario.worker("w", cpu=4)
    scenario.launch("a", tasks=4, cpu=4)
    scenario.turn()
    assert len(rows(scenario)) == 3

    scenario = cluster(NEAR)
    scenario.launch("b", tasks=4, cpu=4)
    scenario.turn()
    assert rows(scenario) == []
    assert "b" in scenario.state.waiting or scenario.reason("b")


def test_a_gang_may_be_spread_over_offers_in_order_of_preference() -> None:
    scenario = cluster(NEAR, FAR)
    scenario.launch("a", tasks=5, cpu=4)
    scenario.turn()
    assert [len(rows(scenario, "near")), len(rows(scenario, "far"))] == [3, 2]


def test_a_job_too_large_for_the_first_offer_brings_the_next_kind_of_machine() -> None:
    scenario = cluster(NEAR, Offer("near", LARGE, at_most=1))
    scenario.launch("a", cpu=8)
    scenario.turn()
    assert [row.resources for row in rows(scenario)] == [LARGE]


def test_a_demand_that_no_offer_can_meet_brings_nothing() -> None:
    scenario = cluster(NEAR)
    scenario.launch("a", cpu=64)
    scenario.turn()
    assert rows(scenario) == []


def test_a_stockout_fails_over_to_the_next_zone_and_why_says_so() -> None:
    scenario = cluster(NEAR, FAR)
    scenario.launch("a", cpu=4)
    scenario.turn()
    (row,) = rows(scenario)
    scenario.apply(AllocationRefused(row.allocation_id, "stockout of n2-standard-4"))
    scenario.turn()

    assert rows(scenario) == []
    (other,) = rows(scenario, "far")
    assert Release(row.allocation_id, "near") in reconcile(scenario.state), "an earlier try may have come through"
    scenario.turn()
    assert scenario.reason("a").endswith(
        "1 machine starting; near gave none: stockout of n2-standard-4 (asked again in 10 s)"
    )
    scenario.apply(AllocationRefused(other.allocation_id, "quota"))
    scenario.turn()
    assert "far gave none: quota" in scenario.reason("a")


def test_a_backend_that_refused_is_asked_again_after_10_s_then_after_20_s_and_so_on() -> None:
    scenario = cluster(NEAR)
    scenario.launch("a", cpu=4)
    scenario.turn()
    for pause in (10, 20, 40, 80, 160, 300, 300):
        (row,) = rows(scenario)
        scenario.apply(AllocationRefused(row.allocation_id, "stockout"))
        scenario.apply(AllocationObserved(row.allocation_id, AllocationStatus.GONE))
        scenario.turn()
        scenario.wait(pause - 0.5)
        assert rows(scenario) == []
        scenario.wait(1)
    (row,) = rows(scenario)
    comes(scenario, row)
    assert scenario.state.refusals == {}


def test_several_refused_at_one_moment_are_one_refusal() -> None:
    scenario = cluster(NEAR)
    scenario.launch("a", tasks=3, cpu=4)
    scenario.turn()
    for row in rows(scenario):
        scenario.apply(AllocationRefused(row.allocation_id, "stockout"))
    assert scenario.state.refusals["near"].times == 1


def test_a_pool_that_is_refused_is_asked_for_again() -> None:
    scenario = Scenario(Settings(backend="local", pool=(MACHINE,)))
    scenario.turn()
    scenario.apply(AllocationRefused(AllocationId("local-0"), "full"))
    assert reconcile(scenario.state) == [Allocate(AllocationId("local-0"), "local", MACHINE)]
    assert scenario.state.allocations[AllocationId("local-0")].error == "full"


def test_a_machine_that_never_starts_is_given_up_and_another_one_tried_with_backoff() -> None:
    scenario = cluster(NEAR, FAR)
    scenario.launch("a", cpu=4)
    scenario.turn()
    (row,) = rows(scenario)
    scenario.wait(600)
    assert rows(scenario) == [row]
    scenario.wait(1)

    assert scenario.state.allocations[row.allocation_id].status is AllocationStatus.RELEASING
    scenario.turn()
    assert len(rows(scenario, "far")) == 1
    assert "near gave none: it did not start within 600 s" in scenario.reason("a")


def test_a_machine_that_starts_and_never_joins_is_given_up() -> None:
    scenario = cluster(NEAR, FAR)
    scenario.launch("a", cpu=4)
    scenario.turn()
    (row,) = rows(scenario)
    scenario.apply(AllocationObserved(row.allocation_id, AllocationStatus.READY, ("host",)))
    scenario.wait(300)
    assert rows(scenario)
    scenario.wait(1)
    scenario.wait(1)

    assert rows(scenario) == []
    assert len(rows(scenario, "far")) == 1


def test_an_idle_machine_is_given_back_after_its_time_and_not_before() -> None:
    scenario = cluster(NEAR)
    scenario.launch("a", cpu=4)
    scenario.turn()
    name = comes(scenario, rows(scenario)[0])
    scenario.turn()
    scenario.run("a")
    idles(scenario, 400)
    assert len(rows(scenario)) == 1, "it has work"
    scenario.exit("a")
    scenario.wait(1)
    idles(scenario, 270)
    assert len(rows(scenario)) == 1
    idles(scenario, 40)
    assert scenario.state.allocations[AllocationId(name)].status is AllocationStatus.RELEASING


def test_short_jobs_between_two_looks_keep_a_machine() -> None:
    scenario = cluster(NEAR)
    scenario.launch("first", cpu=4)
    scenario.turn()
    comes(scenario, rows(scenario)[0])
    scenario.turn()
    scenario.run("first")
    scenario.exit("first")
    for number in range(20):
        idles(scenario, 30)
        scenario.launch(f"j{number}", cpu=4)
        scenario.turn()
        scenario.run(f"j{number}")
        scenario.exit(f"j{number}")
    assert len(rows(scenario)) == 1


def test_idle_machines_are_kept_for_a_gang_that_waits_for_more_of_them() -> None:
    scenario = cluster(NEAR)
    scenario.launch("a", tasks=3, cpu=4)
    scenario.turn()
    first, second, third = rows(scenario)
    comes(scenario, first)
    comes(scenario, second)
    scenario.apply(AllocationRefused(third.allocation_id, "stockout"))
    scenario.apply(AllocationObserved(third.allocation_id, AllocationStatus.GONE))
    for _ in range(3):
        idles(scenario, 200)
        for row in rows(scenario):
            if row.status is AllocationStatus.REQUESTED:
                scenario.apply(AllocationRefused(row.allocation_id, "stockout"))
                scenario.apply(AllocationObserved(row.allocation_id, AllocationStatus.GONE))
    ready = [row for row in rows(scenario) if row.status is AllocationStatus.READY]
    assert [row.allocation_id for row in ready] == [first.allocation_id, second.allocation_id]


def test_idle_machines_are_not_kept_for_a_gang_that_can_never_be_placed() -> None:
    scenario = cluster(NEAR)
    scenario.launch("a", cpu=4)
    scenario.turn()
    comes(scenario, rows(scenario)[0])
    scenario.turn()
    scenario.run("a")
    scenario.exit("a")
    scenario.launch("hopeless", tasks=50, cpu=4)
    idles(scenario, 400)
    assert rows(scenario) == []


def test_what_an_offer_keeps_is_there_without_demand_and_stays() -> None:
    scenario = cluster(Offer("near", MACHINE, at_least=2, at_most=3))
    scenario.turn()
    assert len(rows(scenario)) == 2
    for row in rows(scenario):
        comes(scenario, row)
    idles(scenario, 400)
    assert len(rows(scenario)) == 2


def test_a_slice_is_asked_for_whole_and_one_of_which_a_host_never_joins_is_given_up() -> None:
    host = Resources(96_000, 200 * GB, 100 * GB, slots=10, tpu_variant="v5litepod-16")
    scenario = cluster(Offer("tpu", host, hosts=4, at_most=2), NEAR)
    scenario.launch("a", tasks=4, cpu=1, tpu_variant="v5litepod-16", slice_hosts=4)
    scenario.turn()
    (row,) = rows(scenario, "tpu")
    assert rows(scenario) == []
    scenario.apply(AllocationObserved(row.allocation_id, AllocationStatus.READY))
    for name in ("h0", "h1", "h2"):
        scenario.worker(name, cpu=96, memory=200 * GB, tpu_variant="v5litepod-16", allocation=row.allocation_id)
    scenario.turn()
    assert rows(scenario, "tpu") == [scenario.state.allocations[row.allocation_id]], "one is on its way"
    for _ in range(16):
        scenario.now += 20
        for name in ("h0", "h1", "h2"):
            scenario.sync(name)
        scenario.wait(0)
    assert scenario.state.allocations[row.allocation_id].status is AllocationStatus.RELEASING


def test_a_restarted_controller_gives_machines_their_full_time() -> None:
    scenario = cluster(NEAR)
    scenario.launch("a", cpu=4)
    scenario.turn()
    scenario.now += 500
    scenario.restart()
    scenario.state.allocated_since = dict.fromkeys(scenario.state.allocations, scenario.now)
    scenario.wait(500)
    assert len(rows(scenario)) == 1


def test_names_of_machines_are_never_used_again() -> None:
    scenario = cluster(NEAR)
    seen = set()
    for number in range(5):
        scenario.launch(f"a{number}", cpu=4)
        scenario.turn()
        (row,) = rows(scenario)
        seen.add(row.allocation_id)
        scenario.apply(AllocationObserved(row.allocation_id, AllocationStatus.GONE))
        scenario.terminate(f"a{number}")
        scenario.wait(1)
    assert len(seen) == 5


@pytest.mark.parametrize("jobs", [3000])
def test_thousands_of_waiting_jobs_are_looked_at_quickly(jobs: int) -> None:
    import time

    from fluster.cluster.controller.core.demand import demand

    scenario = cluster(Offer("near", MACHINE, at_most=100))
    scenario.launch("many", tasks=jobs, cpu=4, gang=False)
    began = time.perf_counter()
    found = demand(scenario.state, scenario.now)
    assert len(found.asked) == 100
    assert time.perf_counter() - began < 1.0


def test_a_machine_that_falls_silent_before_its_backend_calls_it_ready_is_given_back() -> None:
    scenario = cluster(NEAR)
    scenario.launch("a", cpu=4)
    scenario.turn()
    (row,) = rows(scenario)
    joins(scenario, row)
    scenario.turn()
    scenario.run("a")
    scenario.wait(61)
    assert scenario.state.allocations[row.allocation_id].status is AllocationStatus.RELEASING
