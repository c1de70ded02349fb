"""What bearer tokens look like: composed by workers and the controller, taken apart by the controller.

    fla_<secret>                    the administrator
    flu_<token id>_<mac>            a user
    flt_<attempt uid>_<mac>         a running attempt
    flw_<worker id>_<secret>        a worker; it made the secret itself, the controller keeps its sha256
    flj_<join token id>_<mac>       whoever may register a worker
    flj_alloc-<allocation id>_<mac> the worker of that allocation

Secrets and macs are lower-case hex, so the last underscore ends the subject, whatever characters that has.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from enum import StrEnum

from fluster.cluster.ids import AttemptUid, WorkerId

MAX_TOKEN_CHARS = 512
_TOKEN = re.compile(r"(?P<kind>fl[autwj])_(?:(?P<subject>[!-~]+)_)?(?P<secret>[0-9a-f]{64})", re.ASCII)

_SECRET = re.compile(r"(?P<what>fl[autwj]_(?:[!-~]{0,400}?_)?)[0-9a-f]{16,}", re.ASCII)


class TokenKind(StrEnum):
    """Whom a token speaks for; the value is its prefix."""

    ADMIN = "fla"
    USER = "flu"
    ATTEMPT = "flt"
    WORKER = "flw"
    JOIN = "flj"


@dataclass(frozen=True, slots=True)
class ParsedToken:
    """The parts of a well-formed token. `subject` is empty for the administrator's."""

    kind: TokenKind
    subject: str
    secret: str = field(repr=False)


def new_secret() -> str:
    """A random 256-bit secret as 64 hex digits."""
    return secrets.token_hex(32)


def secret_sha256(secret: str) -> str:
    """What the controller keeps of a secret: the hex sha256 of its text."""
    return hashlib.sha256(secret.encode()).hexdigest()


def admin_token(secret: str) -> str:
    """The administrator's token."""
    return f"{TokenKind.ADMIN}_{secret}"


def user_token(token_id: str, mac: str) -> str:
    """A token of a user."""
    return f"{TokenKind.USER}_{token_id}_{mac}"


def attempt_token(uid: AttemptUid, mac: str) -> str:
    """The token of one attempt."""
    return f"{TokenKind.ATTEMPT}_{uid}_{mac}"


def worker_token(worker_id: WorkerId, secret: str) -> str:
    """What a registered worker sends: its id and the secret whose sha256 it registered with."""
    return f"{TokenKind.WORKER}_{worker_id}_{secret}"


def join_token(token_id: str, mac: str) -> str:
    """A token that lets a worker register."""
    return f"{TokenKind.JOIN}_{token_id}_{mac}"


def without_secrets(text: str) -> str:
    """The text, the secrets of whatever tokens are in it blotted out."""
    return _SECRET.sub(r"\g<what>…", text)


def parse_token(text: str) -> ParsedToken | None:
    """The parts of `text`, or None when it is no well-formed token."""
    match = _TOKEN.fullmatch(text) if len(text) <= MAX_TOKEN_CHARS else None
    if match is None:
        return None
    kind, subject = TokenKind(match["kind"]), match["subject"] or ""
    if (kind is TokenKind.ADMIN) == bool(subject):
        return None
    return ParsedToken(kind, subject, match["secret"])
