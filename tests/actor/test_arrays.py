"""Arrays of numpy: how they travel, and how their memory is copied."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy
import pytest
from tests.actor.conftest import There

from fluster.actor.memory import copy_into

SPLIT = 4 << 20


@pytest.mark.parametrize("size", [0, 1, SPLIT - 1, SPLIT, SPLIT + 1, 2 * SPLIT + 12_345])
def test_memory_of_any_size_is_copied_whole(size: int) -> None:
    content = os.urandom(size)
    target = bytearray(size + 2)
    copy_into(memoryview(target)[1:-1], memoryview(content))
    assert target == b"\0" + content + b"\0"


def test_what_was_copied_is_referred_to_by_nobody_afterwards() -> None:
    target = bytearray(2 * SPLIT)
    copy_into(memoryview(target), memoryview(bytes(2 * SPLIT)))
    target.append(1)  # which fails while somebody looks at its memory


def test_memory_is_copied_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    content, target = os.urandom(SPLIT), bytearray(SPLIT)
    copy_into(memoryview(target), memoryview(content))
    assert target == content


@pytest.mark.parametrize(
    "made",
    [
        numpy.arange(3),
        numpy.random.default_rng(1).random((1000, 1031)),
        numpy.asfortranarray(numpy.random.default_rng(2).random((300, 400))),
        numpy.random.default_rng(3).random((400, 400))[::2, 1:-1],
        numpy.array(["a", None, 3], dtype=object),
        numpy.zeros(5, dtype=[("x", "f4"), ("y", "i2", (3,))]),
        numpy.array("2026-01-01", dtype="datetime64[D]"),
    ],
    ids=["small", "large", "fortran", "strided", "objects", "records", "scalar"],
)
def test_arrays_come_back_as_they_went_and_can_be_written_to(
    there: There, way: str, made: numpy.ndarray[Any, Any]
) -> None:
    back = there.call().same(made)
    numpy.testing.assert_array_equal(back, made)
    assert (back.dtype, back.shape, back.flags.writeable) == (made.dtype, made.shape, True)
    back[...] = back.flat[0]
