import pytest
from tests.core.scenario import Scenario

from fluster.cluster.controller.core.events import Observed
from fluster.cluster.controller.core.rows import AttemptState, Charge, Retry
from fluster.cluster.controller.core.schedule import schedule
from fluster.cluster.states import Cause, JobStatus, TaskState
from fluster.errors import FailedPrecondition


@pytest.fixture
def running(scenario: Scenario) -> Scenario:
    scenario.worker("w")
    scenario.launch("a", retry=Retry(max_failures=3))
    scenario.run("a")
    return scenario


def test_a_task_told_to_stop_is_stopped_even_if_it_then_exits_with_0(running: Scenario) -> None:
    running.terminate("a")
    running.exit("a", code=0, stopped=True)

    row = running.attempt("a")
    assert (row.state, row.cause, row.exit_code, row.charge) == (
        AttemptState.STOPPED,
        Cause.TERMINATED,
        0,
        Charge.NONE,
    )
    assert running.states("a") == [TaskState.STOPPED]
    assert running.status("a") is JobStatus.STOPPED


def test_a_task_that_ended_well_before_it_was_told_to_stop_has_succeeded(running: Scenario) -> None:
    running.terminate("a")
    running.exit("a", code=0)  # its process had ended when the word came

    job = running.job("a")
    assert (job.outcome, job.cause, job.exit_code, job.error_message) == (JobStatus.SUCCEEDED, None, 0, "")


def test_a_task_that_failed_by_itself_while_being_told_to_stop_is_not_tried_again(running: Scenario) -> None:
    running.terminate("a")
    running.exit("a", code=1)

    assert running.states("a") == [TaskState.FAILED]
    job = running.job("a")
    assert (job.outcome, job.cause) == (JobStatus.STOPPED, Cause.TERMINATED)


def test_a_gang_of_which_one_ended_well_and_one_was_stopped_is_stopped(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("g", tasks=2)
    scenario.run("g")
    scenario.exit("g", 0)
    scenario.terminate("g")
    scenario.exit("g", 1, code=143, stopped=True)

    assert scenario.states("g") == [TaskState.STOPPED] * 2
    assert scenario.status("g") is JobStatus.STOPPED


def test_tasks_without_a_gang_keep_what_they_reached_when_the_job_is_stopped(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("g", tasks=2, gang=False)
    scenario.run("g")
    scenario.exit("g", 0)
    scenario.terminate("g")
    scenario.exit("g", 1, code=143, stopped=True)

    assert scenario.states("g") == [TaskState.SUCCEEDED, TaskState.STOPPED]
    assert scenario.status("g") is JobStatus.STOPPED


def test_a_stopped_task_says_who_stopped_it_and_what_it_printed_last(running: Scenario) -> None:
    running.terminate("a")
    running.exit("a", code=143, stopped=True, message="ended by SIGTERM\nbye")

    assert running.attempt("a").error_message == "terminated by admin: ended by SIGTERM\nbye"


def test_a_job_terminated_in_its_backoff_ends_at_once(running: Scenario) -> None:
    running.exit("a", code=1)
    running.terminate("a")

    assert running.status("a") is JobStatus.STOPPED
    assert running.states("a") == [TaskState.STOPPED]


def test_a_job_whose_worker_is_lost_while_it_is_being_stopped_is_stopped(running: Scenario) -> None:
    running.terminate("a")
    running.wait(1_000)

    row = running.attempt("a")
    assert (row.state, row.cause, row.charge) == (AttemptState.STOPPED, Cause.TERMINATED, Charge.NONE)
    assert running.status("a") is JobStatus.STOPPED


def test_what_a_worker_stopped_on_its_own_is_the_workers_doing(running: Scenario) -> None:
    running.exit("a", code=143, stopped=True)

    row = running.attempt("a")
    assert (row.state, row.cause, row.charge) == (AttemptState.FAILED, Cause.WORKER_LOST, Charge.PREEMPTION)
    assert running.states("a") == [TaskState.PENDING]


def test_an_attempt_that_never_reached_its_worker_ends_when_the_worker_refuses_it(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("a")
    scenario.turn()
    scenario.terminate("a")
    assert scenario.status("a") is JobStatus.PENDING, "a process may be on its way"
    scenario.exit("a", code=None, cause=Cause.TERMINATED, stopped=True, started=False)

    assert scenario.status("a") is JobStatus.STOPPED
    assert scenario.job("a").exit_code is None


def test_reports_of_an_ended_attempt_change_nothing_and_are_counted(running: Scenario) -> None:
    first = running.attempt("a")
    running.exit("a", code=1)
    late = running.exit("a", code=0)

    assert not late
    assert running.state.late_reports == 1
    assert running.attempt("a").exit_code == 1
    running.wait(10)
    assert not running.sync("w", Observed(first.uid, AttemptState.RUNNING, running.now)), "nor that it runs"


def test_reports_of_a_finished_job_change_nothing(running: Scenario) -> None:
    running.exit("a")
    late = running.exit("a", code=1)

    assert not late
    assert running.status("a") is JobStatus.SUCCEEDED


def test_states_only_go_forward(running: Scenario) -> None:
    changes = running.accept("a", state=AttemptState.BUILDING)

    assert not changes
    assert running.states("a") == [TaskState.RUNNING]


def test_a_report_that_jumps_over_states_is_taken_whole(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("a")
    scenario.turn()
    scenario.exit("a", code=0)

    assert scenario.status("a") is JobStatus.SUCCEEDED
    assert scenario.attempt("a").started_at == scenario.now
    assert scenario.kinds("a")[-3:] == ["TaskStarted", "TaskSucceeded", "JobSucceeded"]


def test_each_step_of_a_task_has_its_line_of_history(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("g", tasks=2)
    scenario.turn()
    scenario.accept("g", 0, state=AttemptState.BUILDING)
    scenario.start("g", 0)
    scenario.exit("g", 0)

    lines = [(line.kind, line.task, line.actor) for line in scenario.store.journal if line.job_id == "g"]
    assert lines == [
        ("JobLaunched", -1, "admin"),
        ("TaskPlaced", 0, "controller"),
        ("TaskPlaced", 1, "controller"),
        ("TaskAccepted", 0, "worker:w"),
        ("TaskStarted", 0, "worker:w"),
        ("TaskExited", 0, "worker:w"),
    ]


def test_a_placement_decided_before_something_else_happened_is_refused(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("a", tasks=2)
    (placed,) = scenario.turn().placed

    with pytest.raises(FailedPrecondition, match="does not wait for this placement"):
        scenario.apply(placed)
    scenario.launch("b")
    (placed,) = schedule(scenario.state, scenario.now).placed
    scenario.terminate("b")
    with pytest.raises(FailedPrecondition):
        scenario.apply(placed)
