"""Workers tell when their attempts began and ended, by clocks that may be anywhere."""

from __future__ import annotations

import pytest
from tests.core.scenario import Scenario

from fluster.cluster.controller.core.events import Exit, Observed
from fluster.cluster.controller.core.rows import AttemptState

DAY_S = 86_400.0


@pytest.mark.parametrize("off_s", [0.0, 3_600.0, -3_600.0, 9 * DAY_S, -9 * DAY_S])
@pytest.mark.parametrize("in_one_report", [True, False])
def test_an_attempt_ran_after_it_was_placed_and_before_now_for_as_long_as_its_worker_says(
    scenario: Scenario, off_s: float, in_one_report: bool
) -> None:
    scenario.worker("w")
    scenario.launch("job")
    scenario.turn()
    attempt, placed_at = scenario.attempt("job"), scenario.now
    running = Observed(attempt.uid, AttemptState.RUNNING, placed_at + 1.0 + off_s)
    scenario.now = placed_at + 2.0
    if not in_one_report:
        scenario.sync("w", running)
    scenario.now = placed_at + 10.0
    ended = Observed(attempt.uid, running.state, running.started_at, Exit(0, None, "", placed_at + 9.0 + off_s))
    scenario.sync("w", ended)

    attempt = scenario.attempt("job")
    assert attempt.started_at is not None
    assert attempt.finished_at is not None
    assert placed_at <= attempt.started_at <= placed_at + 2.0
    assert attempt.finished_at == pytest.approx(attempt.started_at + 8.0)
    assert attempt.finished_at <= scenario.now
    if not off_s:
        assert (attempt.started_at, attempt.finished_at) == (placed_at + 1.0, placed_at + 9.0)
