"""Who asks: bearer tokens to identities, and the tokens the controller derives for others."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from fluster.cluster import tokens
from fluster.cluster.controller.core.rows import TokenRow
from fluster.cluster.controller.permissions import allowed
from fluster.cluster.ids import AllocationId, AttemptUid, JobId, Namespace, WorkerId
from fluster.cluster.tokens import ParsedToken, TokenKind
from fluster.errors import NotPermitted

ALLOCATION_PREFIX = "alloc-"
"""Join token ids that begin so are those of allocations; no other may."""
_NO_DIGEST = "0" * 64
_MAX_REMEMBERED = 10_000
"""Genuine tokens that are recognized without deriving them again; whether they are good is looked at each time."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sent a request. What does not belong to its kind is empty.

    Attributes:
        user: Its name.
        namespace: Of the user's token.
        job_id: Of the attempt.
        token_id: Of the user's token or the join token.
        allocation_id: Whose worker may join by that token; empty when any may.
    """

    kind: TokenKind
    user: str = ""
    namespace: Namespace = Namespace("")
    attempt_uid: AttemptUid = AttemptUid("")
    job_id: JobId = JobId("")
    worker_id: WorkerId = WorkerId("")
    token_id: str = ""
    allocation_id: AllocationId = AllocationId("")

    @property
    def actor(self) -> str:
        """As jobs' owners, requests and the journal name it: "admin", "user:U", "job:J", "worker:W", "token:T"."""
        match self.kind:
            case TokenKind.ADMIN:
                return "admin"
            case TokenKind.USER:
                return f"user:{self.user}"
            case TokenKind.ATTEMPT:
                return f"job:{self.job_id}"
            case TokenKind.WORKER:
                return f"worker:{self.worker_id}"
            case TokenKind.JOIN:
                return f"token:{self.token_id}"


_ADMIN = Identity(TokenKind.ADMIN)


class Directory(Protocol):
    """What the controller knows of those who may ask."""

    def user_token(self, token_id: str) -> TokenRow | None:
        """The user's token of this id; None when it was withdrawn or never was."""

    def live_attempt_job(self, uid: AttemptUid) -> JobId | None:
        """The attempt's job; None when it has ended or never was."""

    def worker_credential(self, worker_id: WorkerId) -> str | None:
        """Sha256 of the worker's secret; None for one that is unknown or gone."""

    def join_token_expiry(self, token_id: str) -> float | None:
        """When the join token ends, unix seconds; None when it was withdrawn."""

    def allocation_wanted(self, allocation_id: AllocationId) -> bool:
        """Whether workers of the allocation may join."""


class Authenticator:
    """Tells who sent a token.

    Args:
        cluster_key: Of the derived tokens.
        admin_token_sha256: Hex digest of the administrator's token.
        directory: Asked at each request: a token ends the moment its owner does.
        clock: Unix seconds.
    """

    def __init__(
        self, cluster_key: bytes, admin_token_sha256: str, directory: Directory, clock: Callable[[], float]
    ) -> None:
        self._key = cluster_key
        self._admin_sha256 = bytes.fromhex(admin_token_sha256)
        # By the sha256 of the whole token: deriving one again takes several times as long, and each call brings one.
        self._genuine_ones: dict[bytes, ParsedToken] = {}
        self._directory = directory
        self._clock = clock

    def authenticate(self, token: str | None) -> Identity | None:
        """Whose token it is; None when it is missing, wrong, or its owner has ended.

        Digests are compared in constant time.
        """
        if not token:
            return None
        digest = hashlib.sha256(token.encode()).digest()
        if hmac.compare_digest(digest, self._admin_sha256):
            return _ADMIN
        known = self._genuine_ones.get(digest)
        if known is not None:
            return self._owner(known)
        genuine = self._genuine(token)
        identity = None if genuine is None else self._owner(genuine)
        if genuine is not None and identity is not None:  # what strangers make up is not remembered
            if len(self._genuine_ones) >= _MAX_REMEMBERED:
                self._genuine_ones.clear()
            self._genuine_ones[digest] = genuine
        return identity

    def _genuine(self, token: str) -> ParsedToken | None:
        """The parts of a token that the controller derived, or that a worker made of its secret; else None."""
        parsed = tokens.parse_token(token)
        if parsed is None or parsed.kind is TokenKind.ADMIN:
            return None
        if parsed.kind is TokenKind.WORKER:  # its owner decides: what is kept of the secret is its hash
            return replace(parsed, secret=tokens.secret_sha256(parsed.secret))
        genuine = hmac.compare_digest(self._mac(parsed.kind, parsed.subject), parsed.secret)
        return replace(parsed, secret="") if genuine else None

    def _owner(self, genuine: ParsedToken) -> Identity | None:
        """Who has it, if that one is there."""
        match genuine.kind:
            case TokenKind.ADMIN:
                return None
            case TokenKind.USER:
                return self._user(genuine)
            case TokenKind.ATTEMPT:
                return self._attempt(genuine)
            case TokenKind.WORKER:
                return self._worker(genuine)
            case TokenKind.JOIN:
                return _join(genuine)

    def still_valid(self, identity: Identity) -> bool:
        """Whether the token would be taken now: a body may come long after the head that brought the token."""
        match identity.kind:
            case TokenKind.USER:
                return self._live_user_token(identity.token_id) is not None
            case TokenKind.ATTEMPT:
                return self._directory.live_attempt_job(identity.attempt_uid) is not None
            case TokenKind.WORKER:
                return self._directory.worker_credential(identity.worker_id) is not None
            case TokenKind.ADMIN | TokenKind.JOIN:  # the latter is looked at by `authorize`
                return True

    def authorize(self, identity: Identity, rpc: str) -> None:
        """Passes when the identity may call the RPC.

        How many workers joined by a token is not counted here but where one is added.

        Args:
            identity: Who asks.
            rpc: Its name alone: "LaunchJob".

        Raises:
            NotPermitted: The RPC is not for its kind, or the join token was withdrawn or has expired.
        """
        if not allowed(rpc, identity.kind):
            raise NotPermitted(f"{rpc} is not for {_NOUN[identity.kind]}")
        if identity.kind is TokenKind.JOIN:
            self._check_join(identity)

    def user_token(self, token_id: str) -> str:
        """The user's token of this id: the same each time, so that a repeated request gets what the first one got."""
        return tokens.user_token(token_id, self._mac(TokenKind.USER, token_id))

    def attempt_token(self, uid: AttemptUid) -> str:
        """The token of an attempt: the same each time, valid while the attempt lives."""
        return tokens.attempt_token(uid, self._mac(TokenKind.ATTEMPT, uid))

    def join_token(self, token_id: str) -> str:
        """The join token of this id: the same each time, so that a repeated request gets what the first one got.

        Raises:
            ValueError: The id is one of an allocation's.
        """
        if token_id.startswith(ALLOCATION_PREFIX):
            raise ValueError(f"a join token's id must not begin with {ALLOCATION_PREFIX!r}, got {token_id!r}")
        return tokens.join_token(token_id, self._mac(TokenKind.JOIN, token_id))

    def allocation_token(self, allocation_id: AllocationId) -> str:
        """What the worker of an allocation joins by, as often as it must, while the allocation is wanted."""
        token_id = f"{ALLOCATION_PREFIX}{allocation_id}"
        return tokens.join_token(token_id, self._mac(TokenKind.JOIN, token_id))

    def _user(self, parsed: ParsedToken) -> Identity | None:
        row = self._live_user_token(parsed.subject)
        if row is None:
            return None
        return Identity(TokenKind.USER, user=row.user, namespace=row.namespace, token_id=row.token_id)

    def _live_user_token(self, token_id: str) -> TokenRow | None:
        row = self._directory.user_token(token_id)
        return row if row is not None and row.expires_at > self._clock() else None

    def _attempt(self, parsed: ParsedToken) -> Identity | None:
        uid = AttemptUid(parsed.subject)
        job_id = self._directory.live_attempt_job(uid)
        return None if job_id is None else Identity(TokenKind.ATTEMPT, attempt_uid=uid, job_id=job_id)

    def _worker(self, parsed: ParsedToken) -> Identity | None:
        worker_id = WorkerId(parsed.subject)
        # Also of an unknown worker digests are compared: knowing its id must not show in the time.
        credential = self._directory.worker_credential(worker_id) or _NO_DIGEST
        if not hmac.compare_digest(parsed.secret, credential):
            return None
        return Identity(TokenKind.WORKER, worker_id=worker_id)

    def _check_join(self, identity: Identity) -> None:
        if identity.allocation_id:
            if not self._directory.allocation_wanted(identity.allocation_id):
                raise NotPermitted(
                    f"the allocation {identity.allocation_id} is being given back: no worker of it may join"
                )
            return
        expires_at = self._directory.join_token_expiry(identity.token_id)
        if expires_at is None or expires_at <= self._clock():
            why = "has expired or was withdrawn" if expires_at is None else "has expired"  # both are forgotten
            raise NotPermitted(f"the join token {why}; `fluster worker token` makes a new one")

    def _mac(self, kind: TokenKind, subject: str) -> str:
        return hmac.new(self._key, f"{_PURPOSE[kind]}:{subject}".encode(), hashlib.sha256).hexdigest()


def _join(parsed: ParsedToken) -> Identity:
    token_id = parsed.subject
    allocation = token_id.removeprefix(ALLOCATION_PREFIX) if token_id.startswith(ALLOCATION_PREFIX) else ""
    return Identity(TokenKind.JOIN, token_id=token_id, allocation_id=AllocationId(allocation))


_PURPOSE = {TokenKind.USER: "user", TokenKind.ATTEMPT: "attempt", TokenKind.JOIN: "join"}
_NOUN = {
    TokenKind.USER: "users",
    TokenKind.ADMIN: "administrators; workers call it",
    TokenKind.ATTEMPT: "jobs",
    TokenKind.WORKER: "workers",
    TokenKind.JOIN: "join tokens: they register a worker and nothing else",
}
