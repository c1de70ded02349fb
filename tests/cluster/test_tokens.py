"""The forms of bearer tokens."""

from __future__ import annotations

import pytest

from fluster.cluster import tokens
from fluster.cluster.ids import AttemptUid, WorkerId
from fluster.cluster.tokens import ParsedToken, TokenKind, parse_token

SECRET = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (tokens.admin_token(SECRET), ParsedToken(TokenKind.ADMIN, "", SECRET)),
        (tokens.user_token("user-1", SECRET), ParsedToken(TokenKind.USER, "user-1", SECRET)),
        (tokens.attempt_token(AttemptUid("a-1"), SECRET), ParsedToken(TokenKind.ATTEMPT, "a-1", SECRET)),
        (tokens.worker_token(WorkerId("w_1_x"), SECRET), ParsedToken(TokenKind.WORKER, "w_1_x", SECRET)),
        (tokens.join_token("alloc-local-1", SECRET), ParsedToken(TokenKind.JOIN, "alloc-local-1", SECRET)),
    ],
)
def test_a_composed_token_is_taken_apart_again(token: str, expected: ParsedToken) -> None:
    assert parse_token(token) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fla_",
        f"fla_{SECRET[:-1]}",
        f"fla_{SECRET}\n",
        f"fla_{SECRET.upper()}",
        f"fla_x_{SECRET}",
        f"flt_{SECRET}",
        f"flt__{SECRET}",
        f"flu_{SECRET}",
        f"flx_a_{SECRET}",
        f"flt_a b_{SECRET}",
        f"flt_{'a' * 500}_{SECRET}",
        f"flw_\N{GREEK SMALL LETTER ALPHA}_{SECRET}",
    ],
)
def test_what_is_no_token_is_none(text: str) -> None:
    assert parse_token(text) is None


def test_a_secret_is_long_and_never_shown() -> None:
    assert len(tokens.new_secret()) == 64
    assert tokens.new_secret() != tokens.new_secret()
    parsed = parse_token(tokens.admin_token(SECRET))
    assert SECRET not in repr(parsed)
