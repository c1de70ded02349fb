"""Who may ask for what: tokens, their scopes, and their end."""

from __future__ import annotations

import logging
import secrets
import socket
import time
from collections.abc import Callable

import pytest
from protobuf import Message
from tests.cluster.controller.remote import (
    Api,
    FakeWorker,
    Site,
    info,
    job_spec,
    join_token,
    launch,
    new_id,
    terminate,
    wait_for,
)

from fluster.cluster.tokens import new_secret
from fluster.errors import JobNotFound, NotPermitted
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

UNAUTHENTICATED = "a valid bearer token is needed: none came, or it is wrong or no longer valid"


@pytest.mark.parametrize(
    "token",
    [
        None,
        "",
        "x",
        "fla_" + "0" * 64,
        "flt_job.0.1_" + "0" * 64,
        "flw_w-1_" + "0" * 64,
        "flj_join-1_" + "0" * 64,
        "x" * 9_000,
    ],
)
def test_no_token_and_every_wrong_one_get_the_same_text(shared: Site, token: str | None) -> None:
    for request in (pb.ListJobsRequest(), pb.CreateTokenRequest(), pb.SyncWorkerRequest()):
        reply = shared.api(token).post(request)
        assert (reply.status, reply.code, reply.message) == (401, "unauthenticated", UNAUTHENTICATED)


def test_a_token_in_the_url_is_no_token(shared: Site) -> None:
    reply = shared.api(None).post_bytes(f"ListJobs?token={shared.server.token}", b"{}")

    assert (reply.status, reply.code) == (401, "unauthenticated")


ADMINISTRATORS: list[Message] = [
    pb.ListWorkersRequest(),
    pb.ListAllocationsRequest(),
    pb.CreateTokenRequest(request_id="a", kind=pb.TokenKind.JOIN),
    pb.ListTokensRequest(),
    pb.RevokeTokenRequest(request_id="a", token_id="b"),
]
WORKERS: list[Message] = [
    pb.SyncWorkerRequest(incarnation="a"),
    pb.PushLogsRequest(),
    pb.RegisterWorkerRequest(worker_id="a"),
]
CLIENTS: list[Message] = [
    pb.LaunchJobRequest(request_id="a", spec=job_spec()),
    pb.ListJobsRequest(),
    pb.GetJobStatusRequest(job_id="a"),
    pb.LookupEndpointsRequest(name="a"),
]


def test_each_kind_of_token_reaches_its_own_rpcs_only(alone: Site) -> None:
    worker = alone.worker()
    job_id, _, task = alone.task(worker)
    join = alone.api(join_token(alone.admin))
    refused = [
        *((task, request) for request in [*ADMINISTRATORS, *WORKERS]),
        *((worker.api(), request) for request in [*ADMINISTRATORS, *CLIENTS]),
        *((join, request) for request in [*ADMINISTRATORS, *CLIENTS, *WORKERS[:2]]),
        *((alone.admin, request) for request in WORKERS),
    ]

    for api, request in refused:
        reply = api.post(request)
        assert (reply.status, reply.code) == (403, "permission_denied"), request
    terminate(alone.admin, job_id)


OF_A_JOB: list[Callable[[str], Message]] = [
    lambda job_id: pb.GetJobStatusRequest(job_id=job_id),
    lambda job_id: pb.TerminateJobRequest(request_id="a", job_id=job_id),
    lambda job_id: pb.WaitJobsRequest(job_ids=[job_id]),
    lambda job_id: pb.GetResultRequest(job_id=job_id),
    lambda job_id: pb.ExplainJobRequest(job_id=job_id),
    lambda job_id: pb.ListEventsRequest(job_id=job_id),
    lambda job_id: pb.LaunchJobRequest(request_id=new_id(), spec=job_spec(parent=job_id)),
]


def test_another_jobs_objects_look_like_absent_ones(alone: Site) -> None:
    worker = alone.worker()
    mine, _, task = alone.task(worker)
    other = launch(alone.admin, cpu=1000.0)
    absent = "j" + "z" * (len(other) - 1)

    for make in OF_A_JOB:
        replies = [task.post(make(job_id)) for job_id in (other, absent)]
        texts = [reply.text.replace(job_id, "ID") for reply, job_id in zip(replies, (other, absent), strict=True)]
        assert [reply.status for reply in replies] == [404, 404]
        assert [reply.code for reply in replies] == ["not_found", "not_found"]
        assert replies[0].message.replace(other, "ID") == replies[1].message.replace(absent, "ID")
        assert len(set(map(len, texts))) == 1
    for job_id in (other, absent):
        with pytest.raises(JobNotFound):
            list(task.stream(pb.FetchLogsRequest(job_id=job_id)))
    assert info(alone.admin, other).status is types_pb.JobStatus.PENDING
    for job_id in (mine, other):
        terminate(alone.admin, job_id)


def test_a_job_sees_itself_and_what_descends_from_it(alone: Site) -> None:
    worker = alone.worker()
    mine, _, task = alone.task(worker)
    child = launch(task, name="child")
    (uid,) = worker.accept()
    grandchild = launch(alone.api(worker.specs[uid].token), name="grandchild", cpu=1000.0)
    other = launch(alone.admin, name="other", cpu=1000.0)

    assert [job.job_id for job in task(pb.ListJobsRequest()).jobs] == [grandchild, child, mine]
    assert info(task, grandchild).parent == child
    assert info(task, child).parent == mine
    terminate(task, grandchild)
    assert info(task, grandchild).status is types_pb.JobStatus.STOPPED
    assert task.post(pb.ListEventsRequest()).code == "permission_denied"
    for job_id in (mine, other):
        terminate(alone.admin, job_id)


def test_a_jobs_finished_descendants_stay_in_its_sight(alone: Site) -> None:
    worker = alone.worker()
    mine, _, task = alone.task(worker)
    child = launch(task, name="child")
    (uid,) = worker.accept()
    grandchild = launch(alone.api(worker.specs[uid].token), name="grandchild")
    (last,) = worker.accept()
    worker.end(uid)
    worker.end(last)

    assert info(task, grandchild).status is types_pb.JobStatus.SUCCEEDED
    assert [job.job_id for job in task(pb.ListJobsRequest()).jobs] == [grandchild, child, mine]
    assert [job.job_id for job in task(pb.ListJobsRequest(status=types_pb.JobStatus.SUCCEEDED)).jobs] == [
        grandchild,
        child,
    ]
    terminate(alone.admin, mine)


def test_a_jobs_child_is_its_own_even_when_it_says_nothing(alone: Site) -> None:
    worker = alone.worker()
    mine, _, task = alone.task(worker, namespace="team")
    child = launch(task, cpu=1000.0)

    told = info(alone.admin, child)
    assert (told.parent, told.namespace) == (mine, "team")
    request = pb.LaunchJobRequest(request_id=new_id(), namespace="other", spec=job_spec())
    assert task.post(request).code == "permission_denied"
    terminate(alone.admin, mine)
    assert info(alone.admin, child).status is types_pb.JobStatus.STOPPED


def test_an_ended_attempts_token_is_none_at_once(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, task = alone.task(worker)
    assert info(task, job_id).status is types_pb.JobStatus.RUNNING

    worker.end(uid)

    reply = task.post(pb.GetJobStatusRequest(job_id=job_id))
    assert (reply.status, reply.code, reply.message) == (401, "unauthenticated", UNAUTHENTICATED)


def test_a_retried_jobs_earlier_attempt_speaks_no_more(alone: Site) -> None:
    worker = alone.worker()
    retry = types_pb.RetrySpec(max_failures=1, max_preemptions=1)
    job_id, uid, first = alone.task(worker, retry=retry)
    worker.end(uid, 1)
    (again,) = worker.accept()
    second = alone.api(worker.specs[again].token)

    assert info(second, job_id).tasks[0].attempt == 2
    assert first.post(pb.GetJobStatusRequest(job_id=job_id)).code == "unauthenticated"
    terminate(alone.admin, job_id)


def test_a_request_whose_body_comes_after_its_attempts_end_does_nothing(alone: Site) -> None:
    """The head brings the token while the attempt lives; the body, and with it the request, comes later."""
    worker = alone.worker()
    _, uid, task = alone.task(worker)
    body = pb.LaunchJobRequest(request_id="late", spec=job_spec("late")).to_binary()
    head = (
        f"POST /fluster.cluster.v1.ControllerService/LaunchJob HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/proto\r\nContent-Length: {len(body)}\r\nAuthorization: Bearer {task.token}\r\n\r\n"
    )
    host, port = alone.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode() + body[:1])
        info(alone.admin, uid.rpartition(".")[0].rpartition(".")[0])  # the head has been read meanwhile
        time.sleep(0.05)
        worker.end(uid)
        connection.sendall(body[1:])
        answer = b""
        while UNAUTHENTICATED.encode() not in answer and (more := connection.recv(65_536)):
            answer += more

    assert answer.startswith(b"HTTP/1.1 401 ")
    assert UNAUTHENTICATED.encode() in answer
    assert [job.name for job in alone.admin(pb.ListJobsRequest()).jobs] == ["job"]


def test_a_worker_speaks_for_its_own_attempts_only(alone: Site) -> None:
    mine, other = alone.worker("w-mine"), alone.worker("w-other", cpu=0.5)
    job_id, uid, _ = alone.task(mine)

    for report in (
        pb.ObservedAttempt(attempt_uid=uid, state=types_pb.TaskState.RUNNING),
        pb.ObservedAttempt(attempt_uid=uid, exit=types_pb.ExitReport(exit_code=0, finished_at=1.0)),
    ):
        reply = other.api().post(other.request(observed=[report]))
        assert (reply.status, reply.code) == (403, "permission_denied")
    chunk = pb.LogChunk(attempt_uid=uid, stream=types_pb.LogStream.STDOUT, data=b"forged\n")
    assert other.api().post(pb.PushLogsRequest(chunks=[chunk])).code == "permission_denied"
    assert other.api().post(mine.registration()).code == "permission_denied"
    assert info(alone.admin, job_id).status is types_pb.JobStatus.RUNNING
    terminate(alone.admin, job_id)


def test_a_worker_that_starts_again_renews_its_credential(shared: Site) -> None:
    worker = shared.worker()
    before = worker.api()
    worker.secret, worker.incarnation = new_secret(), new_id()
    assert before.post(worker.registration()).status == 200

    for request in (pb.PushLogsRequest(), worker.request(), worker.registration()):
        assert before.post(request).code == "unauthenticated"
    assert worker.api().post(pb.PushLogsRequest()).status == 200


def test_a_join_token_admits_as_many_workers_as_it_says(shared: Site) -> None:
    token = join_token(shared.admin, uses=2)
    fakes = [FakeWorker(shared.address, f"w-{new_id()}") for _ in range(3)]
    shared.workers.extend(fakes)
    for fake in fakes[:2]:
        fake.join(token)

    reply = fakes[2].api(token).post(fakes[2].registration())

    assert (reply.status, reply.code) == (403, "permission_denied")
    assert "used up" in reply.message
    fakes[0].join(token)  # again: it is no other worker


def test_a_join_token_ends(shared: Site) -> None:
    token = join_token(shared.admin, ttl_s=0.05)
    fake = FakeWorker(shared.address, f"w-{new_id()}")
    shared.workers.append(fake)

    reply = wait_for(
        lambda: (found := fake.api(token).post(fake.registration())).status == 403 and found, "the token to end"
    )

    assert reply.code == "permission_denied"
    assert "expired" in reply.message or "withdrawn" in reply.message


def test_a_revoked_join_token_admits_nobody(shared: Site) -> None:
    made = shared.admin(pb.CreateTokenRequest(request_id=new_id(), kind=pb.TokenKind.JOIN))
    shared.admin(pb.RevokeTokenRequest(request_id=new_id(), token_id=made.token_id))
    shared.admin(pb.RevokeTokenRequest(request_id=new_id(), token_id=made.token_id))  # harmless
    fake = FakeWorker(shared.address, f"w-{new_id()}")
    shared.workers.append(fake)

    assert fake.api(made.token).post(fake.registration()).code == "permission_denied"


def test_a_join_token_takes_no_worker_over(shared: Site) -> None:
    worker = shared.worker()
    thief = FakeWorker(shared.address, worker.worker_id)
    shared.workers.append(thief)

    reply = thief.api(join_token(shared.admin)).post(thief.registration())

    assert (reply.status, reply.code) == (409, "already_exists")
    assert not worker.sync().reregister


def test_a_join_token_is_for_no_allocation(shared: Site) -> None:
    fake = FakeWorker(shared.address, f"w-{new_id()}")
    shared.workers.append(fake)

    reply = fake.api(join_token(shared.admin)).post(fake.registration(allocation_id="local-0"))

    assert reply.code == "permission_denied"


def test_tokens_are_listed_with_what_is_left_of_them(shared: Site) -> None:
    made = shared.admin(pb.CreateTokenRequest(request_id=new_id(), kind=pb.TokenKind.JOIN, uses=3, ttl_s=100))
    fake = FakeWorker(shared.address, f"w-{new_id()}")
    shared.workers.append(fake)
    fake.join(made.token)

    (listed,) = [each for each in shared.admin(pb.ListTokensRequest()).tokens if each.token_id == made.token_id]

    assert (listed.kind, listed.uses_left) == (pb.TokenKind.JOIN, 2)
    assert listed.expires_at == made.expires_at
    assert made.expires_at == pytest.approx(time.time() + 100, abs=10)
    assert made.token not in shared.admin.post(pb.ListTokensRequest()).text
    shared.admin(pb.RevokeTokenRequest(request_id=new_id(), token_id=made.token_id))
    assert made.token_id not in {each.token_id for each in shared.admin(pb.ListTokensRequest()).tokens}
    assert not fake.sync().reregister  # who has joined stays


def test_a_token_that_is_asked_for_twice_is_made_once(shared: Site) -> None:
    request = pb.CreateTokenRequest(request_id=new_id(), kind=pb.TokenKind.JOIN)

    first, again = shared.admin(request), shared.admin(request)

    assert (first.token, first.expires_at) == (again.token, again.expires_at)
    request.uses = 2
    assert shared.admin.post(request).code == "already_exists"


def test_nothing_secret_is_in_the_database_or_the_log(alone: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    worker = alone.worker()
    job_id, _, task = alone.task(worker)
    join = join_token(alone.admin)
    alone.api(secrets.token_hex(32)).post(pb.ListJobsRequest())
    task.post(pb.ListWorkersRequest())
    terminate(alone.admin, job_id)

    state_dir = alone.server._config.state_dir
    stored = b"".join(path.read_bytes() for path in state_dir.glob("fluster.db*"))
    said = caplog.text
    for secret in (worker.secret, task.token, join, alone.server.token):
        assert secret is not None
        assert secret.encode() not in stored
        assert secret not in said


def test_a_refusal_is_noted_once(shared: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="fluster")

    shared.admin.post(pb.TerminateJobRequest(request_id="of-an-absent-job", job_id="jabsent"))
    shared.api("wrong").post(pb.ListJobsRequest())

    refused = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(refused) == 2
    assert refused[0].startswith("refused TerminateJob of admin: not_found: no job 'jabsent'")
    assert "unauthenticated" in refused[1]


def test_a_client_is_told_what_it_may_not(shared: Site) -> None:
    with pytest.raises(NotPermitted, match="a valid bearer token is needed"):
        Api(shared.address, "wrong")(pb.ListJobsRequest())
