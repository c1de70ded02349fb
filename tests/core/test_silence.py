"""A job whose machine is not heard from says so long before the machine is given up."""

from __future__ import annotations

from tests.core.scenario import Scenario

from fluster.cluster.controller.explain import silent_workers


def test_a_silent_worker_is_told_once_it_misses_its_requests(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("a")
    scenario.run("a")
    scenario.worker("idle")

    def told(after: float) -> list[str]:
        return silent_workers(scenario.state, [scenario.attempts("a")], scenario.now + after)

    assert told(24) == []
    lease_end = 300 + scenario.state.settings.stop_grace_s + scenario.state.settings.lease_margin_s
    assert told(60) == [f"worker w has not been heard from for 60 s; it is given up in {lease_end - 60:.0f} s"]
    scenario.exit("a")
    assert told(60) == []
