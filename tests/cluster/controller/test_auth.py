"""Who asks, and what each may ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest

from fluster.cluster import tokens
from fluster.cluster.controller.auth import Authenticator, Identity
from fluster.cluster.controller.core.rows import TokenRow
from fluster.cluster.controller.permissions import ALLOWED, allowed
from fluster.cluster.ids import AllocationId, AttemptUid, JobId, Namespace, WorkerId
from fluster.cluster.tokens import TokenKind
from fluster.errors import NotPermitted
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb

ADMIN = tokens.admin_token(tokens.new_secret())
SECRET = tokens.new_secret()


def token_of(user: str, *, expires_at: float = math.inf) -> TokenRow:
    return TokenRow("u1", "", 0, expires_at, 0.0, user=user, namespace=Namespace("team"))


@dataclass
class Known:
    """A controller that knows this much."""

    attempts: dict[str, str] = field(default_factory=lambda: {"a1": "job-1"})
    credentials: dict[str, str] = field(default_factory=lambda: {"w_1": tokens.secret_sha256(SECRET)})
    joins: dict[str, float] = field(default_factory=lambda: {"t1": 100.0})
    allocations: set[str] = field(default_factory=lambda: {"v1"})
    users: dict[str, TokenRow] = field(default_factory=lambda: {"u1": token_of("alice")})
    now: float = 99.9

    def user_token(self, token_id: str) -> TokenRow | None:
        return self.users.get(token_id)

    def live_attempt_job(self, uid: AttemptUid) -> JobId | None:
        job = self.attempts.get(uid)
        return None if job is None else JobId(job)

    def worker_credential(self, worker_id: WorkerId) -> str | None:
        return self.credentials.get(worker_id)

    def join_token_expiry(self, token_id: str) -> float | None:
        return self.joins.get(token_id)

    def allocation_wanted(self, allocation_id: AllocationId) -> bool:
        return allocation_id in self.allocations


@pytest.fixture
def known() -> Known:
    return Known()


@pytest.fixture
def auth(known: Known) -> Authenticator:
    return Authenticator(b"k" * 32, tokens.secret_sha256(ADMIN), known, lambda: known.now)


def test_each_token_speaks_for_its_owner(auth: Authenticator) -> None:
    assert auth.authenticate(ADMIN) == Identity(TokenKind.ADMIN)
    user = auth.authenticate(auth.user_token("u1"))
    assert user == Identity(TokenKind.USER, user="alice", namespace=Namespace("team"), token_id="u1")
    attempt = auth.authenticate(auth.attempt_token(AttemptUid("a1")))
    assert attempt == Identity(TokenKind.ATTEMPT, attempt_uid=AttemptUid("a1"), job_id=JobId("job-1"))
    worker = auth.authenticate(tokens.worker_token(WorkerId("w_1"), SECRET))
    assert worker == Identity(TokenKind.WORKER, worker_id=WorkerId("w_1"))
    join = auth.authenticate(auth.join_token("t1"))
    assert join == Identity(TokenKind.JOIN, token_id="t1")
    local = auth.authenticate(auth.allocation_token(AllocationId("v1")))
    assert local == Identity(TokenKind.JOIN, token_id="alloc-v1", allocation_id=AllocationId("v1"))
    assert user is not None
    assert attempt is not None
    assert worker is not None
    assert join is not None
    actors = [identity.actor for identity in (Identity(TokenKind.ADMIN), user, attempt, worker, join)]
    assert actors == ["admin", "user:alice", "job:job-1", "worker:w_1", "token:t1"]


def test_an_administrators_token_may_have_any_form(known: Known) -> None:
    auth = Authenticator(b"k" * 32, tokens.secret_sha256("correct horse"), known, lambda: 0.0)
    assert auth.authenticate("correct horse") == Identity(TokenKind.ADMIN)


def test_whatever_is_not_exactly_a_valid_token_is_nobodys(auth: Authenticator, known: Known) -> None:
    other = Authenticator(b"K" * 32, tokens.secret_sha256(ADMIN), known, lambda: 0.0)
    genuine = (ADMIN, auth.user_token("u1"), auth.attempt_token(AttemptUid("a1")), auth.join_token("t1"))
    wrong = [
        None,
        "",
        "fla_",
        tokens.admin_token(SECRET),
        *(token[:-1] + ("0" if token[-1] != "0" else "1") for token in genuine),
        *(f"{token} " for token in genuine),
        other.attempt_token(AttemptUid("a1")),
        other.join_token("t1"),
        other.user_token("u1"),
        auth.user_token("u2"),
        auth.join_token("u1").replace("flj_", "flu_"),
        other.allocation_token(AllocationId("v1")),
        auth.attempt_token(AttemptUid("a1")).replace("_a1_", "_a2_"),
        auth.attempt_token(AttemptUid("a1")).replace("flt_", "flj_"),
        auth.join_token("t1").replace("_t1_", "_alloc-v1_"),
        tokens.worker_token(WorkerId("w_1"), tokens.secret_sha256(SECRET)),
        tokens.worker_token(WorkerId("w_2"), SECRET),
        "fl\xe9",
        "f" * 100_000,
    ]
    assert [auth.authenticate(token) for token in wrong] == [None] * len(wrong)


def test_a_worker_without_a_credential_cannot_be_spoken_for(auth: Authenticator, known: Known) -> None:
    known.credentials["w_3"] = ""
    assert auth.authenticate(tokens.worker_token(WorkerId("w_3"), SECRET)) is None


def test_an_attempts_token_ends_with_it(auth: Authenticator, known: Known) -> None:
    token = auth.attempt_token(AttemptUid("a1"))
    del known.attempts["a1"]
    assert auth.authenticate(token) is None


def test_a_users_token_ends_with_its_time_or_when_it_is_withdrawn(auth: Authenticator, known: Known) -> None:
    known.users["u1"] = token_of("alice", expires_at=100.0)
    identity = auth.authenticate(auth.user_token("u1"))
    assert identity is not None
    assert auth.still_valid(identity)
    known.now = 100.0
    assert not auth.still_valid(identity)
    assert auth.authenticate(auth.user_token("u1")) is None
    known.users["u1"] = token_of("alice")
    assert auth.still_valid(identity)
    known.users.clear()
    assert not auth.still_valid(identity)
    assert auth.authenticate(auth.user_token("u1")) is None


def test_a_token_that_was_recognized_before_is_looked_at_again(auth: Authenticator, known: Known) -> None:
    worker = tokens.worker_token(WorkerId("w_1"), SECRET)
    user, attempt, join = auth.user_token("u1"), auth.attempt_token(AttemptUid("a1")), auth.join_token("t1")
    before = [auth.authenticate(each) for each in (worker, user, attempt, join)]
    assert [auth.authenticate(each) for each in (worker, user, attempt, join)] == before
    assert None not in before

    known.credentials["w_1"] = tokens.secret_sha256(tokens.new_secret())
    known.users.clear()
    known.attempts.clear()
    assert [auth.authenticate(each) for each in (worker, user, attempt)] == [None] * 3


def test_tokens_that_strangers_make_up_are_not_remembered(auth: Authenticator) -> None:
    for number in range(100):
        assert auth.authenticate(tokens.worker_token(WorkerId(f"w{number}"), SECRET)) is None
    assert auth._genuine_ones == {}


def test_derived_tokens_are_the_same_each_time_and_differ_from_each_other(auth: Authenticator) -> None:
    assert auth.join_token("t1") == auth.join_token("t1")
    made = {auth.attempt_token(AttemptUid("x")), auth.join_token("x"), auth.join_token("y"), auth.user_token("x")}
    assert len({token.rpartition("_")[2] for token in made}) == 4


def test_nobody_can_be_given_an_allocations_token_under_another_name(auth: Authenticator) -> None:
    with pytest.raises(ValueError, match="must not begin with 'alloc-'"):
        auth.join_token("alloc-v1")


def test_a_withdrawn_or_expired_join_token_is_not_permitted(auth: Authenticator, known: Known) -> None:
    identity = auth.authenticate(auth.join_token("t1"))
    assert identity is not None
    auth.authorize(identity, "RegisterWorker")
    known.now = 100.0
    with pytest.raises(NotPermitted, match=r"has expired; `fluster worker token`"):
        auth.authorize(identity, "RegisterWorker")
    del known.joins["t1"]
    with pytest.raises(NotPermitted, match="has expired or was withdrawn"):
        auth.authorize(identity, "RegisterWorker")


def test_workers_of_an_allocation_join_while_it_is_wanted(auth: Authenticator, known: Known) -> None:
    identity = auth.authenticate(auth.allocation_token(AllocationId("v1")))
    assert identity is not None
    auth.authorize(identity, "RegisterWorker")
    known.allocations.clear()
    with pytest.raises(NotPermitted, match="being given back"):
        auth.authorize(identity, "RegisterWorker")


def test_no_secret_is_shown(auth: Authenticator, known: Known) -> None:
    identity = auth.authenticate(auth.join_token("t1"))
    assert identity is not None
    known.joins.clear()
    with pytest.raises(NotPermitted) as refused:
        auth.authorize(identity, "RegisterWorker")
    assert auth.join_token("t1").rpartition("_")[2] not in repr(identity) + str(refused.value)


RPCS = [method.name for service in controller_pb.desc().services for method in service.methods]
CLIENTS = {
    *("LaunchJob", "LaunchJobs", "GetJobStatus", "TerminateJob", "ListJobs", "WaitJobs", "GetResult"),
    *("FetchLogs", "ExplainJob", "ListEvents", "PutBlob", "GetBlob"),
    *("RegisterEndpoint", "RenewEndpoints", "UnregisterEndpoint", "LookupEndpoints", "ListEndpoints"),
}
MAY = {
    TokenKind.ADMIN: CLIENTS
    | {"ListWorkers", "ListAllocations", "CreateToken", "ListTokens", "RevokeToken", "GetWheel"},
    TokenKind.USER: CLIENTS | {"ListWorkers"},
    TokenKind.ATTEMPT: CLIENTS,
    TokenKind.WORKER: {"RegisterWorker", "SyncWorker", "PushLogs", "PutBlob", "GetBlob", "GetWheel"},
    TokenKind.JOIN: {"RegisterWorker"},
}


def test_the_table_holds_every_rpc_there_is_and_no_other() -> None:
    assert set(ALLOWED) == set(RPCS)


@pytest.mark.parametrize("kind", TokenKind)
@pytest.mark.parametrize("rpc", [*RPCS, "", "launchjob", "Call", "RunJob"])
def test_each_rpc_is_for_those_it_is_meant_for(auth: Authenticator, rpc: str, kind: TokenKind) -> None:
    identity = Identity(kind, token_id="t1")
    assert allowed(rpc, kind) is (rpc in MAY[kind])
    if rpc in MAY[kind]:
        auth.authorize(identity, rpc)
    else:
        with pytest.raises(NotPermitted, match="is not for"):
            auth.authorize(identity, rpc)
