"""Controllers that are tested over the wire."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from tests.cluster.controller.remote import Api, Site, site

from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb


@pytest.fixture
def alone() -> Iterator[Site]:
    """A controller of one test's own."""
    with site() as made:
        yield made


@pytest.fixture(scope="module")
def _site() -> Iterator[Site]:
    with site() as made:
        # What stays: a connection, and the thread in which files are written.
        made.admin(pb.PutBlobRequest(sha256=hashlib.sha256(b"").hexdigest()))
        yield made


@pytest.fixture
def shared(_site: Site) -> Iterator[Site]:
    """A controller for all tests of a module, which do not mind each other; connections are each test's own."""
    made = Site(_site.server, Api(_site.address, _site.server.token))
    yield made
    made.close()
