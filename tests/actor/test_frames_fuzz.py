"""Whatever a caller with the key sends, the server lives, serves others, and keeps no memory for it."""

from __future__ import annotations

import pickle
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.actor.actors import resident_bytes
from tests.actor.conftest import Here
from tests.actor.raw import Raw

from fluster.actor.protocol import BUFFER, HEADER, IN_STREAM, LAST_KIND, SLAB, Kind, target_of

BODY = target_of("", "worker", "add") + pickle.dumps(((1, 2), {}), 5)
CALL = HEADER.pack(len(BODY), 0, Kind.CALL, 0, 1, 0, 0) + BODY
HEAD = HEADER.pack(len(BODY), 2, Kind.CALL, 0, 7, 0, 0) + BUFFER.pack(40, IN_STREAM) + BUFFER.pack(0, IN_STREAM)
WITH_BUFFERS = HEAD + BODY + bytes(40)


@pytest.fixture(scope="module")
def fuzzed() -> Any:
    here = Here(max_concurrency=2)
    assert here.call().add(1) == 2  # its connection stays
    yield here
    here.close()


def say(here: Here, data: bytes, unix: bool) -> None:
    with Raw(here.server.address, here.server.access_key, unix=unix) as raw:
        raw.open()
        try:
            raw.send(data)
        except OSError:
            pass
    assert here.call(10.0).add(1) == 2


FUZZ = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@FUZZ
@given(data=st.binary(max_size=400), unix=st.booleans())
def test_random_bytes_harm_nobody(fuzzed: Here, data: bytes, unix: bool) -> None:
    say(fuzzed, data, unix)


@FUZZ
@given(
    st.lists(
        st.tuples(st.integers(1, LAST_KIND), st.binary(max_size=30), st.integers(0, 255), st.integers(0, 3)),
        max_size=12,
    ),
    st.booleans(),
)
def test_well_formed_frames_with_any_content_harm_nobody(fuzzed: Here, frames: Any, unix: bool) -> None:
    data = b"".join(
        HEADER.pack(len(body), 0, kind, flags & 6, call_id, call_id, flags) + body
        for kind, body, flags, call_id in frames
    )
    say(fuzzed, data, unix)


@FUZZ
@given(
    source=st.sampled_from([CALL, WITH_BUFFERS, CALL + WITH_BUFFERS + CALL]),
    at=st.integers(0, 400),
    to=st.integers(0, 255),
    cut=st.integers(0, 400),
    unix=st.booleans(),
)
def test_mutated_frames_harm_nobody(fuzzed: Here, source: bytes, at: int, to: int, cut: int, unix: bool) -> None:
    mutated = bytearray(source)
    mutated[at % len(mutated)] = to
    say(fuzzed, bytes(mutated[: len(mutated) - cut % len(mutated)]), unix)


ABSURD = {
    "a body of 4 GB": HEADER.pack(2**32 - 1, 0, Kind.CALL, 0, 1, 0, 0) + bytes(100),
    "more buffers than may be": HEADER.pack(0, 4_097, Kind.CALL, 0, 1, 0, 0) + bytes(100),
    "65,535 buffers": HEADER.pack(0, 65_535, Kind.CALL, 0, 1, 0, 0) + bytes(100),
    "a buffer beyond the limit": HEADER.pack(0, 1, Kind.CALL, 0, 1, 0, 0) + BUFFER.pack(2**63, IN_STREAM),
    "a buffer of all there is": HEADER.pack(0, 1, Kind.CALL, 0, 1, 0, 0) + BUFFER.pack(2**64 - 1, IN_STREAM),
    "buffers that add up": HEADER.pack(0, 4, Kind.CALL, 0, 1, 0, 0) + BUFFER.pack(2**31, IN_STREAM) * 4,
    "a slab that did not come": HEADER.pack(0, 1, Kind.CALL, 1, 1, 0, 0) + SLAB.pack(1, 4_096) + BUFFER.pack(1, 0),
    "a slab of no size": HEADER.pack(0, 0, Kind.CALL, 1, 1, 0, 0) + SLAB.pack(2**64 - 1, 0),
    "a buffer in no slab": HEADER.pack(0, 1, Kind.CALL, 0, 1, 0, 0) + BUFFER.pack(8, 8),
    "an unknown kind": HEADER.pack(0, 0, 200, 0, 1, 0, 0),
    "kind 0": HEADER.pack(0, 0, 0, 0, 1, 0, 0),
    "a call without body": HEADER.pack(0, 0, Kind.CALL, 0, 1, 0, 0),
    "a call of one byte": HEADER.pack(1, 0, Kind.CALL, 0, 1, 0, 0) + b"x",
    "a target that is longer": HEADER.pack(2, 0, Kind.CALL, 0, 1, 0, 0) + struct.pack("<H", 65_535),
    "a target that is no text": HEADER.pack(6, 0, Kind.CALL, 0, 1, 0, 0) + struct.pack("<H", 4) + b"\xff\xfe\n\n",
    "a target of two lines": HEADER.pack(6, 0, Kind.CALL, 0, 1, 0, 0) + struct.pack("<H", 4) + b"ab\nc",
    "acknowledging what was not sent": HEADER.pack(0, 0, Kind.ACK, 0, 0, 2**32 - 1, 0),
    "freeing what was not lent": HEADER.pack(0, 0, Kind.FREE, 0, 2**64 - 1, 0, 0),
    "dropping what was not given": HEADER.pack(0, 0, Kind.DROP, 0, 12, 0, 0),
    "credit for no stream": HEADER.pack(0, 0, Kind.CREDIT, 0, 5, 77, 0),
    "cancelling nothing": HEADER.pack(0, 0, Kind.CANCEL, 0, 5, 0, 0),
    "a reply": HEADER.pack(0, 0, Kind.REPLY, 0, 5, 0, 0),
    "the largest numbers": HEADER.pack(0, 0, Kind.CANCEL, 255, 2**64 - 1, 2**32 - 1, 2**32 - 1),
}


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
@pytest.mark.parametrize("what", list(ABSURD))
def test_absurd_frames_harm_nobody(fuzzed: Here, what: str, unix: bool) -> None:
    say(fuzzed, ABSURD[what], unix)
    say(fuzzed, CALL + ABSURD[what] + CALL, unix)
    assert all(not session.busy for session in list(fuzzed.server._sessions.values()) if session.peer is None)


def test_announcing_much_and_sending_little_costs_no_memory(fuzzed: Here) -> None:
    before = resident_bytes()
    raws = []
    try:
        for _ in range(40):
            raw = Raw(fuzzed.server.address, fuzzed.server.access_key)
            raws.append(raw)
            raw.open()
            raw.send(HEADER.pack(2**31, 0, Kind.CALL, 0, 1, 0, 0) + bytes(1_000))
            raw.call(1, "add", 1)
        assert fuzzed.call(10.0).add(1) == 2
        assert resident_bytes() - before < 100 << 20
    finally:
        for raw in raws:
            raw.sock.close()
