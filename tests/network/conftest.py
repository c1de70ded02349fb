"""A controller and two workers on hosts of their own; the tests themselves are on another, as their users would be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.network import hosts
from tests.network.cluster import Site

BRIEF_S = 2.0
"""A lease that runs out while a test waits."""
LONG_S = 30.0
"""One that does not."""


@pytest.fixture(scope="session")
def brief_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from _site(tmp_path_factory.mktemp("brief"), BRIEF_S)


@pytest.fixture(scope="session")
def long_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from _site(tmp_path_factory.mktemp("long"), LONG_S)


@pytest.fixture
def brief(brief_site: Site) -> Iterator[Site]:
    """One whose workers are given up after some seconds."""
    with brief_site.visited():
        yield brief_site


@pytest.fixture
def patient(long_site: Site) -> Iterator[Site]:
    """One whose workers are not given up."""
    with long_site.visited():
        yield long_site


def _site(directory: Path, lease_s: float) -> Iterator[Site]:
    if reason := hosts.why_not():
        pytest.skip(reason)
    with Site(directory, lease_s) as site:
        yield site
