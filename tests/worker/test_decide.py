from dataclasses import replace
from typing import Any

import pytest

from fluster.cluster.worker.decide import (
    COALESCE_S,
    Answer,
    Drop,
    Known,
    Refuse,
    Session,
    Start,
    Stop,
    Unreported,
    Verdict,
    Wanted,
    ask_at,
    decide,
    hold_s,
    lease_ended,
    on_answer,
    on_failure,
    on_registered,
    pause_s,
    poll_s,
)

SESSION = Session(epoch=3, controller="c", lease_s=30.0, lease_until=130.0, applied_seq=4, desired_version=7)
ANSWER = Answer(
    epoch=3, controller="c", lease_s=30.0, superseded=False, reregister=False, leave=False, desired_version=8
)


def wanted(uid: str, *, stop: bool = False, described: bool = True) -> Wanted:
    return Wanted(uid, stop, described)


def known(uid: str, *, ended: bool = False, stopping: bool = False, dropping: bool = False) -> Known:
    return Known(uid, ended, stopping, dropping)


def test_an_unknown_attempt_is_started() -> None:
    assert decide([wanted("a")], []) == [Start("a")]


def test_an_unknown_attempt_that_is_to_stop_is_reported_as_terminated_without_running() -> None:
    assert decide([wanted("a", stop=True)], []) == [Refuse("a")]


def test_a_known_attempt_is_left_alone() -> None:
    assert decide([wanted("a", described=False), wanted("b")], [known("a"), known("b", ended=True)]) == []


def test_a_running_attempt_with_the_stop_flag_is_stopped_once() -> None:
    assert decide([wanted("a", stop=True)], [known("a")]) == [Stop("a")]
    assert decide([wanted("a", stop=True)], [known("a", stopping=True)]) == []
    assert decide([wanted("a", stop=True)], [known("a", ended=True)]) == []


def test_what_is_not_wanted_is_dropped_before_anything_starts() -> None:
    assert decide([wanted("b")], [known("a"), known("c", ended=True)]) == [Drop("a"), Drop("c"), Start("b")]


def test_an_attempt_that_is_being_dropped_is_left_to_that() -> None:
    assert decide([], [known("a", dropping=True)]) == []
    assert decide([wanted("a", stop=True)], [known("a", dropping=True)]) == []


def test_an_attempt_without_description_waits_for_the_next_answer() -> None:
    assert decide([wanted("a", described=False), wanted("b", stop=True, described=False)], []) == []


def test_an_answer_renews_the_lease_from_the_moment_of_asking() -> None:
    session, verdict = on_answer(SESSION, ANSWER, seq=5, asked_at=110.0, now=119.0)
    assert verdict is Verdict.APPLY
    assert session.lease_until == 140.0
    assert (session.applied_seq, session.desired_version) == (5, 8)


@pytest.mark.parametrize("other", [{"epoch": 2}, {"controller": "copy"}, {"epoch": 2, "controller": "copy"}])
def test_an_answer_of_an_older_epoch_or_of_a_copy_is_not_obeyed_and_counts_as_no_answer(other: Any) -> None:
    session, verdict = on_answer(SESSION, replace(ANSWER, **other), seq=5, asked_at=110.0, now=111.0)
    assert verdict is Verdict.IGNORE
    assert session.lease_until == SESSION.lease_until
    assert session.not_before > 111.0


def test_a_superseded_answer_changes_nothing() -> None:
    session, verdict = on_answer(SESSION, replace(ANSWER, superseded=True), seq=5, asked_at=110.0, now=111.0)
    assert verdict is Verdict.IGNORE
    assert session == SESSION


def test_an_answer_to_an_older_request_than_the_last_applied_one_is_ignored() -> None:
    session, verdict = on_answer(SESSION, ANSWER, seq=4, asked_at=129.0, now=129.0)
    assert (session, verdict) == (SESSION, Verdict.IGNORE)


def test_an_unknown_incarnation_registers_again_without_a_new_lease() -> None:
    session, verdict = on_answer(SESSION, replace(ANSWER, reregister=True), seq=5, asked_at=110.0, now=111.0)
    assert verdict is Verdict.REREGISTER
    assert session.lease_until == SESSION.lease_until


def test_leaving_is_asked_for_by_an_answer() -> None:
    assert on_answer(SESSION, replace(ANSWER, leave=True), seq=5, asked_at=110.0, now=111.0)[1] is Verdict.LEAVE


def test_registering_grants_a_lease_and_forgets_the_version() -> None:
    session = on_registered(SESSION, epoch=4, controller="d", lease_s=6.0, asked_at=200.0)
    assert session is not None
    assert (session.epoch, session.lease_until, session.desired_version) == (4, 206.0, 0)


def test_an_older_controller_cannot_register_this_worker() -> None:
    assert on_registered(SESSION, epoch=2, controller="c", lease_s=6.0, asked_at=200.0) is None


def test_pauses_double_from_a_tenth_of_a_second_to_two() -> None:
    assert [pause_s(n) for n in (1, 2, 3, 5, 6, 1000)] == [0.1, 0.2, 0.4, 1.6, 2.0, 2.0]
    assert on_failure(SESSION, now=50.0).not_before == 50.1


def test_polls_are_a_third_of_the_lease_or_twenty_seconds() -> None:
    assert poll_s(6.0) == 2.0
    assert poll_s(300.0) == 20.0
    assert hold_s(SESSION) == 10.0


def test_a_request_after_one_without_an_answer_is_not_held() -> None:
    assert hold_s(on_failure(SESSION, now=50.0)) == 0.0


def test_the_lease_ends_at_its_moment() -> None:
    assert not lease_ended(SESSION, 129.9)
    assert lease_ended(SESSION, 130.0)


def test_without_news_one_request_waits_at_the_controller() -> None:
    assert ask_at(SESSION, None, 0) == 0.0
    assert ask_at(SESSION, None, 1) is None


def test_an_end_is_reported_at_once_on_a_second_connection() -> None:
    assert ask_at(SESSION, Unreported(since=100.0, urgent=True), 1) == 100.0
    assert ask_at(SESSION, Unreported(since=100.0, urgent=True), 2) is None


def test_a_start_waits_a_few_milliseconds_for_its_end() -> None:
    assert ask_at(SESSION, Unreported(since=100.0, urgent=False), 1) == 100.0 + COALESCE_S


def test_nothing_is_asked_while_pausing() -> None:
    paused = replace(SESSION, not_before=111.0)
    assert ask_at(paused, None, 0) == 111.0
    assert ask_at(paused, Unreported(since=100.0, urgent=True), 0) == 111.0
