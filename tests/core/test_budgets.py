import pytest
from tests.core.scenario import START, Scenario

from fluster.cluster.controller.core.gangs import charges
from fluster.cluster.controller.core.rows import AttemptState, Charge, Retry
from fluster.cluster.states import Cause, JobStatus, TaskState

LEASE = 300 + 10 + 5


def launched(scenario: Scenario, retry: Retry) -> Scenario:
    scenario.worker("w")
    scenario.launch("a", retry=retry)
    return scenario


def fail(scenario: Scenario) -> None:
    """One attempt that runs and exits with 1, once its backoff is over."""
    scenario.wait(100)
    scenario.start("a")
    scenario.exit("a", code=1)


def lose_machine(scenario: Scenario) -> None:
    """The worker comes back as a new incarnation that holds nothing."""
    scenario.worker("w")
    scenario.sync("w")


def test_a_budget_of_n_allows_n_retries(scenario: Scenario) -> None:
    launched(scenario, Retry(max_failures=2, backoff_s=0))
    for _ in range(3):
        assert not scenario.status("a").finished()
        fail(scenario)

    assert scenario.status("a") is JobStatus.FAILED
    assert [row.charge for row in scenario.attempts("a")] == [Charge.FAILURE] * 3


def test_failures_do_not_touch_the_preemption_budget_nor_the_other_way_round(scenario: Scenario) -> None:
    launched(scenario, Retry(max_failures=1, max_preemptions=1, backoff_s=0))
    fail(scenario)
    scenario.run("a")
    lose_machine(scenario)
    job = scenario.job("a")
    assert charges(scenario.state, job, 0, Charge.FAILURE) == 1
    assert charges(scenario.state, job, 0, Charge.PREEMPTION) == 1
    assert job.outcome is None

    scenario.run("a")
    lose_machine(scenario)
    job = scenario.job("a")
    assert (job.outcome, job.cause) == (JobStatus.FAILED, Cause.WORKER_LOST)


def test_a_lost_machine_is_no_failure_of_the_job(scenario: Scenario) -> None:
    launched(scenario, Retry(max_failures=0, max_preemptions=3, backoff_s=0))
    for number in (1, 2, 3):
        scenario.run("a")
        lose_machine(scenario)
        assert scenario.attempt("a").number == number
        assert scenario.states("a") == [TaskState.PENDING]

    assert [row.charge for row in scenario.attempts("a")] == [Charge.PREEMPTION] * 3


def test_a_machine_lost_before_the_work_started_costs_nothing_and_is_tried_again_at_once(scenario: Scenario) -> None:
    launched(scenario, Retry(max_preemptions=0))
    scenario.turn()
    scenario.accept("a")
    lose_machine(scenario)

    assert scenario.attempt("a").charge is Charge.NONE
    assert scenario.tasks("a")[0].not_before == scenario.now
    scenario.turn()
    assert scenario.attempt("a").number == 2


def test_a_machine_lost_while_the_work_was_being_built_is_charged(scenario: Scenario) -> None:
    launched(scenario, Retry())
    scenario.turn()
    scenario.accept("a", state=AttemptState.BUILDING)
    lose_machine(scenario)

    assert scenario.attempt("a").charge is Charge.PREEMPTION


def test_a_fault_of_flusters_own_is_charged_as_a_preemption_although_nothing_ran(scenario: Scenario) -> None:
    launched(scenario, Retry(max_failures=0))
    scenario.turn()
    scenario.exit("a", code=None, cause=Cause.START_FAILED, fluster_fault=True, started=False)

    assert scenario.attempt("a").charge is Charge.PREEMPTION
    assert scenario.states("a") == [TaskState.PENDING]


@pytest.mark.parametrize("code", [126, 127])
def test_a_missing_command_is_charged_as_a_failure(scenario: Scenario, code: int) -> None:
    launched(scenario, Retry(max_failures=0))
    scenario.turn()
    scenario.exit("a", code=code, cause=Cause.START_FAILED, user_fault=True, started=False)

    assert scenario.attempt("a").charge is Charge.FAILURE
    job = scenario.job("a")
    assert (job.outcome, job.cause, job.exit_code) == (JobStatus.FAILED, Cause.START_FAILED, code)


def test_a_missing_command_is_tried_again_within_the_failure_budget(scenario: Scenario) -> None:
    launched(scenario, Retry(max_failures=1))
    scenario.turn()
    scenario.exit("a", code=127, cause=Cause.START_FAILED, user_fault=True, started=False)

    assert scenario.states("a") == [TaskState.PENDING]


def test_a_failed_download_is_charged_as_a_preemption_and_tried_again(scenario: Scenario) -> None:
    launched(scenario, Retry(max_failures=0))
    scenario.turn()
    scenario.exit("a", code=None, cause=Cause.BUILD_FAILED, started=False)

    assert scenario.attempt("a").charge is Charge.PREEMPTION
    assert scenario.states("a") == [TaskState.PENDING]


def test_a_build_error_of_the_users_is_final_whatever_the_budget(scenario: Scenario) -> None:
    launched(scenario, Retry(max_failures=5))
    scenario.turn()
    scenario.exit("a", code=None, cause=Cause.BUILD_FAILED, user_fault=True, started=False)

    job = scenario.job("a")
    assert (job.outcome, job.cause) == (JobStatus.FAILED, Cause.BUILD_FAILED)


def test_a_time_limit_is_final_whatever_the_budget(scenario: Scenario) -> None:
    launched(scenario, Retry(max_failures=5))
    scenario.run("a")
    scenario.exit("a", code=143, cause=Cause.TIME_LIMIT)

    job = scenario.job("a")
    assert (job.outcome, job.cause, job.exit_code) == (JobStatus.FAILED, Cause.TIME_LIMIT, 143)


@pytest.mark.parametrize("cause", [Cause.EXCEPTION, Cause.SIGNAL, Cause.OUT_OF_MEMORY, Cause.DISK_FULL, Cause.EXIT])
def test_what_the_work_did_itself_is_charged_as_a_failure(scenario: Scenario, cause: Cause) -> None:
    launched(scenario, Retry(max_failures=1))
    scenario.run("a")
    scenario.exit("a", code=1, cause=cause)

    assert (scenario.attempt("a").cause, scenario.attempt("a").charge) == (cause, Charge.FAILURE)


@pytest.mark.parametrize(
    ("cause", "charge"),
    [(Cause.SIGNAL, Charge.PREEMPTION), (Cause.EXCEPTION, Charge.FAILURE), (Cause.OUT_OF_MEMORY, Charge.FAILURE)],
)
def test_a_job_may_have_signals_charged_as_preemptions_and_nothing_else(
    scenario: Scenario, cause: Cause, charge: Charge
) -> None:
    launched(scenario, Retry(max_failures=1, max_preemptions=1, signals_are_preemptions=True))
    scenario.run("a")
    scenario.exit("a", code=137, cause=cause)

    assert (scenario.attempt("a").cause, scenario.attempt("a").charge) == (cause, charge)


@pytest.mark.parametrize("cause", [Cause.WORKER_LOST, Cause.PREEMPTED])
def test_a_worker_that_gave_the_work_up_itself_is_charged_as_a_preemption(scenario: Scenario, cause: Cause) -> None:
    launched(scenario, Retry(max_failures=0))
    scenario.run("a")
    scenario.exit("a", code=143, cause=cause)

    assert (scenario.attempt("a").cause, scenario.attempt("a").charge) == (cause, Charge.PREEMPTION)
    assert scenario.states("a") == [TaskState.PENDING]


def test_an_exit_code_without_a_cause_is_an_exit(scenario: Scenario) -> None:
    launched(scenario, Retry())
    scenario.run("a")
    scenario.exit("a", code=None)

    assert scenario.attempt("a").cause is Cause.EXIT


def test_the_backoff_doubles_up_to_its_maximum(scenario: Scenario) -> None:
    launched(scenario, Retry(max_failures=9, backoff_s=2, max_backoff_s=10))
    waits = []
    for _ in range(5):
        fail(scenario)
        waits.append(scenario.tasks("a")[0].not_before - scenario.now)

    assert waits == [2, 4, 8, 10, 10]


def test_the_longest_budget_does_not_overflow_the_backoff(scenario: Scenario) -> None:
    launched(scenario, Retry(max_failures=2_000, backoff_s=0.5, max_backoff_s=60))
    for _ in range(40):
        fail(scenario)

    assert scenario.tasks("a")[0].not_before - scenario.now == 60


def test_a_job_in_backoff_is_placed_when_it_is_over_and_not_before(scenario: Scenario) -> None:
    launched(scenario, Retry(max_failures=1, backoff_s=10))
    scenario.run("a")
    scenario.exit("a", code=1)
    decision = scenario.turn()

    assert decision.next_at == START + 10
    assert decision.waiting[scenario.job("a").job_id].position is None
    assert scenario.reason("a") == "tried again in 10.0 s after its last attempt ended"
    scenario.wait(9.9)
    assert scenario.states("a") == [TaskState.PENDING]
    scenario.wait(0.1)
    assert scenario.states("a") == [TaskState.ASSIGNED]


def test_the_journal_tells_what_was_charged_and_what_is_left(scenario: Scenario) -> None:
    launched(scenario, Retry(max_failures=2))
    scenario.run("a")
    scenario.exit("a", code=1)

    line = next(line for line in scenario.store.journal if line.kind == "TaskRetried")
    assert line.message == "failure 1 of 2 allowed (exit), tried again in 1 s"
    assert (line.task, line.attempt) == (0, 2)


def test_a_shutdown_of_the_cluster_costs_nobody_anything(scenario: Scenario) -> None:
    scenario.machine("m", "w0", "w1")
    scenario.launch("a", tasks=2, retry=Retry(max_preemptions=0), cpu=3)
    scenario.launch("b", retry=Retry(max_preemptions=0))
    for name in ("a", "b"):
        scenario.run(name)
    scenario.forget_machines()

    for name in ("a", "b"):
        assert all(row.charge is Charge.NONE for row in scenario.all_attempts(name))
        assert set(scenario.states(name)) == {TaskState.PENDING}
    assert (scenario.state.workers, scenario.state.allocations) == ({}, {})
    scenario.machine("m", "w0", "w1")
    scenario.turn()
    assert [scenario.attempt(name).number for name in ("a", "b")] == [2, 2]
