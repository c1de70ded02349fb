"""Short forms of the fuzzers; the long one is ``make fuzz``."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fuzz import frames, messages, rpcs

from fluster.cluster.controller.permissions import ALLOWED
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

SEED = random.randrange(1 << 30)


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rpcs.Controller]:
    with rpcs.controller(tmp_path_factory.mktemp("fuzz")) as found:
        yield found


def test_requests_of_any_content_get_an_answer_that_is_their_own_fault(controller: rpcs.Controller) -> None:
    rpcs.run(controller, "message", 400, SEED)
    assert controller.codes["invalid_argument"] > 20
    assert controller.codes["ok"] > 20


def test_sequences_of_requests_leave_the_controller_well(controller: rpcs.Controller) -> None:
    rpcs.run(controller, "sequence", 40, SEED)


def test_frames_of_any_content_leave_the_actor_well(tmp_path: Path) -> None:
    with frames.actor(tmp_path) as actor:
        frames.run(actor, 2_000, SEED)
        actor.check()


def test_what_the_fuzzer_writes_is_what_the_library_reads() -> None:
    rng = random.Random(SEED)
    for rpc in ALLOWED:
        kind = getattr(pb, f"{rpc}Request")
        for _ in range(20):
            kind.from_binary(messages.to_binary(messages.random_message(kind.desc(), rng, {})))
