"""Tokens: `worker token` lets a worker join; `token create`, `list` and `revoke` are about users."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from fluster.cli.exits import NotThere
from fluster.cli.human import format_bytes, format_count, format_duration
from fluster.cli.options import Duration, cluster_option, json_option
from fluster.cli.target import open_cluster
from fluster.cli.terminal import print_json, print_table, print_talk
from fluster.cluster.validation import parse_bytes

if TYPE_CHECKING:
    from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

_QUOTAS = ("cpu", "memory", "gpus", "jobs")
_NO_LIMIT = "none"


class Quota(click.ParamType[tuple[str, float | None]]):
    """What a user may have at one time: `cpu=16`, `memory=64GB`, `gpus=2`, `jobs=1000`; `none` takes a limit away."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float | None]:
        """Its key, and the number; `None`: no limit."""
        if isinstance(value, tuple):
            return value
        key, _, text = str(value).partition("=")
        if key not in _QUOTAS:
            self.fail(f"it is KEY=VALUE with a KEY of {', '.join(_QUOTAS)}, got {value!r}", param, ctx)
        if text.lower() == _NO_LIMIT:
            return key, None
        try:
            number = float(parse_bytes(int(text) if text.isdigit() else text, key) if key == "memory" else text)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not 0 <= number < float("inf") or (key != "cpu" and number != int(number)):
            self.fail(f"{key} is a number from 0, or {_NO_LIMIT}, got {text!r}", param, ctx)
        return key, number


@click.command()
@click.option("--uses", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Workers it is good for.")
@click.option("--ttl", type=Duration(), default="10m", show_default=True, help="How long it is good: 30s, 10m, 1h30m.")
@cluster_option
def worker_token(uses: int, ttl: float, cluster: str | None) -> None:
    """Print a token with which workers can join, and nothing else.

    On the other machine: fluster worker serve --controller URL --token-file FILE
    """
    from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

    request = pb.CreateTokenRequest(request_id=uuid.uuid4().hex, kind=pb.TokenKind.JOIN, uses=uses, ttl_s=ttl)
    with open_cluster(cluster) as client:
        # An administrator's matter, so `Cluster`, which programs use, has no method for it.
        print(client._rpc.unary("CreateToken", request, pb.CreateTokenResponse).token)


@click.command()
@click.option("--user", required=True, metavar="NAME", help="Whose token it is.")
@click.option("--namespace", metavar="NAME", help="Where its jobs belong.  [default: the user's name]")
@click.option("--ttl", type=Duration(), help="How long it is good: 12h, 90d.  [default: until it is revoked]")
@click.option("--quota", "quotas", type=Quota(), multiple=True, help="What the user may have: cpu, memory, gpus, jobs.")
@json_option
@cluster_option
def token_create(
    user: str,
    namespace: str | None,
    ttl: float | None,
    quotas: tuple[tuple[str, float | None], ...],
    as_json: bool,
    cluster: str | None,
) -> None:
    """Make a token for a user, and print it and nothing else. It is told this once.

    A user may have several tokens. Quotas are the user's, whichever token is used: --quota cpu=16 --quota memory=64GB
    --quota gpus=2 --quota jobs=500 says what its tasks that run may have together, and how many of its jobs may be
    unfinished. What is not named stays as it was; --quota cpu=none takes a limit away.
    """
    from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

    request = pb.CreateTokenRequest(
        request_id=uuid.uuid4().hex,
        kind=pb.TokenKind.USER,
        user=user,
        namespace=namespace or "",
        ttl_s=ttl or 0.0,
        quota=_quota_message(dict(quotas)),
    )
    with open_cluster(cluster) as client:
        made = client._rpc.unary("CreateToken", request, pb.CreateTokenResponse)
    if as_json:
        print_json([_made(user, made)])
    else:
        print(made.token)


def _made(user: str, made: pb.CreateTokenResponse) -> dict[str, Any]:
    return {
        "token_id": made.token_id,
        "token": made.token,
        "user": user,
        "namespace": made.namespace,
        "expires_at": made.expires_at or None,
    }


def _quota_message(quotas: Mapping[str, float | None]) -> pb.Quota:
    from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

    message = pb.Quota()
    for key, number in quotas.items():
        value = -1 if number is None else number
        match key:
            case "cpu":
                message.cpu = float(value)
            case "memory":
                message.memory_bytes = int(value)
            case "gpus":
                message.gpus = int(value)
            case "jobs":
                message.jobs = int(value)
    return message


@click.command()
@json_option
@cluster_option
def token_list(as_json: bool, cluster: str | None) -> None:
    """List the tokens that are good, without their secrets, and what their users use of what they may."""
    from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

    with open_cluster(cluster) as client:
        found = client._rpc.unary("ListTokens", pb.ListTokensRequest(), pb.ListTokensResponse).tokens
    if as_json:
        print_json(map(_token_fields, found))
        return
    now = time.time()
    columns = ("TOKEN", "USER", "NAMESPACE", ">USES LEFT", ">ENDS IN", "USED")
    print_table(columns, [_token_row(token, now) for token in found], empty="no tokens but the administrator's")


def _token_fields(token: pb.TokenInfo) -> dict[str, Any]:
    is_user = bool(token.user)
    return {
        "token_id": token.token_id,
        "kind": "user" if is_user else "join",
        "user": token.user or None,
        "namespace": token.namespace or None,
        "uses_left": None if is_user else token.uses_left,
        "created_at": token.created_at,
        "expires_at": token.expires_at or None,
        "quota": _quota_fields(token.quota) if is_user else None,
        "used": _quota_fields(token.used) if is_user else None,
    }


def _quota_fields(quota: pb.Quota | None) -> dict[str, float | None]:
    names = ("cpu", "memory_bytes", "gpus", "jobs")
    has = (lambda _: False) if quota is None else quota.has_field
    return {name: getattr(quota, name) if has(name) else None for name in names}  # type: ignore[arg-type]


def _token_row(token: pb.TokenInfo, now: float) -> tuple[str, ...]:
    return (
        token.token_id,
        token.user,
        token.namespace,
        "" if token.user else str(token.uses_left),
        format_duration(token.expires_at - now) if token.expires_at else "never",
        _use(_quota_fields(token.used), _quota_fields(token.quota)) if token.user else "",
    )


def _use(used: Mapping[str, float | None], quota: Mapping[str, float | None]) -> str:
    """`2 of 16 cpu, 4 GB memory, 0 of 2 gpus, 3 of 500 jobs`."""
    shown = []
    for name, unit, form in (
        ("cpu", "cpu", format_count),
        ("memory_bytes", "memory", format_bytes),
        ("gpus", "gpus", format_count),
        ("jobs", "jobs", format_count),
    ):
        have, limit = used[name] or 0, quota[name]
        shown.append(f"{form(have)} {unit}" if limit is None else f"{form(have)} of {form(limit)} {unit}")
    return ", ".join(shown)


@click.command()
@click.argument("token_id", required=False, metavar="[TOKEN]")
@click.option("--user", metavar="NAME", help="All tokens of this user instead.")
@cluster_option
def token_revoke(token_id: str | None, user: str | None, cluster: str | None) -> None:
    """End a token, or all of a user: from now on it is refused. Jobs that were launched with it go on.

    TOKEN is the name that `fluster token list` shows, not the secret.
    """
    from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

    if bool(token_id) == bool(user):
        raise click.UsageError("give TOKEN or --user")
    request = pb.RevokeTokenRequest(request_id=uuid.uuid4().hex, token_id=token_id or "", user=user or "")
    with open_cluster(cluster) as client:
        revoked = client._rpc.unary("RevokeToken", request, pb.RevokeTokenResponse).revoked
    if not revoked:
        what = f"no token {token_id!r}" if token_id else f"user {user!r} has no token"
        raise NotThere(f"{what}; `fluster token list` shows those there are")
    print_talk("1 token is revoked" if revoked == 1 else f"{revoked} tokens are revoked")
