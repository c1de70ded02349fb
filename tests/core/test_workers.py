import pytest
from tests.core.scenario import GB, Scenario

from fluster.cluster.controller.core.events import Observed, TokenCreated, TokenRevoked, WorkerSynced
from fluster.cluster.controller.core.rows import AttemptState, Charge, RequestRow, Resources, Retry, TokenRow
from fluster.cluster.controller.core.state import Settings
from fluster.cluster.ids import WorkerId
from fluster.cluster.states import Cause, TaskState, WorkerStatus
from fluster.errors import AlreadyExists, FailedPrecondition, NotPermitted


@pytest.fixture
def scenario() -> Scenario:
    """Times that add up to 37 s of silence."""
    return Scenario(Settings(worker_lease_s=30, stop_grace_s=5, lease_margin_s=2))


@pytest.fixture
def running(scenario: Scenario) -> Scenario:
    scenario.worker("w")
    scenario.launch("a", retry=Retry(backoff_s=0))
    scenario.run("a")
    return scenario


def status(scenario: Scenario, name: str) -> WorkerStatus:
    return scenario.state.workers[WorkerId(name)].status


def test_a_silent_worker_is_lost_after_lease_grace_and_margin(running: Scenario) -> None:
    running.wait(36.9)
    assert status(running, "w") is WorkerStatus.READY
    running.wait(0.2)

    assert status(running, "w") is WorkerStatus.LOST
    row = running.attempt("a")
    assert (row.state, row.cause, row.charge) == (AttemptState.FAILED, Cause.WORKER_LOST, Charge.PREEMPTION)
    assert row.error_message == "its worker was silent for 37 s"


def test_a_lost_worker_returns_its_tasks_to_pending_and_they_go_elsewhere(running: Scenario) -> None:
    running.wait(20)
    running.worker("x")
    running.wait(20)

    assert running.states("a") == [TaskState.ASSIGNED]
    assert (running.attempt("a").worker_id, running.attempt("a").number) == ("x", 2)


def test_a_worker_that_speaks_keeps_its_lease(running: Scenario) -> None:
    for _ in range(5):
        running.wait(30)
        running.sync("w")

    assert status(running, "w") is WorkerStatus.READY
    assert running.attempt("a").number == 1


def test_a_lost_worker_gets_no_work(running: Scenario) -> None:
    running.wait(40)

    assert running.turn().placed == []
    assert running.reason("a") == "no worker is ready: 1 lost"


def test_a_lost_worker_that_returns_is_given_work_again(running: Scenario) -> None:
    running.wait(40)
    old = running.attempt("a")
    running.sync("w")
    assert status(running, "w") is WorkerStatus.READY
    running.turn()

    assert running.attempts("a")[0] == old, "what it still reports of the old attempt is late"
    assert running.attempt("a").number == 2
    assert "WorkerReturned" in [line.kind for line in running.store.journal]


def test_a_restarted_worker_goes_on_with_the_attempts_it_still_has(running: Scenario) -> None:
    observed = running.seen["w"]
    running.worker("w", incarnation="second")
    assert running.states("a") == [TaskState.RUNNING], "registering alone decides nothing"
    running.sync("w", *observed.values())

    assert (running.attempt("a").state, running.attempt("a").incarnation) == (AttemptState.RUNNING, "second")
    assert running.attempt("a").number == 1


def test_a_restarted_worker_loses_the_attempts_it_no_longer_has(running: Scenario) -> None:
    running.worker("w", incarnation="second")
    running.sync("w")

    row = running.attempt("a")
    assert (row.cause, row.charge, row.error_message) == (
        Cause.WORKER_LOST,
        Charge.PREEMPTION,
        "its worker restarted without it",
    )


def test_a_restarted_worker_that_stays_silent_is_lost_after_its_new_lease(running: Scenario) -> None:
    running.wait(30)
    running.worker("w", incarnation="second")
    running.wait(30)
    assert running.states("a") == [TaskState.RUNNING]
    running.wait(10)

    assert running.attempt("a").cause is Cause.WORKER_LOST


def test_an_attempt_that_was_placed_but_not_yet_sent_is_not_lost_by_a_report_without_it(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("a")
    scenario.turn()
    scenario.sync("w")  # written before the placement reached it

    assert scenario.states("a") == [TaskState.ASSIGNED]
    assert scenario.attempt("a").number == 1


def test_an_attempt_that_its_worker_knew_and_knows_no_more_is_lost(running: Scenario) -> None:
    running.seen["w"] = {}
    running.sync("w")

    assert running.attempt("a").error_message == "its worker no longer knows it"
    assert running.states("a") == [TaskState.PENDING]


def test_a_report_of_an_older_incarnation_is_refused(running: Scenario) -> None:
    old = running.state.workers[WorkerId("w")].incarnation
    running.worker("w", incarnation="second")

    with pytest.raises(FailedPrecondition, match="not registered with this incarnation"):
        running.apply(WorkerSynced(WorkerId("w"), old, ()))
    assert running.states("a") == [TaskState.RUNNING]


def test_a_report_of_a_worker_nobody_knows_is_refused(scenario: Scenario) -> None:
    with pytest.raises(FailedPrecondition):
        scenario.apply(WorkerSynced(WorkerId("nobody"), "i", ()))


def test_a_worker_that_reports_anothers_attempt_is_refused_whole(running: Scenario) -> None:
    running.worker("thief")
    uid = running.attempt("a").uid
    seen = running.state.last_seen[WorkerId("thief")]
    running.now += 5

    with pytest.raises(NotPermitted, match=f"attempt '{uid}' is not of worker 'thief'"):
        running.sync("thief", Observed(uid, AttemptState.RUNNING, running.now))
    assert running.state.last_seen[WorkerId("thief")] == seen
    assert running.attempt("a").worker_id == "w"


def test_registering_the_same_incarnation_again_changes_nothing(running: Scenario) -> None:
    incarnation = running.state.workers[WorkerId("w")].incarnation
    before = dict(running.store.rows)
    running.worker("w", incarnation=incarnation)

    assert running.store.rows == before


def test_a_report_without_news_writes_nothing(running: Scenario) -> None:
    running.now += 10

    assert not running.sync("w")
    assert running.state.last_seen[WorkerId("w")] == running.now


def test_a_worker_that_comes_to_offer_more_is_believed(running: Scenario) -> None:
    worker = running.state.workers[WorkerId("w")]
    more = Resources(64_000, 64 * GB, slots=20)
    running.apply(WorkerSynced(worker.worker_id, worker.incarnation, tuple(running.seen["w"].values()), more))

    assert running.state.free(running.state.workers[WorkerId("w")]).cpu_milli == 63_000


def test_a_restarted_controller_grants_every_known_worker_a_full_lease(running: Scenario) -> None:
    running.wait(30)
    running.restart()
    running.wait(30)
    assert status(running, "w") is WorkerStatus.READY
    running.wait(10)

    assert status(running, "w") is WorkerStatus.LOST


# Join tokens


def token(scenario: Scenario, uses: int) -> TokenRow:
    row = TokenRow("t1", "0" * 64, uses, scenario.now + 600, scenario.now)
    request = RequestRow("admin", "token", "CreateToken", "0" * 64, "t1", scenario.now)
    scenario.apply(TokenCreated(row, request, "admin"))
    return row


def test_a_token_is_used_up_by_the_workers_that_join_with_it(scenario: Scenario) -> None:
    row = token(scenario, uses=2)
    scenario.worker("w0", joined_by="t1")
    scenario.worker("w0", joined_by="t1")  # again: that is no other worker
    scenario.worker("w1", joined_by="t1")

    assert scenario.state.token_uses_left(row) == 0


def test_a_token_is_not_given_back_by_a_worker_that_has_gone(scenario: Scenario) -> None:
    row = token(scenario, uses=2)
    scenario.worker("w0", joined_by="t1")
    scenario.forget_machines()
    assert scenario.state.token_uses_left(row) == 1
    scenario.restart()

    assert scenario.state.token_uses_left(row) == 1


def test_a_worker_keeps_the_token_it_first_joined_with(scenario: Scenario) -> None:
    token(scenario, uses=2)
    scenario.worker("w0", joined_by="t1")
    scenario.worker("w0")

    assert scenario.state.workers[WorkerId("w0")].joined_by == "t1"


def test_a_token_expires(scenario: Scenario) -> None:
    token(scenario, uses=1)
    scenario.wait(599)
    assert "t1" in scenario.state.tokens
    scenario.wait(1)

    assert scenario.state.tokens == {}
    assert (TokenRow, "t1") not in scenario.store.rows


def test_a_revoked_token_is_gone_and_revoking_it_again_is_harmless(scenario: Scenario) -> None:
    token(scenario, uses=1)
    scenario.worker("w0", joined_by="t1")
    scenario.apply(TokenRevoked("t1", "admin"))

    assert (scenario.state.tokens, scenario.state.joined) == ({}, {})
    assert not scenario.apply(TokenRevoked("t1", "admin"))
    assert "w0" in scenario.state.workers


def test_a_used_up_token_lets_nobody_in_but_who_used_it(scenario: Scenario) -> None:
    token(scenario, uses=1)
    scenario.worker("w0", joined_by="t1")

    with pytest.raises(NotPermitted, match="used up"):
        scenario.worker("w1", joined_by="t1")
    scenario.worker("w0", joined_by="t1")
    assert "w1" not in scenario.state.workers


def test_an_expired_or_unknown_token_lets_nobody_in(scenario: Scenario) -> None:
    token(scenario, uses=1)
    scenario.now += 600

    for name in ("t1", "t2"):
        with pytest.raises(NotPermitted, match="has expired or was revoked"):
            scenario.worker("w0", joined_by=name)


def test_a_token_speaks_for_no_worker_that_is_here_already(scenario: Scenario) -> None:
    token(scenario, uses=2)
    scenario.worker("w0", joined_by="t1")

    with pytest.raises(AlreadyExists, match="a worker 'w0' is here already"):
        scenario.worker("w0", joined_by="t1", credential="e" * 64)


def test_a_machines_own_token_lets_its_workers_in_only_while_it_is_wanted(scenario: Scenario) -> None:
    scenario.allocate("m", "w")
    scenario.worker("w", allocation="m", joined_by="allocation:m")
    scenario.worker("w", allocation="m", joined_by="allocation:m", credential="e" * 64)  # its directory was lost
    scenario.gone("m")

    with pytest.raises(NotPermitted, match="allocation 'm' is not wanted any more"):
        scenario.worker("w", allocation="m", joined_by="allocation:m")
