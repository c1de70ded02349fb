"""Workers over the wire: they join, hold a long poll, and are told what to run; fenced by epoch and incarnation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.cluster.controller.remote import (
    FakeWorker,
    Site,
    callable_of,
    info,
    inline,
    job_spec,
    join_token,
    launch,
    new_id,
    site,
    terminate,
    wait_for,
)

from fluster.cluster.controller.core.rows import Resources
from fluster.cluster.controller.core.state import Settings
from fluster.cluster.controller.store import Store
from fluster.cluster.ids import AllocationId, VMId
from fluster.cluster.observed import VMInfo
from fluster.cluster.resources import ResourceConfig
from fluster.cluster.states import VMStatus
from fluster.errors import NotPermitted
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

S = types_pb.JobStatus
T = types_pb.TaskState
PROMPT_S = 5.0
"""Far less than a poll is held."""


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


def held(pool: ThreadPoolExecutor, worker: FakeWorker, **fields: object) -> Future[pb.SyncWorkerResponse]:
    """A poll that waits at the controller."""
    future = pool.submit(worker.sync, wait_s=10, **fields)
    with pytest.raises(TimeoutError):
        future.result(0.15)
    return future


def uids(response: pb.SyncWorkerResponse) -> list[str]:
    return [each.attempt_uid for each in response.desired]


# Joining.


def test_a_worker_joins_with_a_token_and_then_speaks_with_its_own_credential(alone: Site) -> None:
    worker = FakeWorker(alone.address, "w-0")
    alone.workers.append(worker)

    response = worker.join(join_token(alone.admin))

    assert (response.worker_id, response.controller_epoch, response.lease_s) == ("w-0", 1, 300.0)
    assert not worker.sync().reregister
    worker.incarnation = new_id()
    worker.join(worker.token)  # its daemon started again
    assert [each.worker_id for each in alone.admin(pb.ListWorkersRequest()).workers] == ["w-0"]


def test_a_registration_whose_answer_was_lost_uses_the_token_once(alone: Site) -> None:
    token = join_token(alone.admin, uses=1)
    worker = FakeWorker(alone.address, "w-0")
    alone.workers.append(worker)
    request = worker.registration()

    first = worker.api(token)(request)
    again = worker.api(token)(request)

    assert first == again
    kinds = [event.kind for event in alone.admin(pb.ListEventsRequest()).events]
    assert kinds.count("WorkerJoined") == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"worker_id": "../x"}, "worker_id must be 1 to 128 of"),
        ({"incarnation": ""}, "incarnation must be 1 to 128 printable"),
        ({"credential_sha256": "abc"}, "credential_sha256 must be 64 lower-case hex"),
        ({"address": "x" * 257}, "address must be a text of 1 to 256 bytes"),
        ({"advertise_host": "a\0b"}, "advertise_host must be a text"),
        ({"resources": types_pb.WorkerResources(cpu=-1.0)}, "finite numbers from 0"),
        ({"resources": types_pb.WorkerResources(cpu=float("nan"))}, "finite numbers from 0"),
        ({"resources": types_pb.WorkerResources(cpu=float("inf"))}, "finite numbers from 0"),
        ({"resources": types_pb.WorkerResources(memory_bytes=-5)}, "finite numbers from 0"),
    ],
)
def test_a_bad_registration_is_refused(shared: Site, fields: dict[str, object], words: str) -> None:
    worker = FakeWorker(shared.address, f"w-{new_id()}")
    shared.workers.append(worker)

    reply = worker.api(join_token(shared.admin)).post(worker.registration(**fields))

    assert (reply.status, reply.code) == (400, "invalid_argument")
    assert words in reply.message


# Polling.


def test_a_poll_is_held_until_something_is_to_be_done(alone: Site, pool: ThreadPoolExecutor) -> None:
    worker = alone.worker()
    poll = held(pool, worker)

    began = time.monotonic()
    job_id = launch(alone.admin)
    answer = poll.result(5)

    assert time.monotonic() - began < PROMPT_S
    assert uids(answer) == [f"{job_id}.0.1"]
    assert answer.lease_s == 300.0
    poll = held(pool, worker)
    began = time.monotonic()
    terminate(alone.admin, job_id)
    assert [each.stop for each in poll.result(5).desired] == [True]
    assert time.monotonic() - began < PROMPT_S


def test_a_poll_without_news_is_answered_when_its_time_is_over(alone: Site) -> None:
    worker = alone.worker()

    began = time.monotonic()
    answer = worker.sync(wait_s=0.3)

    assert 0.3 <= time.monotonic() - began < PROMPT_S
    assert (answer.superseded, answer.reregister, uids(answer)) == (False, False, [])
    assert worker.api().post(worker.request(wait_s=float("nan"))).code == "invalid_argument"


def test_a_newer_poll_supersedes_the_older_one(alone: Site, pool: ThreadPoolExecutor) -> None:
    worker = alone.worker()
    older = held(pool, worker)

    began = time.monotonic()
    newer = held(pool, worker)

    assert older.result(5).superseded
    assert time.monotonic() - began < PROMPT_S
    launch(alone.admin)
    assert len(newer.result(5).desired) == 1


def test_a_poll_that_comes_late_is_not_counted(alone: Site) -> None:
    worker = alone.worker()
    _, uid, _ = alone.task(worker)
    late = worker.request(observed=[])
    worker.sync()

    answer = worker.api()(late)

    assert (answer.superseded, list(answer.desired)) == (True, [])
    assert uids(worker.sync()) == [uid]  # that it did not hold the attempt was not heard


def test_an_unknown_incarnation_has_to_register(alone: Site) -> None:
    worker = alone.worker()
    _, uid, _ = alone.task(worker)

    answer = worker.api()(worker.request(incarnation="another", observed=[]))

    assert (answer.reregister, list(answer.desired)) == (True, [])
    assert uids(worker.sync()) == [uid]


def test_a_worker_that_obeys_a_later_controller_is_not_answered(alone: Site) -> None:
    worker = alone.worker()

    reply = worker.api().post(worker.request(known_epoch=2))

    assert (reply.status, reply.code) == (400, "failed_precondition")
    assert "epoch 2" in reply.message


def test_a_worker_that_obeys_a_copy_of_the_controller_is_not_answered(alone: Site) -> None:
    worker = alone.worker()

    reply = worker.api().post(worker.request(known_incarnation="copy"))

    assert (reply.status, reply.code) == (400, "failed_precondition")
    assert "obeys another controller of epoch 1" in reply.message


def test_an_attempt_is_described_until_it_is_observed(alone: Site) -> None:
    worker = alone.worker()
    launch(alone.admin)
    first = wait_for(lambda: worker.sync().desired, "an attempt")
    again = worker.sync().desired
    assert [each.spec is not None for each in (*first, *again)] == [True, True]

    worker.report(first[0].attempt_uid, T.ASSIGNED)

    assert [each.spec for each in worker.sync().desired] == [None]
    assert worker.specs[first[0].attempt_uid].token.startswith("flt_")


def test_many_large_descriptions_come_in_several_answers(alone: Site) -> None:
    worker = alone.worker(cpu=1_000.0)
    variables = {"A": "x" * 100_000}
    entrypoint = callable_of(inline(bytes(60_000)))
    environment = types_pb.EnvironmentSpec(env_vars=variables)
    jobs = [launch(alone.admin, job_spec(entrypoint=entrypoint, environment=environment)) for _ in range(60)]
    wait_for(lambda: all(info(alone.admin, job_id).tasks[0].attempt for job_id in jobs), "all are given to the worker")

    sizes, described = [], 0
    while described < 60:
        before = set(worker.specs)
        answer = worker.sync(wait_s=10)  # which is not waited for: there is more
        sizes.append(len(answer.to_binary()))
        assert len(answer.desired) == 60
        for uid in set(worker.specs) - before:
            worker.report(uid, T.ASSIGNED)
        described = len(worker.specs)
    assert len(sizes) == 3
    assert max(sizes) < 6_000_000
    worker.sync()
    assert worker.version != 0


def test_quiet_polls_commit_nothing(alone: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = alone.worker()
    _, uid, _ = alone.task(worker)
    worker.sync()
    commits: list[object] = []
    commit = Store.commit

    def counted(self: Store, changes: object) -> list[int]:
        commits.append(changes)
        return commit(self, changes)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "commit", counted)
    for _ in range(20):
        worker.sync()
    assert commits == []

    worker.end(uid)
    assert len(commits) == 1


def test_a_poll_prolongs_the_lease_even_if_it_says_nothing_new() -> None:
    with site(Settings(worker_lease_s=1.0, stop_grace_s=0.0, lease_margin_s=0.0)) as brief:
        talking, silent = brief.worker("talking"), brief.worker("silent")

        def statuses() -> dict[str, str]:
            talking.sync()
            return {each.worker_id: each.status for each in brief.admin(pb.ListWorkersRequest()).workers}

        wait_for(lambda: statuses() == {"talking": "ready", "silent": "lost"}, "the silent one to be lost")
        silent.sync()
        assert statuses() == {"talking": "ready", "silent": "ready"}


# What is reported.


def test_an_attempt_goes_its_way(alone: Site) -> None:
    worker = alone.worker()
    job_id = launch(alone.admin)
    (desired,) = wait_for(lambda: worker.sync().desired, "an attempt")
    uid = desired.attempt_uid
    for state in (T.ASSIGNED, T.BUILDING, T.RUNNING):
        worker.report(uid, state)
        worker.sync()
        assert info(alone.admin, job_id).tasks[0].state is state

    assert worker.end(uid, 3, peak_memory_bytes=5).desired == []

    task = info(alone.admin, job_id).tasks[0]
    assert (task.state, task.exit_code, task.cause) == (T.FAILED, 3, types_pb.Cause.EXIT)
    assert (task.worker_id, task.error_message) == (worker.worker_id, "exit code 3")


def test_late_reports_of_an_ended_attempt_change_nothing(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)
    worker.end(uid, 0)

    for code in (1, 0):
        worker.report(uid, exit=types_pb.ExitReport(exit_code=code, finished_at=1.0))
        assert worker.sync().desired == []
    worker.report(uid, T.RUNNING)
    worker.sync()

    assert info(alone.admin, job_id).status is S.SUCCEEDED


def test_a_restarted_worker_goes_on_with_what_it_adopted(alone: Site) -> None:
    worker = alone.worker()
    _, kept, _ = alone.task(worker)
    lost_job, lost, _ = alone.task(worker)

    worker.incarnation = new_id()
    worker.join(worker.token)
    worker.version = 0
    del worker.observed[lost]
    answer = worker.sync()

    assert kept in uids(answer)
    assert lost not in uids(answer)
    (again,) = worker.accept()
    assert again == f"{lost_job}.0.2"
    events = alone.admin(pb.ListEventsRequest(job_id=lost_job)).events
    assert any("its worker restarted without it" in event.message for event in events)


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (
            pb.ObservedAttempt(state=T.UNSPECIFIED),
            "the state of an observed attempt must be ASSIGNED, BUILDING or RUNNING",
        ),
        (pb.ObservedAttempt(state=T.SUCCEEDED), "the state of an observed attempt must be"),
        (pb.ObservedAttempt(state=T.RUNNING, master_port=65_536), "master_port must be 0 to 65535"),
        (pb.ObservedAttempt(state=T.RUNNING, started_at=float("nan")), "a time must be unix seconds"),
        (pb.ObservedAttempt(exit=types_pb.ExitReport(exit_code=256)), "exit_code must be 0 to 255"),
        (pb.ObservedAttempt(exit=types_pb.ExitReport(exit_code=-9)), "exit_code must be 0 to 255"),
        (pb.ObservedAttempt(exit=types_pb.ExitReport(cause=types_pb.Cause(77))), "cause must be a known Cause, got 77"),
        (pb.ObservedAttempt(exit=types_pb.ExitReport(finished_at=float("inf"))), "a time must be unix seconds"),
        (
            pb.ObservedAttempt(exit=types_pb.ExitReport(result=types_pb.Payload(content=inline(b"a").content))),
            "the sha256 of the result must be 64 lower-case hex digits",
        ),
    ],
)
def test_a_report_that_cannot_be_is_refused(alone: Site, report: pb.ObservedAttempt, words: str) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)
    report.attempt_uid = uid

    reply = worker.api().post(worker.request(observed=[report]))

    assert (reply.status, reply.code) == (400, "invalid_argument")
    assert words in reply.message
    assert info(alone.admin, job_id).status is S.RUNNING


def test_a_long_error_message_is_cut(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)

    worker.end(uid, 1, error_message="x" * 100_000)

    assert len(info(alone.admin, job_id).error_message) == 16_384


def test_a_gang_meets_where_rank_0_says(alone: Site) -> None:
    first = alone.worker("w-a", cpu=1.0, host="10.0.0.1")
    second = alone.worker("w-b", cpu=1.0, host="10.0.0.2")
    launch(alone.admin, replicas=2)

    head = wait_for(lambda: first.sync().desired, "rank 0")[0]
    assert second.sync().desired == []  # until the port is known
    first.report(head.attempt_uid, T.ASSIGNED, master_port=31_234)
    first.sync()
    (other,) = wait_for(lambda: second.sync().desired, "rank 1")

    spec = other.spec
    assert spec is not None
    assert (spec.task_index, spec.world_size, spec.node_rank, spec.local_rank, spec.local_world_size) == (1, 2, 1, 0, 1)
    assert (spec.master_host, spec.master_port) == ("10.0.0.1", 31_234)


# Allocations.


class Landlord:
    """A backend that says what it was asked; a test says how it goes."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.may_release = asyncio.Event()
        self.closed = False
        self.loop: asyncio.AbstractEventLoop | None = None

    async def allocate(self, resources: ResourceConfig, *, allocation_id: AllocationId | None = None) -> VMInfo:
        self.loop = asyncio.get_running_loop()
        self.asked.append(f"allocate {allocation_id}")
        return await self.get_status(VMId(allocation_id or ""))

    async def release(self, vm_id: VMId) -> None:
        self.asked.append(f"release {vm_id}")
        await self.may_release.wait()

    async def get_status(self, vm_id: VMId) -> VMInfo:
        return VMInfo(vm_id, "127.0.0.1:1", VMStatus.READY)

    async def list_vms(self) -> list[VMInfo]:
        return []

    async def wait_ready(self, vm_id: VMId, timeout: float = 300.0) -> None:
        return None

    async def close(self) -> None:
        self.closed = True


def test_a_worker_whose_machine_is_given_back_is_told_to_leave(pool: ThreadPoolExecutor) -> None:
    landlord = Landlord()
    settings = Settings(backend="lab", pool=(Resources(1000, 10**9),), silent_release_s=0.3)
    with site(settings, backend=landlord) as lab:
        wait_for(
            lambda: [each.status for each in lab.admin(pb.ListAllocationsRequest()).allocations] == ["ready"],
            "a machine",
        )
        running = lab.server._running
        assert running is not None
        worker = FakeWorker(lab.address, "w-0")
        lab.workers.append(worker)
        worker.join(running.join_token(AllocationId("lab-0")), allocation_id="lab-0")
        assert not worker.sync().leave
        poll = pool.submit(worker.sync, wait_s=10)  # it hangs there while the allocation is taken for silent

        answer = poll.result(5)

        assert answer.leave
        assert "release lab-0" in wait_for(lambda: landlord.asked[1:], "the release")
        assert landlord.loop is not None
        landlord.loop.call_soon_threadsafe(landlord.may_release.set)
        with pytest.raises(NotPermitted):
            wait_for(lambda: worker.sync().reregister, "the worker to be unknown")
    assert landlord.closed


# Restarts of the controller.


def test_a_restarted_controller_knows_everything_and_is_obeyed(tmp_path: Path) -> None:
    with site(state_dir=tmp_path) as before:
        worker = before.worker("w-0")
        job_id, uid, task = before.task(worker, name="goes-on")
        task(pb.RegisterEndpointRequest(request_id=new_id(), name="service", address="127.0.0.1:1"))
        before.admin(pb.RegisterEndpointRequest(request_id=new_id(), name="leased", address="127.0.0.1:2"))
        waiting = launch(before.admin, cpu=1_000.0, name="waits")
        request = pb.LaunchJobRequest(request_id="once", spec=job_spec("again", cpu=1_000.0))
        again = before.admin(request).job_id
        token = before.admin(pb.CreateTokenRequest(request_id="t", kind=pb.TokenKind.JOIN, uses=2))
        version, admin_token, attempt_token = worker.version, before.server.token, task.token

    with site(state_dir=tmp_path) as after:
        assert after.server.token == admin_token
        worker.address = after.address
        after.workers.append(worker)
        assert worker.sync().reregister  # what it says may be older than what the controller before heard
        worker.join(worker.token)
        answer = worker.sync(wait_s=10)  # at once: no version of an earlier epoch is known

        assert (answer.controller_epoch, uids(answer)) == (2, [uid])
        assert answer.desired_version != version
        assert after.admin.post(pb.GetJobStatusRequest(job_id=job_id)).status == 200
        assert worker.api().post(worker.request(known_epoch=3)).code == "failed_precondition"
        assert info(after.admin, job_id).status is S.RUNNING
        assert info(after.admin, waiting).status is S.PENDING
        assert after.admin(request).job_id == again
        assert [each.name for each in after.admin(pb.ListEndpointsRequest()).endpoints] == ["service", "leased"]
        assert after.admin(pb.CreateTokenRequest(request_id="t", kind=pb.TokenKind.JOIN, uses=2)).token == token.token
        assert info(after.api(attempt_token), job_id).name == "goes-on"
        worker.end(uid)
        assert info(after.admin, job_id).status is S.SUCCEEDED
        assert [each.name for each in after.admin(pb.ListEndpointsRequest()).endpoints] == ["leased"]


def test_a_restarted_controller_grants_every_worker_a_full_lease(tmp_path: Path) -> None:
    settings = Settings(worker_lease_s=1.5, stop_grace_s=0.0, lease_margin_s=0.0)
    with site(settings, state_dir=tmp_path) as before:
        job_id, uid, _ = before.task(before.worker("w-0"))
    time.sleep(1.6)  # the lease would be over

    with site(settings, state_dir=tmp_path) as after:
        began = time.monotonic()
        assert [each.status for each in after.admin(pb.ListWorkersRequest()).workers] == ["ready"]
        wait_for(lambda: info(after.admin, job_id).tasks[0].state is T.PENDING, f"{uid} to be lost")
        assert time.monotonic() - began >= 0.3
