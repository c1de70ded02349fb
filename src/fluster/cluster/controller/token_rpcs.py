"""RPCs about tokens: made for users and for workers that are to join, listed, withdrawn."""

from __future__ import annotations

import math

from fluster.cluster.controller import convert
from fluster.cluster.controller.auth import Identity
from fluster.cluster.controller.context import Controller
from fluster.cluster.controller.core.events import TokenCreated, TokenRevoked
from fluster.cluster.controller.core.rows import Quota, RequestRow, TokenRow
from fluster.cluster.controller.core.shares import use_of
from fluster.cluster.ids import Namespace
from fluster.cluster.tokens import secret_sha256
from fluster.cluster.validation import (
    MAX_BYTES,
    MAX_CPU,
    check_id,
    check_int,
    check_name,
    check_number,
    check_seconds,
    refuse,
)
from fluster.errors import FailedPrecondition
from fluster.rpc.gate import current_peer
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.trust import pinned

RESERVED_USERS = ("admin", "anonymous", "controller")
"""What the journal calls others."""
_MAX_USES = 100_000
_MAX_JOIN_TTL_S = 30 * 86_400.0
_MAX_COUNT = 2**31 - 1
_Changes = tuple[tuple[str, int | None], ...]


class Tokens:
    """Handlers of CreateToken, ListTokens and RevokeToken."""

    def __init__(self, controller: Controller) -> None:
        self._c = controller

    async def create(self, request: pb.CreateTokenRequest) -> pb.CreateTokenResponse:
        """Makes a token. It is derived from its id, so that a repeated request gives it again."""
        who = self._c.caller()
        check_id(request.request_id, "request_id")
        match convert.known(request.kind, "kind"):
            case pb.TokenKind.USER:
                row, token = self._user(who, request)
            case pb.TokenKind.JOIN:
                row, token = self._join(who, request)
            case _:
                raise refuse("kind", "JOIN or USER", int(request.kind))
        quota = quota_changes(request.quota)
        if quota and not row.user:
            raise ValueError("a quota is a user's: a join token has none")
        body = convert.fingerprint(
            int(request.kind), request.uses, request.ttl_s, request.user, request.namespace, str(quota)
        )
        note = RequestRow(who.actor, request.request_id, "CreateToken", body, row.token_id, row.created_at)
        await self._c.loop.submit(TokenCreated(row, note, who.actor, quota, current_peer()))
        made = self._c.state.tokens.get(row.token_id)
        if made is None:
            raise FailedPrecondition(f"token {row.token_id} was made by this request before and has ended")
        return pb.CreateTokenResponse(
            token_id=row.token_id, token=pinned(token, self._c.pin), expires_at=_end(made), namespace=made.namespace
        )

    def _join(self, who: Identity, request: pb.CreateTokenRequest) -> tuple[TokenRow, str]:
        if request.user or request.namespace:
            raise ValueError("a join token has no user and no namespace")
        uses = check_int(request.uses or 1, "uses", low=1, high=_MAX_USES)
        ttl_s = check_seconds(request.ttl_s or 600.0, "ttl_s")
        if ttl_s > _MAX_JOIN_TTL_S:
            raise refuse("ttl_s", f"at most {_MAX_JOIN_TTL_S:.0f} seconds", ttl_s)
        now, token_id = self._c.loop.now(), _token_id("join", who, request)
        token = self._c.auth.join_token(token_id)
        return TokenRow(token_id, secret_sha256(token), uses, now + ttl_s, now), token

    def _user(self, who: Identity, request: pb.CreateTokenRequest) -> tuple[TokenRow, str]:
        user = check_name(request.user, "user")
        if user in RESERVED_USERS:
            raise refuse("user", f"another name than {', '.join(RESERVED_USERS)}", user)
        namespace = check_name(request.namespace or user, "namespace")
        if request.uses:
            raise ValueError("a user's token is good for any number of uses: give none")
        ttl_s = check_seconds(request.ttl_s, "ttl_s", zero=True)
        now, token_id = self._c.loop.now(), _token_id("user", who, request)
        token = self._c.auth.user_token(token_id)
        expires_at = now + ttl_s if ttl_s else math.inf
        row = TokenRow(token_id, secret_sha256(token), 0, expires_at, now, user=user, namespace=Namespace(namespace))
        return row, token

    def list(self) -> pb.ListTokensResponse:
        """Those that have not ended, oldest first."""
        rows = sorted(self._c.state.tokens.values(), key=lambda row: (row.created_at, row.token_id))
        now = self._c.loop.now()
        return pb.ListTokensResponse(tokens=[self._info(row) for row in rows if row.expires_at > now])

    def _info(self, row: TokenRow) -> pb.TokenInfo:
        info = pb.TokenInfo(token_id=row.token_id, expires_at=_end(row), created_at=row.created_at)
        if not row.user:
            info.kind, info.uses_left = pb.TokenKind.JOIN, max(0, self._c.state.token_uses_left(row))
            return info
        info.kind, info.user, info.namespace = pb.TokenKind.USER, row.user, row.namespace
        info.quota = _quota_message(self._c.state.quota(row.user))
        use = use_of(self._c.state, row.user)
        jobs = len(self._c.state.jobs_by_user.get(row.user, ()))
        info.used = _quota_message(Quota(use.cpu_milli, use.memory_bytes, use.gpu, jobs))
        return info

    async def revoke(self, request: pb.RevokeTokenRequest) -> pb.RevokeTokenResponse:
        """Ends a token, or all of a user; one that has ended already is no error."""
        who = self._c.caller()
        if bool(request.token_id) == bool(request.user):
            raise ValueError("token_id or user must be given, and not both")
        tokens = self._c.state.tokens.values()
        found = sum(1 for row in tokens if request.token_id == row.token_id or (row.user and request.user == row.user))
        await self._c.loop.submit(TokenRevoked(request.token_id, who.actor, request.user, current_peer()))
        return pb.RevokeTokenResponse(revoked=found)


def _token_id(kind: str, who: Identity, request: pb.CreateTokenRequest) -> str:
    return f"{kind}-{convert.fingerprint(who.actor, request.request_id)[:16]}"


def _end(row: TokenRow) -> float:
    return 0.0 if math.isinf(row.expires_at) else row.expires_at


def quota_changes(message: pb.Quota | None) -> _Changes:
    """Which fields of a quota are to change, and to what; `None`: without limit.

    Raises:
        ValueError: One is no such number.
    """
    if message is None:
        return ()
    changes: list[tuple[str, int | None]] = []
    if message.has_field("cpu"):
        cpu = check_number(message.cpu, "the quota of cpu", f"at most {MAX_CPU}", low=-MAX_CPU, high=MAX_CPU)
        changes.append(("cpu_milli", None if cpu < 0 else math.floor(cpu * 1000)))
    for name, column, high in (
        ("memory_bytes", "memory_bytes", MAX_BYTES),
        ("gpus", "gpu", _MAX_COUNT),
        ("jobs", "jobs", _MAX_COUNT),
    ):
        if message.has_field(name):  # type: ignore[arg-type]
            value = check_int(getattr(message, name), f"the quota of {name}", low=-high, high=high)
            changes.append((column, None if value < 0 else value))
    return tuple(changes)


def _quota_message(quota: Quota) -> pb.Quota:
    message = pb.Quota()
    if quota.cpu_milli is not None:
        message.cpu = quota.cpu_milli / 1000
    if quota.memory_bytes is not None:
        message.memory_bytes = quota.memory_bytes
    if quota.gpu is not None:
        message.gpus = quota.gpu
    if quota.jobs is not None:
        message.jobs = quota.jobs
    return message
