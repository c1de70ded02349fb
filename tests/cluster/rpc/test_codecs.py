"""JSON that would overflow a native stack is refused before it is parsed."""

from __future__ import annotations

import time

import pytest

from fluster.rpc.codecs import JsonCodec
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

NAMED = '{"jobId": "%s"}'


@pytest.mark.parametrize("text", ["[" * 1_000, "[" * 1_000_000, '{"a":' * 100_000, '{"jobId": ' + "[" * 100_000])
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="JSON must be nested at most 100 deep"):
        JsonCodec().decode(text.encode(), pb.GetJobStatusRequest)


@pytest.mark.parametrize("name", ["[" * 1_000, '\\"[' * 1_000, "\\\\" * 500 + "{" * 1_000])
def test_brackets_in_texts_are_no_nesting(name: str) -> None:
    decoded = JsonCodec().decode((NAMED % name).encode(), pb.GetJobStatusRequest)
    assert decoded.job_id.count("[") + decoded.job_id.count("{") == 1_000


def test_long_lists_are_no_nesting() -> None:
    jobs = ", ".join('{"jobId": "a", "tasks": [{}]}' for _ in range(500))
    decoded = JsonCodec().decode(f'{{"jobs": [{jobs}]}}'.encode(), pb.ListJobsResponse)
    assert len(decoded.jobs) == 500


def test_a_text_that_never_ends_is_looked_through_once() -> None:
    text = b'{"jobId": "' + b'\\"' * 1_000_000 + b"[" * 200
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"EOF|unterminated|unexpected"):
        JsonCodec().decode(text, pb.GetJobStatusRequest)
    assert time.monotonic() - began < 10.0
