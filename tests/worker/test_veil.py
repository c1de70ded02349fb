"""Secrets in logs: hidden wherever pieces are cut, every other byte in its place."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluster.cluster.worker.veil import Veil

SECRET = 'correct-horse/battery "staple"'


def read_in_pieces(veil: Veil, path: Path, size: int, *, final: bool = True) -> bytes:
    found = b""
    while piece := veil.read(path, len(found), size, final=final):
        found += piece
    return found


@given(before=st.binary(max_size=40), after=st.binary(max_size=40), size=st.integers(1, 50))
def test_a_secret_is_hidden_wherever_the_log_is_cut(
    tmp_path_factory: pytest.TempPathFactory, before: bytes, after: bytes, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "veiled"
    path.write_bytes(before + SECRET.encode() + after)
    found = read_in_pieces(Veil([SECRET]), path, size)
    assert found == before + b"*" * len(SECRET) + after


def test_what_may_become_a_secret_waits_until_it_is_known(tmp_path: Path) -> None:
    path, veil = tmp_path / "log", Veil([SECRET])
    path.write_bytes(b"it is " + SECRET[:9].encode())
    assert veil.read(path, 0, 100, final=False) == b"it is "
    assert veil.read(path, 6, 100, final=False) == b""
    path.write_bytes(b"it is " + SECRET.encode() + b"\n")
    assert veil.read(path, 6, 100, final=False) == b"*" * len(SECRET) + b"\n"


def test_the_beginning_of_a_secret_is_shown_when_nothing_follows(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"it is corr")
    assert Veil([SECRET]).read(tmp_path / "log", 0, 100, final=True) == b"it is corr"


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        json.dumps({"password": SECRET}),
        quote(SECRET, safe=""),
        base64.b64encode(SECRET.encode()).decode(),
    ],
)
def test_usual_spellings_are_hidden_too(form: str) -> None:
    shown = Veil([SECRET]).text(f"<{form}>")
    assert len(shown) == len(form) + 2
    assert "horse" not in shown
    assert base64.b64encode(SECRET.encode()).decode() not in shown


def test_each_line_of_a_key_is_hidden() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQ\n-----END KEY-----\n"
    assert Veil([key]).text("cannot read MIIEvQIBADANBg here") == "cannot read ************** here"


def test_short_values_and_texts_without_secrets_are_left_alone(tmp_path: Path) -> None:
    assert Veil(["1", "true"]).text("1 is true") == "1 is true"
    assert Veil([]).text("anything \udcff") == "anything \udcff"
    assert Veil([SECRET]).text("anything \udcff") == "anything \udcff"
