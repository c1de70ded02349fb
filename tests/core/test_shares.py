"""Several users: whoever uses least goes first, and nobody gets more than the quota."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.core.scenario import GB, Scenario

from fluster.cluster.controller.core.rows import JobRow
from fluster.cluster.controller.core.waits import Waiting
from fluster.cluster.ids import JobId, Namespace
from fluster.cluster.states import Cause, TaskState
from fluster.errors import ResourceExhausted


def running(scenario: Scenario, *names: str) -> list[bool]:
    return [scenario.tasks(name)[0].state is not TaskState.PENDING for name in names]


def waiting(scenario: Scenario, name: str) -> Waiting:
    return scenario.turn().waiting[JobId(name)]


# Shares


def test_room_is_shared_evenly_whoever_came_first(scenario: Scenario) -> None:
    scenario.worker("w", cpu=4)
    for number in range(6):
        scenario.launch(f"a{number}", user="alice")
    scenario.now += 1
    for number in range(6):
        scenario.launch(f"b{number}", user="bob")
    scenario.turn()

    assert running(scenario, "a0", "a1", "a2", "b0", "b1", "b2") == [True, True, False, True, True, False]


def test_the_administrator_is_one_user_among_others(scenario: Scenario) -> None:
    scenario.worker("w", cpu=2)
    for number in range(3):
        scenario.launch(f"mine{number}")
    scenario.now += 1
    scenario.launch("hers", user="alice")
    scenario.turn()

    assert running(scenario, "mine0", "mine1", "hers") == [True, False, True]


def test_whoever_has_less_goes_first_until_both_have_the_same(scenario: Scenario) -> None:
    scenario.worker("w", cpu=6)
    for number in range(6):
        scenario.launch(f"a{number}", user="alice")
    scenario.turn()
    for number in range(3):
        scenario.exit(f"a{number}")
    scenario.now += 1
    scenario.launch("more", user="alice")
    scenario.now += 1
    for number in range(4):
        scenario.launch(f"b{number}", user="bob")
    scenario.turn()

    assert running(scenario, "more", "b0", "b1", "b2", "b3") == [False, True, True, True, False]


def test_what_counts_is_the_scarcest_of_what_somebody_has(scenario: Scenario) -> None:
    """Alice has all of the memory's half, Bob a quarter of the cores: the next core is Bob's."""
    scenario.worker("w", cpu=8, memory=16 * GB)
    scenario.launch("large", user="alice", cpu=1, memory=8 * GB)
    scenario.launch("wide", user="bob", cpu=2, memory=GB)
    scenario.turn()
    scenario.launch("a", user="alice", cpu=5, memory=GB)
    scenario.now += 1
    scenario.launch("b", user="bob", cpu=5, memory=GB)
    scenario.turn()

    assert running(scenario, "a", "b") == [False, True]


def test_priority_goes_before_shares(scenario: Scenario) -> None:
    scenario.worker("w", cpu=2)
    scenario.launch("a0", user="alice")
    scenario.turn()
    scenario.launch("b", user="bob", priority=0)
    scenario.launch("a1", user="alice", priority=1)
    scenario.turn()

    assert running(scenario, "b", "a1") == [False, True]


def test_room_that_is_held_stays_with_its_gang_when_another_user_has_less_meanwhile(scenario: Scenario) -> None:
    scenario.worker("w0", cpu=2)
    scenario.worker("w1", cpu=2)
    for number in range(2):
        scenario.launch(f"a{number}", user="alice", cpu=1)
        scenario.launch(f"b{number}", user="bob", cpu=1)
    scenario.turn()
    scenario.launch("big-b", user="bob", tasks=2, cpu=2)
    scenario.turn()
    assert waiting(scenario, "big-b").would_fit
    scenario.exit("a0")
    scenario.exit("a1")
    scenario.now += 1
    scenario.launch("big-a", user="alice", tasks=2, cpu=2)

    assert "behind big-b" in waiting(scenario, "big-a").reason
    for name in ("b0", "b1"):
        scenario.exit(name)
    scenario.turn()
    assert running(scenario, "big-b", "big-a") == [True, False]


def test_a_job_of_another_namespace_is_not_named(scenario: Scenario) -> None:
    scenario.worker("w", cpu=2)
    scenario.launch("runs", cpu=1)
    scenario.turn()
    scenario.launch("secret", cpu=2)
    scenario.now += 1
    scenario.submit(
        replace(
            scenario.job("secret"), job_id=JobId("other"), name="other", namespace=Namespace("elsewhere"), user="bob"
        )
    )
    scenario.turn()
    both = [scenario.reason(name) for name in ("secret", "other")]
    behind = next(reason for reason in both if "behind" in reason)

    assert behind.endswith("; behind a job of another namespace")


# Quotas


@pytest.mark.parametrize(
    ("quota", "need", "why"),
    [
        ({"cpu_milli": 3000}, {"cpu": 2}, "3 cpu, 2 used, 2 needed"),
        ({"memory_bytes": 3 * GB}, {"memory": 2 * GB}, "3 GB memory, 2 GB used, 2 GB needed"),
        ({"gpu": 1}, {"gpu": 1}, "1 gpu, 1 used, 1 needed"),
        (
            {"cpu_milli": 1000, "gpu": 1},
            {"cpu": 1, "gpu": 1},
            "1 cpu, 1 used, 1 needed and 1 gpu, 1 used, 1 needed",
        ),
    ],
)
def test_what_would_exceed_the_quota_waits_and_is_told_the_numbers(
    scenario: Scenario, quota: dict[str, int], need: dict[str, float], why: str
) -> None:
    scenario.user("alice", **quota)
    scenario.worker("w", cpu=16, memory=64 * GB, gpu=8, gpu_variant="a100")
    scenario.launch("a", user="alice", **need)  # type: ignore[arg-type]
    scenario.turn()
    scenario.now += 1
    scenario.launch("b", user="alice", **need)  # type: ignore[arg-type]
    scenario.launch("c", user="bob", **need)  # type: ignore[arg-type]

    assert waiting(scenario, "b") == Waiting(f"the quota of user alice is {why}", True, None)
    assert running(scenario, "a", "b", "c") == [True, False, True]
    scenario.exit("a")
    scenario.turn()
    assert running(scenario, "b") == [True]


def test_a_gang_counts_as_a_whole(scenario: Scenario) -> None:
    scenario.user("alice", cpu_milli=3000)
    scenario.worker("w", cpu=16)
    scenario.launch("gang", user="alice", tasks=4, scheduling_timeout_s=60)
    scenario.launch("apart", user="alice", tasks=4, gang=False)

    why = "the quota of user alice is 3 cpu, 3 used, 4 needed, more than the quota as a whole"
    assert waiting(scenario, "gang") == Waiting(why, False, None)
    assert [state is TaskState.PENDING for state in scenario.states("apart")] == [False, False, False, True]
    scenario.wait(60)
    assert scenario.job("gang").cause is Cause.UNSCHEDULABLE
    assert why in scenario.job("gang").error_message


def test_a_larger_quota_lets_in_what_waited_for_it_at_the_next_turn(scenario: Scenario) -> None:
    scenario.worker("w", cpu=4)
    scenario.user("alice", cpu_milli=1_000)
    scenario.launch("a", user="alice")
    scenario.launch("b", user="alice")
    scenario.turn()
    assert "quota" in waiting(scenario, "b").reason  # as long as nothing changes

    scenario.user("alice", cpu_milli=2_000)
    scenario.turn()
    assert running(scenario, "a", "b") == [True, True]


def test_what_waits_for_its_quota_holds_no_room(scenario: Scenario) -> None:
    scenario.user("alice", cpu_milli=2000)
    scenario.worker("w", cpu=4)
    scenario.launch("a", user="alice", cpu=2)
    scenario.turn()
    scenario.launch("more", user="alice", cpu=2)
    scenario.now += 1
    scenario.launch("b", user="bob", cpu=2)
    scenario.turn()

    assert running(scenario, "more", "b") == [False, True]
    assert scenario.state.hold is None


def test_what_a_lost_worker_had_counts_until_it_is_given_up(scenario: Scenario) -> None:
    scenario.user("alice", cpu_milli=1000)
    scenario.worker("w0", cpu=4)
    scenario.launch("a", user="alice")
    scenario.run("a")
    scenario.launch("b", user="alice")
    scenario.wait(100)

    assert running(scenario, "b") == [False]


def test_unfinished_jobs_are_bounded_and_a_group_is_taken_whole_or_not(scenario: Scenario) -> None:
    scenario.user("alice", jobs=2)
    scenario.launch("a", user="alice")
    with pytest.raises(ResourceExhausted, match="user alice has 1 unfinished jobs and launches 2, the quota is 2"):
        scenario.submit(*(_again(scenario, name) for name in "bc"))
    scenario.submit(_again(scenario, "b"))
    with pytest.raises(ResourceExhausted):
        scenario.submit(_again(scenario, "c"))
    scenario.terminate("b")
    scenario.submit(_again(scenario, "c"))
    scenario.restart()
    with pytest.raises(ResourceExhausted):
        scenario.submit(_again(scenario, "d"))


def _again(scenario: Scenario, name: str) -> JobRow:
    return replace(scenario.job("a"), job_id=JobId(name), name=name)


def test_a_quota_changes_field_by_field_and_outlives_the_tokens(scenario: Scenario) -> None:
    scenario.user("alice", cpu_milli=1000, gpu=0)
    scenario.user("alice", cpu_milli=None, jobs=5)
    quota = scenario.state.quota("alice")
    assert (quota.cpu_milli, quota.gpu, quota.jobs) == (None, 0, 5)
    scenario.restart()
    assert scenario.state.quota("alice") == quota
    assert scenario.state.quota("bob").jobs == scenario.state.settings.max_unfinished_jobs_per_user
    assert scenario.state.quota("").jobs is None
