"""Every end is told, that of an attempt that did its part in vain too."""

from __future__ import annotations

from tests.core.scenario import Scenario


def test_a_member_that_exited_in_vain_is_told_of_when_its_gang_fails(scenario: Scenario) -> None:
    scenario.worker("w")
    scenario.launch("a", tasks=2)
    scenario.run("a")
    scenario.exit("a", task=0)
    scenario.exit("a", task=1, code=3)

    told = [(line.kind, line.task, line.attempt) for line in scenario.store.journal if line.job_id == "a"]

    assert ("TaskStopped", 0, 1) in told
    assert told.index(("TaskExited", 0, 1)) < told.index(("TaskStopped", 0, 1))
