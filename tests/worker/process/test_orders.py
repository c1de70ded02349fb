"""What a worker tells a shim through its FIFO."""

import os
from pathlib import Path
from typing import Any

import pytest

from fluster.cluster.attempt import files
from fluster.cluster.worker import followed


def test_an_order_to_a_shim_that_ends_meanwhile_reaches_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / files.CONTROL)
    reader = os.open(tmp_path / files.CONTROL, os.O_RDONLY | os.O_NONBLOCK)
    real_open = os.open

    def open_and_lose_the_reader(*args: Any) -> int:
        descriptor = real_open(*args)
        os.close(reader)
        return descriptor

    monkeypatch.setattr(os, "open", open_and_lose_the_reader)

    assert not followed.order(tmp_path, b"stop 0.0\n")
