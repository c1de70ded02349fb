"""fray's jobs, actors and groups on a cluster, from an environment that has fray and not the server extra."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integrations.zephyr_python import Driver

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def fray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    with Driver("fray_programs", tmp_path_factory.mktemp("fray"), cpu=4) as driver:
        yield driver


def test_jobs_end_as_their_callable_or_program_does(fray: Driver) -> None:
    found = fray("jobs")
    assert found["statuses"] == ["succeeded", "failed", "failed"]
    assert found["logs"] == [["printed here"], ["a program"]]
    assert found["id"].startswith("ok/")
    assert found["bad"] == "on purpose"
    assert "exit code 3" in found["binary"]


def test_the_name_of_an_unfinished_job_is_adopted_or_refused(fray: Driver) -> None:
    assert fray("names") == {
        "adopted": True,
        "refused": True,
        "ended": "succeeded",
        "again": True,
        "stopped": "stopped",
        "stopped at last": "stopped",
    }


def test_failures_are_bounded_for_each_task_and_in_all_and_a_signal_of_an_actor_is_none(fray: Driver) -> None:
    assert fray("budgets") == {"failed": [2, 2, 1], "killed": 2, "machines": 7}


def test_an_actor_answers_while_a_call_of_it_runs_and_its_errors_arrive_as_they_are(fray: Driver) -> None:
    found = fray("actors")
    assert found["called at start"] == 5
    assert found["at once"] == 100
    assert found["added"] == 7
    assert found["called"] == found["beside"] == found["itself"] == 8
    assert found["ctx"] == 7
    assert found["timeout"].startswith("TimeoutError")
    assert found["held"] == "opened"
    assert found["raised"].startswith("KeyError")
    assert "a message of the actor's" in found["raised"]
    assert "cannot travel" in found["strange"]
    assert found["underscore"].startswith("AttributeError")
    assert found["unknown"].startswith("AttributeError")
    assert found["context after init"] is False
    assert found["local"] is False


def test_handles_follow_actors_that_died_or_failed_and_their_clean_end_is_success(fray: Driver) -> None:
    found = fray("groups")
    assert (found["first"], found["all"], found["ready"], found["new"]) == (1, 2, 2, 0)
    assert found["indices"] == [0, 1]
    assert found["from a job"] == "100 2"
    assert found["died"].startswith("ActorUnavailableError")
    assert found["followed"]
    assert found["status"] == "succeeded"


def test_of_a_group_that_does_not_fit_what_fits_works_and_the_rest_says_why(fray: Driver) -> None:
    found = fray("too_many")
    assert found["ready"] == 2
    assert "cpu" in found["why"]
    assert "of 1000 actors" in found["timeout"]
    assert found["in a thread"] is False
    assert found["done"]


def test_every_thread_program_and_child_of_a_job_finds_the_client(fray: Driver) -> None:
    seen, child = fray("clients")
    assert seen == "FlusterClient FlusterClient FlusterClient"
    assert child == "inherited FlusterClient"


def test_an_actor_hosted_outside_of_any_job_is_called_by_a_job(fray: Driver) -> None:
    assert fray("hosted") == "11"


def test_shutdown_ends_the_actors_of_a_client(fray: Driver) -> None:
    assert fray("gone") != "answered"
