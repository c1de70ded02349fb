"""Who did what to which object, from where, allowed or not: in the journal, without secrets, bounded against floods."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from typing import Any

import pytest
from tests.cluster.controller.remote import SERVICE, Site, job_spec, launch, new_id, terminate, wait_for

from fluster.cluster.controller import refusals
from fluster.cluster.controller.store import Store
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb


def audit(site: Site, **fields: Any) -> list[pb.Event]:
    return list(site.admin(pb.ListEventsRequest(audit=True, page_size=1000, **fields)).events)


def refused(site: Site, what: str, **fields: Any) -> pb.Event:
    """The line on a refused request, once it is there; there is one of it."""

    def found() -> list[pb.Event]:
        return [each for each in audit(site, **fields) if each.kind == refusals.KIND and what in each.message]

    (line,) = wait_for(found, f"a line on {what}")
    return line  # type: ignore[no-any-return]


def test_what_is_done_is_told_with_who_and_from_where(alone: Site) -> None:
    alice = alone.user("alice")
    worker = alone.worker()
    job_id = launch(alice, name="hers")
    (uid,) = worker.accept()
    task = alone.api(worker.specs[uid].token)
    child = launch(task, name="child", cpu=1000.0)
    endpoint = task(pb.RegisterEndpointRequest(request_id=new_id(), name="e", address="127.0.0.1:1")).endpoint
    task(pb.UnregisterEndpointRequest(request_id=new_id(), endpoint_id=endpoint.endpoint_id))
    terminate(alone.admin, job_id)
    alone.admin(pb.RevokeTokenRequest(request_id=new_id(), user="alice"))

    lines = [(each.kind, each.actor, each.job_id) for each in audit(alone)]
    (joined,) = [each for each in lines if each[0] == "WorkerJoined"]
    assert [each for each in lines if each[0] != "WorkerJoined"] == [
        ("TokenCreated", "admin", ""),
        ("TokenCreated", "admin", ""),
        ("JobLaunched", "user:alice", job_id),
        ("JobLaunched", f"job:{job_id}", child),
        ("EndpointRegistered", f"job:{job_id}", job_id),
        ("EndpointUnregistered", f"job:{job_id}", job_id),
        ("JobStopRequested", "admin", child),
        ("JobStopRequested", "admin", job_id),
        ("TokenRevoked", "admin", ""),
    ]
    assert joined[1] == f"worker:{worker.worker_id}"
    assert all(each.peer.startswith("127.0.0.1:") for each in audit(alone))
    assert [each.job_id for each in audit(alone, actor="user:alice")] == [job_id, child, job_id, job_id]
    assert {each.kind for each in audit(alone, job_id=child)} == {"JobLaunched", "JobStopRequested"}
    newest = alone.admin(pb.ListEventsRequest(audit=True, newest=True, page_size=2)).events
    assert [each.kind for each in newest] == ["JobStopRequested", "TokenRevoked"]
    worker.end(uid)


def test_a_refused_request_is_told_once(alone: Site) -> None:
    alice = alone.user("alice")
    job_id = launch(alone.admin, cpu=1000.0)

    alice.post(pb.TerminateJobRequest(request_id=new_id(), job_id=job_id))
    alice.post(pb.ListTokensRequest())
    alone.api("wrong").post(pb.ListWorkersRequest())
    alice.post_bytes("LaunchJob", b"{")
    alice.post_bytes("ExplainJob", b"\xff\xff\xff", "application/proto")
    alice.post_bytes("NoSuchRpc", b"{}")
    alice.post(pb.LaunchJobRequest(request_id=new_id(), spec=job_spec("../x")))

    line = refused(alone, "TerminateJob: not_found")
    assert (line.actor, line.job_id, line.peer.partition(":")[0]) == ("user:alice", job_id, "127.0.0.1")
    assert refused(alone, "ListTokens is not for users").actor == "user:alice"
    assert refused(alone, "'ListWorkers': unauthenticated").actor == "anonymous"
    assert refused(alone, "'LaunchJob': invalid_argument: HTTP status 400").actor == "user:alice"
    assert refused(alone, "'ExplainJob': invalid_argument: HTTP status 400").actor == "user:alice"
    assert refused(alone, "'NoSuchRpc': unimplemented: HTTP status 404").actor == "user:alice"
    refused(alone, "LaunchJob: invalid_argument: name must be")
    assert [each.kind for each in audit(alone, job_id=job_id)] == ["JobLaunched", refusals.KIND]
    assert refusals.KIND not in {each.kind for each in alone.admin(pb.ListEventsRequest(job_id=job_id)).events}
    terminate(alone.admin, job_id)


@pytest.mark.parametrize("accepted", ["identity", "gzip"])
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\0\0\0\0\3\xff\xff\xff", "invalid_argument"),
        (b"", "unimplemented"),
        (b"\0\0\0\0\0" * 2, "unimplemented"),
        (b"\1\0\0\0\3abc", "internal"),
    ],
    ids=["no message", "none", "two", "compressed without saying so"],
)
def test_a_malformed_body_of_a_stream_is_told_as_any_other(alone: Site, sent: bytes, code: str, accepted: str) -> None:
    alice = alone.user("alice")
    more = {"connect-accept-encoding": accepted}
    assert alice.post_bytes("FetchLogs", sent, "application/connect+proto", **more).status == 200

    assert refused(alone, "'FetchLogs': ").actor == "user:alice"


def test_who_looks_for_what_is_not_there_is_no_audit_matter_and_who_looks_at_anothers_is(alone: Site) -> None:
    alice, bob = alone.user("alice"), alone.user("bob")
    job_id = launch(alice, name="hers", cpu=1000.0)
    for absent in (pb.GetJobStatusRequest(job_id="hers"), pb.ExplainJobRequest(job_id="hers")):
        assert bob.post(absent).code == "not_found"
    assert bob.post(pb.GetJobStatusRequest(job_id=job_id)).code == "not_found"
    assert bob.post(pb.TerminateJobRequest(request_id=new_id(), job_id="hers")).code == "not_found"

    refused(alone, "TerminateJob: not_found", actor="user:bob")
    assert refused(alone, "GetJobStatus: not_found", actor="user:bob").job_id == job_id
    assert len([each for each in audit(alone, actor="user:bob") if each.kind == refusals.KIND]) == 2
    terminate(alone.admin, job_id)


def test_who_hangs_up_while_it_waits_was_not_refused(alone: Site) -> None:
    assert alone.server._running is not None
    calls = alone.server._running.controller.calls._calls
    alice = alone.user("alice")
    job_id = launch(alice, cpu=1000.0)
    plain = http.client.HTTPConnection(alone.address.removeprefix("http://"), timeout=10)
    headers = {"content-type": "application/json", "authorization": f"Bearer {alice.token}"}
    plain.request("POST", f"/{SERVICE}/WaitJobs", json.dumps({"jobIds": [job_id], "waitS": 30}), headers)
    wait_for(lambda: calls, "the call to be open")
    plain.close()
    wait_for(lambda: not calls, "the call to be over")
    alice.post(pb.ListTokensRequest())

    refused(alone, "ListTokens is not for users")
    assert len([each for each in audit(alone, actor="user:alice") if each.kind == refusals.KIND]) == 1
    terminate(alone.admin, job_id)


def test_a_foreign_host_is_told_of_too(shared: Site) -> None:
    host, port = shared.address.removeprefix("http://").split(":")
    head = f"POST /{SERVICE}/ListJobs HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 0\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode())
        assert b" 421 " in connection.recv(1000)

    assert refused(shared, "the Host header").actor == "anonymous"


def test_a_claimed_address_is_not_believed(alone: Site) -> None:
    plain = http.client.HTTPConnection(alone.address.removeprefix("http://"), timeout=10)
    headers = {"content-type": "application/json", "x-forwarded-for": "6.6.6.6", "forwarded": "for=6.6.6.6"}
    plain.request("POST", f"/{SERVICE}/ListJobs", b"{}", headers)
    assert plain.getresponse().status == 401
    plain.close()

    assert refused(alone, "'ListJobs': unauthenticated").peer.startswith("127.0.0.1:")


def test_only_administrators_read_it(alone: Site) -> None:
    alice = alone.user("alice")
    job_id = launch(alice, cpu=1000.0)

    for request in (
        pb.ListEventsRequest(audit=True),
        pb.ListEventsRequest(audit=True, job_id=job_id),
        pb.ListEventsRequest(job_id=job_id, actor="admin"),
        pb.ListEventsRequest(),
    ):
        assert alice.post(request).code == "permission_denied"
    assert [each.peer for each in alice(pb.ListEventsRequest(job_id=job_id)).events] == [""]
    terminate(alone.admin, job_id)


def test_a_flood_becomes_few_lines(alone: Site) -> None:
    assert alone.server._running is not None
    controller = alone.server._running.controller

    async def flood() -> None:
        for number in range(1_000):
            controller.refusals.note("anonymous", f"127.0.0.1:{number}", "the same")
            controller.refusals.note("admin", f"127.0.0.1:{number}", f"GetJobStatus of {number}")

    asyncio.run_coroutine_threadsafe(flood(), alone.server._running.failed.get_loop()).result(10)
    refused(alone, "more requests")

    lines = [each for each in audit(alone) if each.kind == refusals.KIND]
    assert len(lines) == refusals.MAX_LINES + 1
    assert lines[0].message == "the same (1000 times)"
    assert lines[-1].message == f"{1_000 - refusals.MAX_LINES + 1} more requests"


def test_no_secret_gets_into_it(alone: Site) -> None:
    token = alone.user("alice").token
    assert token is not None
    alone.admin.post(pb.TerminateJobRequest(request_id=new_id(), job_id=token))
    alone.api(None).post_bytes(token, b"{}")

    line = refused(alone, "TerminateJob: not_found")
    assert "flu_user-" in line.message
    refused(alone, "unauthenticated")
    secret = token.rpartition("_")[2]
    assert all(secret[:16] not in str(each) for each in audit(alone))


def test_refused_requests_are_kept_up_to_a_number(alone: Site) -> None:
    for number in range(12):
        alone.admin.post(pb.TerminateJobRequest(request_id=new_id(), job_id=f"j{number}"))
    refused(alone, "'j11'")
    assert alone.server._running is not None
    store: Store = alone.server._running.controller.store
    before = len(audit(alone))

    while store.prune_refused(0.0, 5):
        pass

    kept = [each for each in audit(alone) if each.kind == refusals.KIND]
    assert len(kept) == 5
    assert "'j11'" in kept[-1].message
    assert len(audit(alone)) == before - 7
