"""One controller in plain values for each test."""

import pytest

pytest.register_assert_rewrite("tests.core.invariants")

from tests.core.scenario import Scenario  # noqa: E402 - rewritten only when imported after the line above


@pytest.fixture
def scenario() -> Scenario:
    return Scenario()
