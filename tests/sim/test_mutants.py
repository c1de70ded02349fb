"""What is green is worth something only if a broken fence is red."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fluster.testing.sim import simulate
from fluster.testing.sim.mutants import MUTANTS
from fluster.testing.sim.story import UNEXPECTED

MOST_SEEDS = 6


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_fence_turns_the_simulation_red(name: str) -> None:
    mutant = MUTANTS[name]
    with mutant.active():
        results = (simulate(replace(mutant.config, seed=seed)) for seed in range(MOST_SEEDS))
        broken = next((result.broken for result in results if result.broken is not None), None)
    assert broken is not None
    assert broken.rule != UNEXPECTED  # an accident is not the rule that sees this


def test_a_mutant_leaves_nothing_behind() -> None:
    name, mutant = next(iter(MUTANTS.items()))
    with mutant.active():
        pass
    result = simulate(replace(mutant.config, seconds=60))
    assert result.broken is None, f"{name}: {result.broken}"
