import pytest
from tests.core.scenario import Scenario

from fluster.cluster.controller.core.rows import AttemptState, Charge, Retry
from fluster.cluster.ids import WorkerId
from fluster.cluster.states import Cause, JobStatus, TaskState

LEASE = 300 + 10 + 5


@pytest.fixture
def pair(scenario: Scenario) -> Scenario:
    """A gang of two that runs, each on a worker of its own; one failure is allowed."""
    scenario.worker("w0", cpu=1)
    scenario.worker("w1", cpu=1)
    scenario.launch("g", tasks=2, retry=Retry(max_failures=1, backoff_s=0))
    scenario.run("g")
    return scenario


def causes(scenario: Scenario, number: int = -1) -> list[tuple[AttemptState, Cause | None, Charge]]:
    rows = [scenario.attempts("g", task)[number] for task in range(scenario.job("g").num_tasks)]
    return [(row.state, row.cause, row.charge) for row in rows]


def test_a_gang_is_placed_whole_or_not_at_all(scenario: Scenario) -> None:
    scenario.worker("w0", cpu=2)
    scenario.launch("g", tasks=3)
    scenario.turn()
    assert scenario.states("g") == [TaskState.PENDING] * 3

    scenario.worker("w1", cpu=1)
    scenario.turn()
    assert scenario.states("g") == [TaskState.ASSIGNED] * 3
    assert [row.worker_id for row in scenario.all_attempts("g")] == ["w0", "w0", "w1"]


def test_tasks_without_a_gang_are_placed_as_room_comes(scenario: Scenario) -> None:
    scenario.worker("w0", cpu=2)
    scenario.launch("g", tasks=3, gang=False)
    scenario.turn()

    assert scenario.states("g") == [TaskState.ASSIGNED, TaskState.ASSIGNED, TaskState.PENDING]


def test_a_gang_succeeds_when_its_last_member_has_exited_with_0(pair: Scenario) -> None:
    pair.exit("g", 0)
    assert pair.states("g") == [TaskState.RUNNING] * 2
    pair.exit("g", 1)

    assert pair.states("g") == [TaskState.SUCCEEDED] * 2
    assert pair.status("g") is JobStatus.SUCCEEDED


def test_a_member_that_exited_with_0_keeps_its_resources_until_all_have(pair: Scenario) -> None:
    pair.exit("g", 0)
    pair.launch("b")
    pair.turn()

    assert pair.attempt("g", 0).state is AttemptState.EXITED
    assert pair.states("b") == [TaskState.PENDING]
    assert pair.state.free(pair.state.workers[pair.attempt("g", 0).worker_id]).cpu_milli == 0
    pair.exit("g", 1)
    pair.turn()
    assert pair.states("b") == [TaskState.ASSIGNED]


def test_a_member_that_exited_with_0_outlives_its_worker(pair: Scenario) -> None:
    pair.exit("g", 0)
    pair.wait(200)
    pair.sync("w1")
    pair.wait(200)  # the lease of w0 has run out meanwhile
    pair.exit("g", 1)

    assert pair.status("g") is JobStatus.SUCCEEDED


def test_when_one_member_fails_the_others_are_told_to_stop(pair: Scenario) -> None:
    pair.exit("g", 0, code=1)

    other = pair.attempt("g", 1)
    assert (other.state, other.stop_cause) == (AttemptState.RUNNING, Cause.TERMINATED)
    assert other.stop_reason == "task 0 of its gang ended: exit"
    assert pair.states("g") == [TaskState.RUNNING] * 2
    assert pair.turn().placed == [], "not before nothing of the old round is left"


def test_a_gang_that_fails_together_is_charged_once_and_tried_again_together(pair: Scenario) -> None:
    pair.exit("g", 0, code=1)
    pair.exit("g", 1, code=143, stopped=True)

    assert causes(pair) == [
        (AttemptState.FAILED, Cause.EXIT, Charge.FAILURE),
        (AttemptState.STOPPED, Cause.TERMINATED, Charge.NONE),
    ]
    assert pair.states("g") == [TaskState.PENDING] * 2
    pair.turn()
    assert [row.number for row in pair.all_attempts("g")] == [2, 2]


def test_a_member_that_had_exited_with_0_runs_again_with_its_gang(pair: Scenario) -> None:
    pair.exit("g", 0)
    pair.exit("g", 1, code=1)

    assert causes(pair) == [
        (AttemptState.STOPPED, Cause.TERMINATED, Charge.NONE),
        (AttemptState.FAILED, Cause.EXIT, Charge.FAILURE),
    ]
    assert pair.attempt("g", 0).error_message == "task 1 of its gang did not succeed"
    pair.turn()
    assert [row.number for row in pair.all_attempts("g")] == [2, 2]


def test_members_that_fail_at_the_same_time_cost_one_charge(pair: Scenario) -> None:
    pair.now += 10
    pair.exit("g", 0, code=1, finished_at=pair.now - 1)
    pair.exit("g", 1, code=2, finished_at=pair.now - 2)

    assert [charge for _, _, charge in causes(pair)] == [Charge.NONE, Charge.FAILURE], "the earlier one decides"
    assert pair.states("g") == [TaskState.PENDING] * 2


def test_the_order_of_reports_does_not_decide_who_is_charged(pair: Scenario) -> None:
    pair.now += 10
    pair.exit("g", 1, code=2, finished_at=pair.now - 2)
    pair.exit("g", 0, code=1, finished_at=pair.now - 1)

    assert [charge for _, _, charge in causes(pair)] == [Charge.NONE, Charge.FAILURE]


def test_a_gang_whose_budget_is_spent_fails_its_job(pair: Scenario) -> None:
    for _ in range(2):
        pair.exit("g", 0, code=1)
        pair.exit("g", 1, code=143, stopped=True)
        pair.run("g", tasks=[0, 1] if not pair.status("g").finished() else [])

    job = pair.job("g")
    assert (job.outcome, job.cause, job.exit_code, job.decided_by) == (JobStatus.FAILED, Cause.EXIT, 1, 0)
    assert pair.states("g") == [TaskState.FAILED, TaskState.STOPPED]
    assert pair.kinds("g").count("GangRetried") == 1


def test_without_a_gang_each_task_has_its_own_budget(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("g", tasks=2, gang=False, retry=Retry(max_failures=1, backoff_s=0))
    scenario.run("g")
    scenario.exit("g", 0, code=1)
    assert scenario.attempt("g", 1).stop_cause is None, "the other is not concerned"
    scenario.run("g", tasks=[0])
    scenario.exit("g", 1, code=1)
    scenario.run("g", tasks=[1])
    assert [row.number for row in scenario.all_attempts("g")] == [2, 2]
    scenario.exit("g", 0)
    scenario.exit("g", 1)

    assert scenario.status("g") is JobStatus.SUCCEEDED


# Who is to blame


def test_a_lost_machine_is_to_blame_for_the_crash_of_the_others(pair: Scenario) -> None:
    pair.now += 50  # w1 was last heard of 50 s ago
    pair.exit("g", 0, code=1)
    pair.wait(LEASE)
    assert pair.attempt("g", 1).cause is Cause.WORKER_LOST

    assert causes(pair) == [
        (AttemptState.FAILED, Cause.EXIT, Charge.NONE),
        (AttemptState.FAILED, Cause.WORKER_LOST, Charge.PREEMPTION),
    ]
    assert pair.status("g") is JobStatus.PENDING


def test_a_machine_that_was_heard_of_after_the_crash_is_not_to_blame_for_it(pair: Scenario) -> None:
    pair.now += 50
    pair.exit("g", 0, code=1)
    pair.now += 1
    pair.sync("w1")
    pair.wait(LEASE)

    assert causes(pair) == [
        (AttemptState.FAILED, Cause.EXIT, Charge.FAILURE),
        (AttemptState.STOPPED, Cause.TERMINATED, Charge.NONE),
    ]


def test_a_machine_that_restarted_is_to_blame_although_it_has_registered_since(pair: Scenario) -> None:
    pair.now += 50
    pair.exit("g", 0, code=1)
    pair.now += 30
    pair.worker("w1", cpu=1)  # a new incarnation: that it is here says nothing of the old one
    pair.now += 1
    pair.sync("w1")

    assert causes(pair) == [
        (AttemptState.FAILED, Cause.EXIT, Charge.NONE),
        (AttemptState.FAILED, Cause.WORKER_LOST, Charge.PREEMPTION),
    ]


def test_a_machine_that_registered_and_fell_silent_again_is_to_blame(pair: Scenario) -> None:
    pair.now += 50
    pair.exit("g", 0, code=1)
    pair.now += 30
    pair.worker("w1", cpu=1)
    pair.wait(LEASE)

    assert causes(pair)[1] == (AttemptState.FAILED, Cause.WORKER_LOST, Charge.PREEMPTION)


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_clocks_of_workers_do_not_decide_who_is_to_blame(pair: Scenario, skew: float) -> None:
    pair.now += 50
    pair.exit("g", 0, code=1, finished_at=pair.now + skew)
    pair.wait(LEASE)

    assert causes(pair)[1] == (AttemptState.FAILED, Cause.WORKER_LOST, Charge.PREEMPTION)


def test_after_a_restart_of_the_controller_the_machine_is_to_blame(pair: Scenario) -> None:
    pair.now += 50
    pair.exit("g", 0, code=1)
    pair.restart()
    pair.wait(LEASE)

    assert causes(pair)[1] == (AttemptState.FAILED, Cause.WORKER_LOST, Charge.PREEMPTION)


def test_a_machine_lost_before_its_member_started_is_still_to_blame_for_the_crash_of_the_others(
    scenario: Scenario,
) -> None:
    scenario.worker("w0", cpu=1)
    scenario.worker("w1", cpu=1)
    scenario.launch("g", tasks=2)
    scenario.run("g", tasks=[0])
    scenario.now += 50
    scenario.exit("g", 0, code=1, message="no peer came")
    scenario.wait(LEASE)

    assert causes(scenario) == [
        (AttemptState.FAILED, Cause.EXIT, Charge.NONE),
        (AttemptState.FAILED, Cause.WORKER_LOST, Charge.PREEMPTION),
    ]
    assert scenario.status("g") is JobStatus.PENDING


def test_a_gang_stopped_by_a_lost_machine_is_charged_one_preemption(pair: Scenario) -> None:
    pair.wait(200)
    pair.sync("w0")
    pair.wait(200)  # w1 is lost
    assert pair.attempt("g", 0).stop_reason == "task 1 of its gang ended: worker_lost"
    pair.exit("g", 0, code=143, stopped=True)

    assert causes(pair) == [
        (AttemptState.STOPPED, Cause.TERMINATED, Charge.NONE),
        (AttemptState.FAILED, Cause.WORKER_LOST, Charge.PREEMPTION),
    ]


def test_a_gang_whose_machines_are_all_lost_is_charged_one_preemption(pair: Scenario) -> None:
    pair.wait(LEASE)

    charged = [charge for _, _, charge in causes(pair)]
    assert sorted(charged) == [Charge.NONE, Charge.PREEMPTION]
    assert pair.states("g") == [TaskState.PENDING] * 2


def test_a_member_that_exited_on_a_machine_that_is_gone_reserves_nothing_on_the_next_of_its_name(
    scenario: Scenario,
) -> None:
    scenario.machine("m", "h", cpu=8)
    scenario.worker("w", cpu=4)
    scenario.launch("gang", tasks=3, cpu=4)
    scenario.run("gang")
    on_h = [attempt.task for attempt in scenario.all_attempts("gang") if attempt.worker_id == "h"]
    for task in on_h:
        scenario.exit("gang", task=task)
    scenario.gone("m")
    scenario.now += 10
    scenario.machine("m", "h", cpu=4)

    assert len(on_h) == 2
    assert scenario.state.free(scenario.state.workers[WorkerId("h")]).cpu_milli == 4_000
    scenario.launch("next", cpu=4)
    scenario.turn()
    assert scenario.attempt("next").worker_id == "h"
