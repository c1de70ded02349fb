"""Users: what each may see and change, the end of their tokens, and what floods are refused."""

from __future__ import annotations

import json
import threading
import time

import pytest
from protobuf import Message
from tests.cluster.controller.remote import (
    Api,
    Site,
    info,
    job_spec,
    join_token,
    launch,
    new_id,
    site,
    terminate,
    wait_for,
)

from fluster.cluster.controller.core.state import Settings
from fluster.cluster.controller.permissions import ALLOWED
from fluster.cluster.tokens import TokenKind
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

UNAUTHENTICATED = "a valid bearer token is needed: none came, or it is wrong or no longer valid"
RPCS = [method.name for service in pb.desc().services for method in service.methods]


# The table


@pytest.fixture
def callers(alone: Site) -> dict[TokenKind | None, Api]:
    """Somebody of each kind; `None` is nobody."""
    worker = alone.worker()
    _, _, task = alone.task(worker)
    return {
        None: alone.api(None),
        TokenKind.ADMIN: alone.admin,
        TokenKind.USER: alone.user("somebody"),
        TokenKind.ATTEMPT: task,
        TokenKind.WORKER: worker.api(),
        TokenKind.JOIN: alone.api(join_token(alone.admin)),
    }


def test_every_rpc_is_for_those_in_the_table_and_for_nobody_else(callers: dict[TokenKind | None, Api]) -> None:
    assert set(RPCS) == set(ALLOWED), "a new RPC needs a row in permissions.ALLOWED"
    for kind, api in callers.items():
        for rpc in RPCS:
            code, message = refusal_of(api, rpc)
            if kind is None:
                assert (code, message) == ("unauthenticated", UNAUTHENTICATED), rpc
            elif kind in ALLOWED[rpc]:
                assert code != "unauthenticated", (rpc, kind)
                assert not message.startswith(f"{rpc} is not for"), (rpc, kind)
            else:
                assert code == "permission_denied", (rpc, kind)
                assert message.startswith(f"{rpc} is not for"), (rpc, kind)


def refusal_of(api: Api, rpc: str) -> tuple[str, str]:
    """Code and text of what an empty request is answered; "None" twice where it is taken."""
    request: Message = getattr(pb, f"{rpc}Request")()
    if rpc not in ("FetchLogs", "GetBlob"):
        reply = api.post(request)
        return reply.code, reply.message
    reply = api.post_bytes(rpc, b"\0\0\0\0\2{}", "application/connect+json")
    if reply.body:
        return reply.code, reply.message  # before it became a stream
    error = json.loads(reply.text[5:]).get("error", {})
    return str(error.get("code")), str(error.get("message"))


def test_an_rpc_without_a_row_is_for_nobody(shared: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "fluster.cluster.controller.permissions.ALLOWED", {k: v for k, v in ALLOWED.items() if k != "ListJobs"}
    )

    assert shared.admin.post(pb.ListJobsRequest()).code == "permission_denied"


# Namespaces


def test_a_user_sees_its_namespace_and_nothing_else(shared: Site) -> None:
    alice, bob = shared.user("alice"), shared.user("bob")
    hers, his = launch(alice, cpu=1000.0), launch(bob, cpu=1000.0)
    absent = "j" + "z" * (len(his) - 1)

    assert info(shared.admin, hers).namespace == "alice"
    assert hers in [job.job_id for job in alice(pb.ListJobsRequest()).jobs]
    assert his not in [job.job_id for job in alice(pb.ListJobsRequest()).jobs]
    assert {hers, his} <= {job.job_id for job in shared.admin(pb.ListJobsRequest()).jobs}
    for make in (
        lambda job_id: pb.GetJobStatusRequest(job_id=job_id),
        lambda job_id: pb.TerminateJobRequest(request_id=new_id(), job_id=job_id),
        lambda job_id: pb.WaitJobsRequest(job_ids=[job_id]),
        lambda job_id: pb.GetResultRequest(job_id=job_id),
        lambda job_id: pb.ExplainJobRequest(job_id=job_id),
        lambda job_id: pb.ListEventsRequest(job_id=job_id),
        lambda job_id: pb.LaunchJobRequest(request_id=new_id(), spec=job_spec(parent=job_id)),
        lambda job_id: pb.RegisterEndpointRequest(request_id=new_id(), name="e", address="h:1", job_id=job_id),
    ):
        other, none = alice.post(make(his)), alice.post(make(absent))
        assert (other.status, other.code) == (none.status, none.code) == (404, "not_found")
        assert other.message.replace(his, "ID") == none.message.replace(absent, "ID")
    for job_id in (hers, his):
        terminate(shared.admin, job_id)


def test_another_namespace_is_refused_whether_there_is_one_or_not(shared: Site) -> None:
    alice, _ = shared.user("alice"), shared.user("bob")
    for namespace in ("bob", "default", "nowhere"):
        for request in (
            pb.LaunchJobRequest(request_id=new_id(), namespace=namespace, spec=job_spec()),
            pb.ListJobsRequest(namespace=namespace),
            pb.LookupEndpointsRequest(name="e", namespace=namespace),
            pb.ListEndpointsRequest(namespace=namespace),
            pb.RegisterEndpointRequest(request_id=new_id(), name="e", address="h:1", namespace=namespace),
        ):
            reply = alice.post(request)
            assert (reply.status, reply.code) == (403, "permission_denied"), request
            assert reply.message == f"who belongs to namespace 'alice' cannot reach into namespace '{namespace}'"


def test_users_of_one_namespace_see_each_others_jobs_and_change_their_own(alone: Site) -> None:
    alice, bob = alone.user("alice", namespace="team"), alone.user("bob", namespace="team")
    worker = alone.worker()
    his = launch(bob)
    (uid,) = worker.accept()
    waiting = launch(bob, cpu=1000.0)
    hers = launch(alice, cpu=1000.0)

    assert {job.job_id for job in alice(pb.ListJobsRequest()).jobs} == {his, waiting, hers}
    assert info(alice, waiting).status is types_pb.JobStatus.PENDING
    assert alice(pb.ListEventsRequest(job_id=waiting)).events[0].actor == "user:bob"
    for request in (
        pb.TerminateJobRequest(request_id=new_id(), job_id=waiting),
        pb.GetResultRequest(job_id=waiting),
        pb.LaunchJobRequest(request_id=new_id(), spec=job_spec(parent=waiting)),
        pb.RegisterEndpointRequest(request_id=new_id(), name="e", address="h:1", job_id=his),
    ):
        reply = alice.post(request)
        assert (reply.status, reply.code) == (403, "permission_denied"), request
        assert "is user bob's" in reply.message
    terminate(bob, waiting)
    terminate(alice, hers)
    worker.end(uid)


def test_a_result_is_for_whoever_launched_the_job_and_its_ancestors(alone: Site) -> None:
    alice, bob = alone.user("alice", namespace="team"), alone.user("bob", namespace="team")
    worker = alone.worker()
    parent = launch(alice, name="parent")
    (parent_uid,) = worker.accept()
    task = alone.api(worker.specs[parent_uid].token)
    child = launch(task, name="child")
    (child_uid,) = worker.accept()
    cousin = launch(bob, name="cousin")
    (cousin_uid,) = worker.accept()
    stranger = alone.api(worker.specs[cousin_uid].token)
    worker.end(child_uid)

    for api in (task, alice):
        assert api(pb.GetResultRequest(job_id=child)).finished
    for api in (bob, alone.admin):
        reply = api.post(pb.GetResultRequest(job_id=child))
        assert (reply.code, "because fetching unpickles it" in reply.message) == ("permission_denied", True)
    assert stranger.post(pb.GetResultRequest(job_id=child)).code == "not_found"
    for job_id in (parent, cousin):
        terminate(alone.admin, job_id)


def test_what_a_job_launches_is_its_users(alone: Site) -> None:
    alice = alone.user("alice", namespace="team", quota=pb.Quota(jobs=2))
    worker = alone.worker()
    parent = launch(alice)
    (uid,) = worker.accept()
    task = alone.api(worker.specs[uid].token)
    child = launch(task, cpu=1000.0)

    assert info(alice, child).namespace == "team"
    reply = task.post(pb.LaunchJobRequest(request_id=new_id(), spec=job_spec()))
    assert (reply.status, reply.code) == (429, "resource_exhausted")
    assert "user alice has 2 unfinished jobs and launches 1, the quota is 2" in reply.message
    terminate(alice, child)
    launch(task, cpu=1000.0)
    terminate(alice, parent)


def test_a_users_endpoints_are_its_own(shared: Site) -> None:
    team = {"namespace": "endpoints"}
    alice, bob, eve = shared.user("alice", **team), shared.user("bob", **team), shared.user("eve")
    made = alice(pb.RegisterEndpointRequest(request_id=new_id(), name="e", address="h:1", access_key="k")).endpoint
    withdrawal = pb.UnregisterEndpointRequest(request_id=new_id(), endpoint_id=made.endpoint_id)

    assert [each.access_key for each in bob(pb.LookupEndpointsRequest(name="e")).endpoints] == ["k"]
    assert not eve(pb.LookupEndpointsRequest(name="e")).endpoints
    assert bob.post(withdrawal).code == "permission_denied"
    eve(withdrawal)  # to those of other namespaces it looks like one that is gone
    assert list(bob(pb.RenewEndpointsRequest(endpoint_ids=[made.endpoint_id])).unknown_endpoint_ids)
    assert not alice(pb.RenewEndpointsRequest(endpoint_ids=[made.endpoint_id])).unknown_endpoint_ids
    alice(withdrawal)
    assert not bob(pb.LookupEndpointsRequest(name="e")).endpoints


# Tokens


def test_a_users_token_can_end(shared: Site) -> None:
    alice = shared.user("alice", ttl_s=0.05)

    reply = wait_for(lambda: (found := alice.post(pb.ListJobsRequest())).status == 401 and found, "its end")

    assert (reply.code, reply.message) == ("unauthenticated", UNAUTHENTICATED)


def test_a_revoked_token_stops_working_at_once_and_the_users_others_go_on(shared: Site) -> None:
    made = [
        shared.admin(pb.CreateTokenRequest(request_id=new_id(), kind=pb.TokenKind.USER, user="carol")) for _ in range(3)
    ]
    first, second, third = (shared.api(each.token) for each in made)

    assert shared.admin(pb.RevokeTokenRequest(request_id=new_id(), token_id=made[0].token_id)).revoked == 1
    assert first.post(pb.ListJobsRequest()).code == "unauthenticated"
    assert second.post(pb.ListJobsRequest()).status == 200
    assert shared.admin(pb.RevokeTokenRequest(request_id=new_id(), user="carol")).revoked == 2
    assert [api.post(pb.ListJobsRequest()).status for api in (second, third)] == [401, 401]
    assert shared.admin(pb.RevokeTokenRequest(request_id=new_id(), token_id=made[0].token_id)).revoked == 0


@pytest.mark.parametrize("wait", [True, False], ids=["long poll", "stream"])
def test_what_is_being_answered_ends_with_the_token(shared: Site, wait: bool) -> None:
    made = shared.admin(pb.CreateTokenRequest(request_id=new_id(), kind=pb.TokenKind.USER, user="dave"))
    dave = shared.api(made.token)
    job_id = launch(dave, cpu=1000.0)
    ended: list[object] = []

    def ask() -> None:
        try:
            if wait:
                dave(pb.WaitJobsRequest(job_ids=[job_id], wait_s=30), timeout_s=30)
            else:
                list(dave.stream(pb.FetchLogsRequest(job_id=job_id, follow=True), idle_timeout_s=30))
        except Exception as error:
            ended.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert shared.server._running is not None
    wait_for(lambda: shared.server._running.controller.calls._calls, "the call to be open")  # type: ignore[union-attr]
    began = time.monotonic()
    shared.admin(pb.RevokeTokenRequest(request_id=new_id(), token_id=made.token_id))
    asking.join(timeout=10)

    assert not asking.is_alive()
    assert time.monotonic() - began < 5.0
    assert ended
    assert dave.post(pb.ListJobsRequest()).code == "unauthenticated"
    terminate(shared.admin, job_id)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"user": ""}, "user must be 1 to 128"),
        ({"user": "../x"}, "user must be 1 to 128"),
        ({"user": "admin"}, "another name than"),
        ({"user": "a", "namespace": "a b"}, "namespace must be 1 to 128"),
        ({"user": "a", "uses": 2}, "give none"),
        ({"user": "a", "ttl_s": -1.0}, "ttl_s must be"),
        ({"user": "a", "ttl_s": float("nan")}, "ttl_s must be"),
        ({"user": "a", "quota": pb.Quota(cpu=float("nan"))}, "the quota of cpu must be"),
        ({"user": "a", "quota": pb.Quota(cpu=float("inf"))}, "the quota of cpu must be"),
        ({"user": "a", "quota": pb.Quota(memory_bytes=2**62)}, "the quota of memory_bytes must be"),
    ],
)
def test_what_no_token_can_be_is_refused(shared: Site, fields: dict[str, object], words: str) -> None:
    request = pb.CreateTokenRequest(request_id=new_id(), kind=pb.TokenKind.USER, **fields)  # type: ignore[arg-type]
    reply = shared.admin.post(request, as_json=False)

    assert (reply.status, reply.code) == (400, "invalid_argument")
    assert words in reply.message


def test_quotas_are_the_users_and_change_field_by_field(shared: Site) -> None:
    shared.user("frank", quota=pb.Quota(cpu=4, memory_bytes=10**9))
    shared.user("frank", quota=pb.Quota(gpus=0, memory_bytes=-1))
    job_id = launch(shared.user("frank"), cpu=1000.0)

    listed = [each for each in shared.admin(pb.ListTokensRequest()).tokens if each.user == "frank"]

    assert [(each.kind, each.namespace, each.expires_at) for each in listed] == [(pb.TokenKind.USER, "frank", 0.0)] * 3
    for each in listed:
        assert (each.quota.cpu, each.quota.gpus, each.quota.has_field("memory_bytes")) == (4, 0, False)
        assert (each.used.cpu, each.used.jobs) == (0, 1)
    terminate(shared.admin, job_id)


def test_what_waits_for_a_quota_says_so_and_others_go_ahead(alone: Site) -> None:
    alice, bob = alone.user("alice", quota=pb.Quota(cpu=1.0)), alone.user("bob")
    worker = alone.worker()
    first, second = launch(alice), launch(alice)
    his = launch(bob)
    uids = worker.accept(2)

    why = "the quota of user alice is 1 cpu, 1 used, 1 needed"
    assert {worker.specs[uid].job_id for uid in uids} == {first, his}
    assert list(alice(pb.ExplainJobRequest(job_id=second)).reasons) == [f"waiting: {why}"]
    assert info(alice, second).pending_reason == why
    (listed,) = [each for each in alone.admin(pb.ListTokensRequest()).tokens if each.user == "alice"]
    assert (listed.used.cpu, listed.used.jobs) == (1.0, 2)
    worker.end(next(uid for uid in uids if worker.specs[uid].job_id == first))
    (uid,) = worker.accept()
    assert worker.specs[uid].job_id == second
    for job_id in (second, his):
        terminate(alone.admin, job_id)


def test_a_flood_of_launches_by_a_user_is_refused_and_others_go_on() -> None:
    with site(Settings(max_unfinished_jobs_per_user=3)) as few:
        alice, bob = few.user("alice"), few.user("bob")
        for _ in range(3):
            launch(alice, cpu=1000.0)
        assert alice.post(pb.LaunchJobRequest(request_id=new_id(), spec=job_spec())).code == "resource_exhausted"
        group = pb.LaunchJobsRequest(request_id=new_id(), specs=[job_spec() for _ in range(4)])
        assert bob.post(group).code == "resource_exhausted"
        launch(bob, cpu=1000.0)
        for _ in range(4):
            launch(few.admin, cpu=1000.0)


def test_tokens_users_and_quotas_outlive_the_controller(tmp_path_factory: pytest.TempPathFactory) -> None:
    state = tmp_path_factory.mktemp("state")
    with site(state_dir=state) as first:
        token = first.user("alice", namespace="team", quota=pb.Quota(jobs=1)).token
        job_id = launch(first.api(token), cpu=1000.0)
    with site(state_dir=state) as again:
        alice = again.api(token)
        assert info(alice, job_id).namespace == "team"
        assert alice.post(pb.LaunchJobRequest(request_id=new_id(), spec=job_spec())).code == "resource_exhausted"
        assert again.admin(pb.RevokeTokenRequest(request_id=new_id(), user="alice")).revoked == 1
        assert alice.post(pb.ListJobsRequest()).code == "unauthenticated"
