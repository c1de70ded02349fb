"""Tokens and the users they speak for: made, withdrawn, expired."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fluster.cluster.controller.core.events import TokenCreated, TokenRevoked
from fluster.cluster.controller.core.fold import Fold
from fluster.cluster.controller.core.rows import Quota, TokenRow, UserRow
from fluster.errors import ResourceExhausted


def create(fold: Fold, event: TokenCreated) -> None:
    """Takes a token in, and the user's quota with it."""
    row = event.row
    if row.user:
        _note_user(fold, event)
    fold.put_token(row)
    fold.put_request(event.request)
    fold.journal("TokenCreated", event.actor, message=_told(row))


def _note_user(fold: Fold, event: TokenCreated) -> None:
    state, name = fold.state, event.row.user
    old = state.users.get(name)
    if old is None and len(state.users) >= state.settings.max_users:
        raise ResourceExhausted(f"{len(state.users)} users are known, the limit is {state.settings.max_users}")
    quota = replace(old.quota if old is not None else Quota(), **dict(event.quota))
    if old is None or old.quota != quota:
        fold.put_user(UserRow(name, quota, fold.now if old is None else old.created_at))
    if event.quota:
        changed = ", ".join(f"{field}={value}" for field, value in event.quota)
        fold.journal("QuotaChanged", event.actor, message=f"user {name}: {changed}")


def revoke(fold: Fold, event: TokenRevoked) -> None:
    """Ends tokens; one that has ended already is no error."""
    tokens = fold.state.tokens
    if event.user:
        _drop(fold, [row for row in tokens.values() if row.user == event.user], "TokenRevoked", event.actor)
    elif event.token_id in tokens:
        _drop(fold, [tokens[event.token_id]], "TokenRevoked", event.actor)


def expire(fold: Fold) -> None:
    """Forgets tokens whose time is over; they have not been taken since."""
    _drop(fold, [row for row in fold.state.tokens.values() if row.expires_at <= fold.now], "TokenExpired")


def _drop(fold: Fold, rows: Iterable[TokenRow], kind: str, actor: str = "controller") -> None:
    for row in rows:
        fold.drop_token(row.token_id)
        fold.journal(kind, actor, message=_told(row))


def _told(row: TokenRow) -> str:
    return f"{row.token_id} of user {row.user} in namespace {row.namespace}" if row.user else row.token_id
