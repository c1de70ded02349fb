from dataclasses import replace

import pytest
from tests.core.scenario import Scenario

from fluster.cluster.controller.core.events import JobsSubmitted, NewJob
from fluster.cluster.controller.core.rows import RequestRow, SpecRow
from fluster.cluster.controller.core.state import Settings
from fluster.cluster.controller.core.transitions import apply
from fluster.cluster.states import Cause, JobStatus, TaskState
from fluster.errors import FailedPrecondition, FlusterError, JobNotFound, ResourceExhausted


def test_a_launched_job_is_pending_with_all_its_tasks_and_its_spec(scenario: Scenario) -> None:
    scenario.launch("a", tasks=3)

    assert scenario.status("a") is JobStatus.PENDING
    assert scenario.states("a") == [TaskState.PENDING] * 3
    assert scenario.store.rows[SpecRow, "a"] == SpecRow(scenario.job("a").job_id, b"spec")
    assert scenario.kinds("a") == ["JobLaunched"]


def test_the_answer_of_a_launch_is_kept_in_the_same_turn(scenario: Scenario) -> None:
    scenario.launch("a")
    request = RequestRow("job:x", "r1", "LaunchJobs", "f" * 64, "b", scenario.now)
    row = replace(scenario.job("a"), job_id=type(scenario.job("a").job_id)("b"))

    changes = scenario.apply(JobsSubmitted((NewJob(row, b""),), request))

    assert changes.rows[RequestRow, ("job:x", "r1")] == request


def test_a_group_of_jobs_is_taken_in_whole_or_not_at_all(scenario: Scenario) -> None:
    scenario.launch("a")
    good = replace(scenario.job("a"), job_id=type(scenario.job("a").job_id)("b"))
    orphan = replace(good, job_id=type(good.job_id)("c"), parent=type(good.job_id)("gone"))

    with pytest.raises(FailedPrecondition, match="'gone' has ended"):
        scenario.submit(good, orphan)

    assert list(scenario.state.jobs) == ["a"]


def test_a_trivial_job_goes_through_its_states_and_succeeds(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("a")
    scenario.turn()
    assert (scenario.status("a"), scenario.states("a")) == (JobStatus.PENDING, [TaskState.ASSIGNED])
    scenario.start("a")
    assert (scenario.status("a"), scenario.states("a")) == (JobStatus.RUNNING, [TaskState.RUNNING])
    scenario.now += 5
    scenario.exit("a")

    job = scenario.job("a")
    assert (job.outcome, job.exit_code, job.cause, job.error_message) == (JobStatus.SUCCEEDED, 0, None, "")
    assert job.finished_at == scenario.now
    assert scenario.states("a") == [TaskState.SUCCEEDED]
    assert scenario.kinds("a") == ["JobLaunched", "TaskPlaced", "TaskStarted", "TaskSucceeded", "JobSucceeded"]


def test_a_job_without_budget_fails_with_cause_code_and_message_of_the_task_that_decided(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("a", tasks=2, gang=False)
    scenario.run("a")
    scenario.exit("a", 1, code=3, message="exited with code 3\nlast line")

    assert scenario.status("a") is JobStatus.RUNNING, "something of it still runs"
    assert scenario.attempt("a", 0).stop_cause is Cause.TERMINATED
    scenario.exit("a", 0, code=143, stopped=True)

    job = scenario.job("a")
    assert (job.outcome, job.cause, job.exit_code, job.decided_by) == (JobStatus.FAILED, Cause.EXIT, 3, 1)
    assert job.error_message == "exited with code 3\nlast line"
    assert scenario.states("a") == [TaskState.STOPPED, TaskState.FAILED]


def test_a_job_that_fails_takes_its_waiting_tasks_along(scenario: Scenario) -> None:
    scenario.worker("w", cpu=1)
    scenario.launch("a", tasks=3, gang=False)
    scenario.run("a", tasks=[0])
    scenario.exit("a", 0, code=1)

    assert scenario.status("a") is JobStatus.FAILED
    assert scenario.states("a") == [TaskState.FAILED, TaskState.STOPPED, TaskState.STOPPED]


def test_terminating_a_waiting_job_ends_it_at_once(scenario: Scenario) -> None:
    scenario.launch("a", tasks=2)
    scenario.terminate("a")

    job = scenario.job("a")
    assert (job.outcome, job.cause, job.exit_code, job.decided_by) == (JobStatus.STOPPED, Cause.TERMINATED, None, -1)
    assert job.error_message == "terminated by admin"
    assert scenario.states("a") == [TaskState.STOPPED] * 2
    assert scenario.kinds("a") == ["JobLaunched", "JobStopRequested", "JobStopped"]


def test_terminating_a_running_job_waits_for_its_processes(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("a")
    scenario.run("a")
    scenario.terminate("a")

    assert scenario.status("a") is JobStatus.RUNNING
    scenario.exit("a", code=143, stopped=True)
    job = scenario.job("a")
    assert (job.outcome, job.exit_code, job.decided_by) == (JobStatus.STOPPED, 143, 0)


def test_terminating_twice_changes_nothing_more(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("a")
    scenario.run("a")
    scenario.terminate("a")
    scenario.now += 1
    again = scenario.terminate("a")

    assert not again
    assert scenario.job("a").stop_at == scenario.now - 1


def test_terminating_a_job_nobody_knows_is_refused(scenario: Scenario) -> None:
    with pytest.raises(JobNotFound, match="no job 'zzz'"):
        scenario.terminate("zzz")


def test_a_job_being_stopped_gets_no_new_attempts(scenario: Scenario) -> None:
    scenario.worker("w", cpu=1)
    scenario.launch("a", tasks=2, gang=False)
    scenario.run("a", tasks=[0])
    scenario.terminate("a")
    scenario.worker("w2")

    assert scenario.turn().placed == []
    assert scenario.states("a") == [TaskState.RUNNING, TaskState.STOPPED]


# Parents and children


def family(scenario: Scenario) -> None:
    """a launched b, b launched c; b has succeeded."""
    scenario.worker("w")
    scenario.launch("a")
    scenario.launch("b", parent="a")
    scenario.launch("c", parent="b")
    for name in "abc":
        scenario.run(name)
    scenario.exit("b")


def test_terminating_reaches_all_descendants(scenario: Scenario) -> None:
    for name, parent in (("a", None), ("b", "a"), ("c", "b"), ("other", None)):
        scenario.launch(name, parent=parent)
    scenario.terminate("a")

    assert [scenario.status(name) for name in ("a", "b", "c")] == [JobStatus.STOPPED] * 3
    assert scenario.job("c").error_message == "its ancestor a was terminated by admin"
    assert scenario.status("other") is JobStatus.PENDING


def test_a_parent_that_succeeds_leaves_its_children_running(scenario: Scenario) -> None:
    family(scenario)

    assert scenario.status("c") is JobStatus.RUNNING
    assert scenario.job("c").stop_at is None


def test_terminating_reaches_descendants_through_a_job_that_has_succeeded(scenario: Scenario) -> None:
    family(scenario)
    scenario.terminate("a")

    assert scenario.attempt("c").stop_cause is Cause.TERMINATED


def test_terminating_a_finished_job_stops_its_descendants(scenario: Scenario) -> None:
    family(scenario)
    scenario.terminate("b")

    assert scenario.attempt("c").stop_cause is Cause.TERMINATED
    assert scenario.attempt("a").stop_cause is None


def test_a_parent_that_fails_takes_its_descendants_along_through_one_that_succeeded(scenario: Scenario) -> None:
    family(scenario)
    scenario.exit("a", code=1)

    assert scenario.attempt("c").stop_cause is Cause.TERMINATED
    assert scenario.attempt("c").stop_reason == "its ancestor a failed"


def test_nothing_is_remembered_of_a_family_that_has_ended(scenario: Scenario) -> None:
    family(scenario)
    scenario.exit("a")
    scenario.exit("c")

    assert (scenario.state.jobs, scenario.state.children, scenario.state.parents) == ({}, {}, {})
    assert (scenario.state.attempts, scenario.state.history, scenario.state.held) == ({}, {}, {})


def test_a_job_that_has_ended_can_launch_nothing(scenario: Scenario) -> None:
    scenario.launch("a")
    scenario.terminate("a")

    with pytest.raises(FailedPrecondition, match="parent job 'a' has ended"):
        scenario.launch("b", parent="a")


def test_a_job_that_is_being_stopped_can_launch_nothing(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("a")
    scenario.run("a")
    scenario.terminate("a")

    with pytest.raises(FailedPrecondition, match="parent job 'a' is being stopped"):
        scenario.launch("b", parent="a")


def test_jobs_nest_only_so_deep() -> None:
    scenario = Scenario(Settings(max_depth=2))
    scenario.launch("a")
    scenario.launch("b", parent="a")
    scenario.launch("c", parent="b")

    with pytest.raises(ResourceExhausted, match="jobs nest at most 2 deep"):
        scenario.launch("d", parent="c")


def test_only_so_many_jobs_are_taken_in() -> None:
    scenario = Scenario(Settings(max_unfinished_jobs=2))
    scenario.launch("a")
    scenario.launch("b")

    with pytest.raises(ResourceExhausted, match="2 jobs are unfinished, the limit is 2"):
        scenario.launch("c")
    scenario.terminate("a")
    scenario.launch("c")


# Waiting too long


def test_a_job_that_is_not_placed_in_time_fails_with_the_reason_it_waited_for(scenario: Scenario) -> None:
    scenario.worker("w", cpu=2)
    scenario.launch("a", cpu=8, scheduling_timeout_s=30)
    scenario.turn()
    scenario.wait(29)
    assert scenario.status("a") is JobStatus.PENDING
    scenario.wait(1)

    job = scenario.job("a")
    assert (job.outcome, job.cause, job.exit_code) == (JobStatus.FAILED, Cause.UNSCHEDULABLE, None)
    assert job.error_message == (
        "not placed within 30 s: no worker can hold one task: 8 cpu needed, 2 on the largest worker"
    )


def test_a_placed_job_does_not_run_into_its_scheduling_timeout(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("a", scheduling_timeout_s=30)
    scenario.run("a")
    scenario.wait(100)

    assert scenario.status("a") is JobStatus.RUNNING


def test_a_retry_waits_anew_for_its_place(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("a", scheduling_timeout_s=30)
    scenario.run("a")
    scenario.wait(300)
    scenario.worker("w")  # its machine was restarted and has lost the attempt
    scenario.sync("w")
    assert scenario.status("a") is JobStatus.PENDING
    scenario.wait(0.5)

    assert scenario.status("a") is JobStatus.PENDING


def test_what_is_refused_changes_nothing(scenario: Scenario) -> None:
    scenario.launch("a")
    row = scenario.job("a")
    request = RequestRow("admin", "r", "LaunchJobs", "0" * 64, "", scenario.now)
    orphan = NewJob(replace(row, job_id=type(row.job_id)("x"), parent=type(row.job_id)("gone")), b"")

    with pytest.raises(FlusterError):
        apply(scenario.state, JobsSubmitted((orphan,), request), scenario.now)

    assert list(scenario.state.jobs) == ["a"]
    assert scenario.state.tasks.keys() == {"a"}
