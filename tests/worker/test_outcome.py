import os
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protobuf import Oneof

from fluster.cluster.worker.outcome import MAX_TEXT_BYTES, BadOutcome, Thrown, read_outcome
from fluster.rpc.gen.fluster.cluster.v1.types_pb import Outcome, RemoteError


def a_value(content: bytes) -> Outcome:
    kind: Oneof[Literal["value"], bytes] = Oneof("value", content)
    return Outcome(kind=kind)


def an_error(error: RemoteError) -> Outcome:
    kind: Oneof[Literal["error"], RemoteError] = Oneof("error", error)
    return Outcome(kind=kind)


def written(path: Path, message: Outcome) -> Path:
    path.write_bytes(message.to_binary())
    return path


def test_no_file_and_an_empty_file_are_no_outcome(tmp_path: Path) -> None:
    assert read_outcome(tmp_path / "result") is None
    (tmp_path / "result").touch()
    assert read_outcome(tmp_path / "result") is None


def test_a_value_stays_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "result", a_value(b"x" * 100_000))
    outcome = read_outcome(path)
    assert outcome is not None
    assert (outcome.size, outcome.thrown) == (path.stat().st_size, None)


def test_an_exception_gives_type_and_text(tmp_path: Path) -> None:
    error = RemoteError(type_name="shop.Broken", message="Grüße", traceback="Traceback…" * 1000, pickled=b"\x80" * 5000)
    outcome = read_outcome(written(tmp_path / "result", an_error(error)))
    assert outcome is not None
    assert outcome.thrown == Thrown("shop.Broken", "Grüße")


def test_texts_are_cut(tmp_path: Path) -> None:
    error = RemoteError(type_name="E", message="m" * 10_000_000)
    outcome = read_outcome(written(tmp_path / "result", an_error(error)))
    assert outcome is not None
    assert outcome.thrown == Thrown("E", "m" * MAX_TEXT_BYTES)


@given(st.binary(min_size=1, max_size=64))
def test_any_bytes_are_an_outcome_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-result"
    path.write_bytes(content)
    try:
        read_outcome(path)
    except BadOutcome:
        pass


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "result", a_value(b"x" * 1000))
    os.truncate(path, 500)
    with pytest.raises(BadOutcome):
        read_outcome(path)


def test_links_fifos_and_directories_are_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    for name in ("link", "fifo", "directory"):
        with pytest.raises(BadOutcome):
            read_outcome(tmp_path / name)
