"""Jobs over the wire: launched once, listed without gaps, waited for, explained, terminated."""

from __future__ import annotations

import hashlib
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.cluster.controller.remote import (
    FakeWorker,
    Site,
    blob,
    callable_of,
    info,
    inline,
    job_spec,
    launch,
    new_id,
    site,
    terminate,
    wait_for,
)

from fluster import Cluster
from fluster.cluster.controller import jobs as jobs_module
from fluster.cluster.controller.core.state import Settings
from fluster.errors import AlreadyExists
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

S = types_pb.JobStatus
HUGE = 1000.0
"""Cores that no worker here has."""


def launches(*names: str, request_id: str | None = None, cpu: float = HUGE) -> pb.LaunchJobsRequest:
    specs = [job_spec(name, cpu=cpu) for name in names]
    return pb.LaunchJobsRequest(request_id=request_id or new_id(), specs=specs)


def all_names(site: Site, **fields: object) -> list[str]:
    return [job.name for job in site.admin(pb.ListJobsRequest(page_size=1000, **fields)).jobs]  # type: ignore[arg-type]


# Launching.


def test_launch_job_via_rpc_is_dispatched_to_a_worker(alone: Site) -> None:
    worker = alone.worker()
    job_id = launch(alone.admin, name="hello", ports=["web"], timeout_s=5.0)
    assert info(alone.admin, job_id).status is S.PENDING

    (uid,) = worker.accept()

    spec = worker.specs[uid]
    assert (spec.job_id, spec.job_name, spec.task_index, spec.num_tasks, spec.attempt) == (job_id, "hello", 0, 1, 1)
    assert (spec.namespace, list(spec.ports), spec.timeout_s) == ("default", ["web"], 5.0)
    assert info(alone.admin, job_id).status is S.RUNNING
    worker.end(uid)
    told = info(alone.admin, job_id)
    assert (told.status, told.exit_code, told.tasks[0].state) == (S.SUCCEEDED, 0, types_pb.TaskState.SUCCEEDED)
    assert told.started_at <= told.finished_at


def test_all_jobs_of_a_group_are_launched_or_none(alone: Site) -> None:
    bad = launches("a", "b")
    bad.specs.append(job_spec("../c"))

    assert alone.admin.post(bad).code == "invalid_argument"
    assert all_names(alone) == []
    good = alone.admin(launches("a", "b", "c"))
    assert [info(alone.admin, job_id).name for job_id in good.job_ids] == ["a", "b", "c"]


def test_a_group_with_an_absent_parent_is_launched_not_at_all(alone: Site) -> None:
    request = launches("a", "b")
    request.specs[1].parent = "jabsent"

    assert alone.admin.post(request).code == "not_found"
    assert all_names(alone) == []


def test_the_same_request_gives_the_same_job(alone: Site) -> None:
    request = pb.LaunchJobRequest(request_id=new_id(), spec=job_spec("once", cpu=HUGE))

    with ThreadPoolExecutor(4) as pool:
        job_ids = set(pool.map(lambda _: alone.admin(request).job_id, range(8)))

    assert len(job_ids) == 1
    group = launches("g1", "g2")
    assert alone.admin(group).job_ids == alone.admin(group).job_ids
    assert len(all_names(alone)) == 3


@pytest.mark.parametrize("change", ["name", "namespace", "kind"])
def test_another_body_under_the_same_request_id_is_refused(shared: Site, change: str) -> None:
    request = pb.LaunchJobRequest(request_id=new_id(), spec=job_spec("first", cpu=HUGE))
    job_id = shared.admin(request).job_id
    other: pb.LaunchJobRequest | pb.LaunchJobsRequest = pb.LaunchJobRequest(
        request_id=request.request_id, spec=job_spec("first", cpu=HUGE)
    )
    match change:
        case "name":
            other = pb.LaunchJobRequest(request_id=request.request_id, spec=job_spec("second", cpu=HUGE))
        case "namespace":
            other = pb.LaunchJobRequest(request_id=request.request_id, spec=request.spec, namespace="team")
        case _:
            other = launches("first", request_id=request.request_id)

    reply = shared.admin.post(other)

    assert (reply.status, reply.code) == (409, "already_exists")
    with pytest.raises(AlreadyExists, match="was used before for something else"):
        shared.admin(other)
    assert shared.admin(request).job_id == job_id


def test_request_ids_of_different_callers_do_not_meet(alone: Site) -> None:
    worker = alone.worker()
    _, _, task = alone.task(worker)
    request = pb.LaunchJobRequest(request_id="the-same", spec=job_spec(cpu=HUGE))

    assert task(request).job_id != alone.admin(request).job_id


def test_a_repeated_child_launch_is_answered_after_the_parents_end(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)
    request = pb.LaunchJobRequest(request_id=new_id(), spec=job_spec(parent=job_id, cpu=HUGE))
    child = alone.admin(request).job_id
    worker.end(uid)

    assert alone.admin(request).job_id == child
    late = pb.LaunchJobRequest(request_id=new_id(), spec=job_spec(parent=job_id))
    reply = alone.admin.post(late)
    assert (reply.code, "has ended" in reply.message) == ("failed_precondition", True)


def test_jobs_nested_past_the_limit_are_refused() -> None:
    with site(Settings(max_depth=2)) as shallow:
        parent = ""
        for _ in range(3):
            parent = launch(shallow.admin, job_spec(parent=parent, cpu=HUGE))

        reply = shallow.admin.post(pb.LaunchJobRequest(request_id=new_id(), spec=job_spec(parent=parent)))

        assert (reply.status, reply.code) == (429, "resource_exhausted")
        assert "nest at most 2 deep" in reply.message


def test_unfinished_jobs_past_the_limit_are_refused() -> None:
    with site(Settings(max_unfinished_jobs=2)) as small:
        assert small.admin.post(launches("a", "b", "c")).code == "resource_exhausted"
        small.admin(launches("a", "b"))
        assert small.admin.post(launches("c")).code == "resource_exhausted"


def test_ten_thousand_launches_at_once_are_each_acknowledged_or_refused_and_none_is_lost(alone: Site) -> None:
    count, threads = 10_000, 20
    acknowledged: set[str] = set()
    lock = threading.Lock()

    def client(number: int) -> int:
        api = alone.api(alone.server.token)
        mine = [
            api(pb.LaunchJobsRequest(request_id=f"{number}-{n}", specs=[job_spec(f"n{number}", cpu=HUGE)] * 50)).job_ids
            for n in range(count // threads // 50)
        ]
        with lock:
            acknowledged.update(job_id for job_ids in mine for job_id in job_ids)
        return len(mine)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(client, range(threads)))

    with Cluster(alone.address, token=alone.server.token) as cluster:
        there = {job.job_id for job in cluster.list_jobs()}
    assert len(acknowledged) == count
    assert there == acknowledged


def test_a_pickle_bomb_is_kept_as_bytes_and_never_loaded(alone: Site, tmp_path: Path) -> None:
    mark = tmp_path / "exploded"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (mark,)

    content = pickle.dumps(Bomb())
    worker = alone.worker()
    job_id = launch(alone.admin, job_spec(entrypoint=callable_of(inline(content))))
    (uid,) = worker.accept()

    sent = worker.specs[uid].entrypoint
    assert sent == callable_of(inline(content))
    worker.end(uid, result=inline(content))
    result = alone.admin(pb.GetResultRequest(job_id=job_id)).result
    assert result == inline(content)
    assert not mark.exists()


def test_a_large_entrypoint_is_a_blob_that_has_to_be_there(alone: Site) -> None:
    content = bytes(100_000)
    sha256 = hashlib.sha256(content).hexdigest()
    request = pb.LaunchJobRequest(request_id=new_id(), spec=job_spec(entrypoint=callable_of(blob(sha256)), cpu=HUGE))

    reply = alone.admin.post(request)
    assert (reply.code, "send it with PutBlob first" in reply.message) == ("failed_precondition", True)
    for start in range(0, len(content), 40_000):
        chunk = content[start : start + 40_000]
        put = pb.PutBlobRequest(sha256=sha256, offset=start, chunk=chunk, total_size=len(content))
        assert alone.admin(put).next_offset == start + len(chunk)
    alone.admin(request)
    got = b"".join(each.chunk for each in alone.admin.stream(pb.GetBlobRequest(sha256=sha256, offset=10)))
    assert got == content[10:]


def test_a_blob_that_is_not_there_is_not_found(shared: Site) -> None:
    with pytest.raises(Exception, match=r"no blob 0000.*not_found"):
        list(shared.admin.stream(pb.GetBlobRequest(sha256="0" * 64)))


def test_sql_and_other_languages_are_stored_as_they_are(alone: Site) -> None:
    worker = alone.worker()
    variables = {"SQL": "'); DROP TABLE jobs; --", "NAME": "\u540d\u524d \U0001f600", "\u00dc": "1"}
    spec = job_spec(environment=types_pb.EnvironmentSpec(env_vars=variables))
    launch(alone.admin, spec)
    (uid,) = worker.accept()

    assert dict(worker.specs[uid].environment.env_vars) == variables  # type: ignore[union-attr]
    worker.end(uid, 1, error_message="it said: '); DROP TABLE jobs; --")
    for prefix in ("' OR 1=1 --", "%", "jo_"):
        assert all_names(alone, name_prefix=prefix) == []
    assert alone.admin.post(pb.GetJobStatusRequest(job_id="' OR '1'='1")).code == "not_found"
    (job,) = alone.admin(pb.ListJobsRequest()).jobs
    assert job.error_message == "it said: '); DROP TABLE jobs; --"


# Looking.


def test_jobs_are_listed_in_pages_newest_first_whatever_finishes_meanwhile(alone: Site) -> None:
    worker = alone.worker(cpu=100.0)
    job_ids = [launch(alone.admin, name=f"job-{n}") for n in range(9)]
    uids = dict(zip(job_ids, sorted(worker.accept(9), key=lambda uid: job_ids.index(uid.split(".")[0])), strict=True))
    for job_id in job_ids[::3]:
        worker.end(uids[job_id])

    listed: list[str] = []
    request = pb.ListJobsRequest(page_size=2)
    for ending in (*job_ids[1::3], *job_ids[2::3]):
        page = alone.admin(request)
        assert len(page.jobs) <= 2
        listed += [job.job_id for job in page.jobs]
        worker.end(uids[ending])  # moves from memory to the store
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break

    assert listed == job_ids[::-1]


def test_jobs_launched_at_one_moment_are_each_listed_once(alone: Site) -> None:
    job_ids = set(alone.admin(launches(*["same"] * 25)).job_ids)

    listed: list[str] = []
    request = pb.ListJobsRequest(page_size=4)
    while True:
        page = alone.admin(request)
        listed += [job.job_id for job in page.jobs]
        request.page_token = page.next_page_token
        if not request.page_token:
            break

    assert len(listed) == 25
    assert set(listed) == job_ids


def test_lists_are_filtered(alone: Site) -> None:
    worker = alone.worker()
    for name, code in (("train/a", 0), ("train/b", 1)):
        launch(alone.admin, name=name, namespace="team")
        (uid,) = worker.accept()
        worker.end(uid, code)
    launch(alone.admin, name="train/c", cpu=HUGE)
    launch(alone.admin, name="eval", cpu=HUGE, namespace="team")

    assert all_names(alone) == ["eval", "train/c", "train/b", "train/a"]
    assert all_names(alone, name_prefix="train/") == ["train/c", "train/b", "train/a"]
    assert all_names(alone, name="train/b") == ["train/b"]
    assert all_names(alone, namespace="team") == ["eval", "train/b", "train/a"]
    assert all_names(alone, status=S.PENDING) == ["eval", "train/c"]
    assert all_names(alone, status=S.RUNNING) == []
    assert all_names(alone, status=S.SUCCEEDED) == ["train/a"]
    assert all_names(alone, status=S.FAILED) == ["train/b"]
    assert all_names(alone, unfinished=True) == ["eval", "train/c"]
    assert all_names(alone, unfinished=True, status=S.FAILED) == []
    assert all_names(alone, unfinished=True, name_prefix="train") == ["train/c"]


def test_a_finished_job_is_listed_with_its_times_and_without_its_tasks(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)
    worker.end(uid, 3)

    (listed,) = alone.admin(pb.ListJobsRequest()).jobs
    told = info(alone.admin, job_id)

    assert (listed.status, listed.exit_code, listed.num_tasks, len(listed.tasks)) == (S.FAILED, 3, 1, 0)
    assert (listed.started_at, listed.finished_at) == (told.started_at, told.finished_at)
    assert listed.started_at > 0


def test_a_page_token_of_another_controller_is_forged(alone: Site) -> None:
    alone.admin(launches("a", "b"))
    token = alone.admin(pb.ListJobsRequest(page_size=1)).next_page_token
    assert token
    with site() as other:
        assert other.admin.post(pb.ListJobsRequest(page_token=token)).code == "invalid_argument"


def test_a_job_that_waits_says_why_from_the_first_moment(alone: Site) -> None:
    job_id = launch(alone.admin)
    assert info(alone.admin, job_id).pending_reason == "no worker has joined this cluster"

    worker = alone.worker(cpu=2.0)
    placed = wait_for(
        lambda: (found := info(alone.admin, job_id)).tasks[0].state is types_pb.TaskState.ASSIGNED and found, "placing"
    )
    assert placed.pending_reason == "placed, its worker starts it"
    too_large = launch(alone.admin, cpu=HUGE)
    assert "1000 cpu needed, 2 on the largest worker" in info(alone.admin, too_large).pending_reason
    terminate(alone.admin, job_id)
    assert info(alone.admin, job_id).pending_reason == "being stopped: terminated by admin"
    worker.sync()


def test_a_job_that_nothing_can_hold_fails_after_its_scheduling_timeout(alone: Site) -> None:
    alone.worker(cpu=2.0)
    job_id = launch(alone.admin, cpu=HUGE, scheduling_timeout_s=0.2)

    done = alone.admin(pb.WaitJobsRequest(job_ids=[job_id], wait_s=5)).finished

    assert [job.status for job in done] == [S.FAILED]
    assert done[0].cause is types_pb.Cause.UNSCHEDULABLE
    assert done[0].error_message.startswith("not placed within 0.2 s: no worker can hold one task: 1000 cpu needed")


def test_explanations_tell_what_is_and_what_was(alone: Site) -> None:
    worker = alone.worker(cpu=2.0)
    retry = types_pb.RetrySpec(max_failures=1, backoff_s=60.0, max_backoff_s=60.0)
    job_id, uid, _ = alone.task(worker, cpu=2.0, retry=retry)
    waiting = launch(alone.admin, cpu=1.0)
    too_large = launch(alone.admin, cpu=HUGE)

    def why(job_id: str) -> pb.ExplainJobResponse:
        response = alone.admin(pb.ExplainJobRequest(job_id=job_id))
        assert isinstance(response, pb.ExplainJobResponse)
        return response

    wait_for(lambda: why(too_large).queue_position, "a busy controller to have looked at it")
    running, fits_later, never = why(job_id), why(waiting), why(too_large)
    assert (running.state, running.reasons) == ("running", ["tasks: 1 running"])
    assert (fits_later.state, fits_later.would_fit, fits_later.queue_position) == ("pending", True, 1)
    assert fits_later.reasons[0].startswith("waiting: 1 cpu needed, 0 free")
    assert (never.would_fit, never.queue_position) == (False, 2)
    assert "1000 cpu needed, 2 on the largest worker" in never.reasons[0]

    worker.end(uid, 7)
    retried = why(job_id)
    assert any(reason.startswith("attempt 1 of task 0 ended: exit code 7") for reason in retried.reasons)
    terminate(alone.admin, job_id)
    ended = why(job_id)
    assert (ended.state, ended.would_fit) == ("stopped", False)
    assert ended.reasons[0] == "terminated by admin"


# Waiting.


def test_waiting_for_all_ends_with_the_last_one(alone: Site) -> None:
    worker = alone.worker()
    job_ids = [launch(alone.admin) for _ in range(3)]
    uids = worker.accept(3)

    assert not alone.admin(pb.WaitJobsRequest(job_ids=job_ids)).finished
    worker.end(uids[0])
    began = time.monotonic()
    some = alone.admin(pb.WaitJobsRequest(job_ids=job_ids, wait_s=0.3)).finished
    assert (len(some), time.monotonic() - began >= 0.3) == (1, True)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(alone.admin, pb.WaitJobsRequest(job_ids=job_ids, wait_s=10))
        for uid in uids[1:]:
            assert not waiting.done()
            worker.end(uid)
        assert {job.job_id for job in waiting.result(5).finished} == set(job_ids)


def test_waiting_for_any_ends_with_the_first_one(alone: Site) -> None:
    worker = alone.worker()
    job_ids = [launch(alone.admin) for _ in range(3)]
    uids = worker.accept(3)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(alone.admin, pb.WaitJobsRequest(job_ids=job_ids, wait_s=10, any=True))
        worker.end(uids[1])
        (first,) = waiting.result(5).finished
    assert (first.status, first.tasks[0].exit_code) == (S.SUCCEEDED, 0)
    again = alone.admin(pb.WaitJobsRequest(job_ids=job_ids, wait_s=10, any=True)).finished
    assert [job.job_id for job in again] == [first.job_id]


def test_waiting_for_one_that_is_not_there_is_refused(shared: Site) -> None:
    job_id = launch(shared.admin, cpu=HUGE)

    assert shared.admin.post(pb.WaitJobsRequest(job_ids=[job_id, "jabsent"], wait_s=5)).code == "not_found"


def test_who_waits_for_a_thousand_jobs_costs_little_with_each_that_ends(alone: Site) -> None:
    job_ids = list(alone.admin(launches(*["many"] * 1_000)).job_ids)

    def wait() -> None:
        api = alone.api(alone.server.token)
        while len(api(pb.WaitJobsRequest(job_ids=job_ids, wait_s=20), timeout_s=25).finished) < 1_000:
            pass

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        for job_id in job_ids:
            terminate(alone.admin, job_id)
        waiting.result(20)


# Results.


def test_a_result_is_waited_for(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)

    assert not alone.admin(pb.GetResultRequest(job_id=job_id)).finished
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(alone.admin, pb.GetResultRequest(job_id=job_id, wait_s=10))
        worker.end(uid, result=inline(b"an outcome"))
        answer = waiting.result(5)

    assert (answer.finished, answer.job.status, answer.result) == (True, S.SUCCEEDED, inline(b"an outcome"))
    assert [task.index for task in answer.job.tasks] == [0]
    assert alone.admin.post(pb.GetResultRequest(job_id=job_id, task=1)).code == "invalid_argument"
    assert alone.admin.post(pb.GetResultRequest(job_id=job_id, task=-1)).code == "invalid_argument"


def test_each_task_has_its_own_result_and_a_command_none(alone: Site) -> None:
    worker = alone.worker()
    job_id = launch(alone.admin, replicas=3, independent_tasks=True)
    for number, uid in enumerate(sorted(worker.accept(3))):
        worker.end(uid, result=inline(b"%d" % number) if number else None)

    for number in range(3):
        answer = alone.admin(pb.GetResultRequest(job_id=job_id, task=number))
        assert [task.index for task in answer.job.tasks] == [number]
        assert answer.result == (inline(b"%d" % number) if number else None)


def test_the_result_of_a_retried_job_is_the_last_attempts(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker, retry=types_pb.RetrySpec(max_failures=1))
    worker.end(uid, 1, cause=types_pb.Cause.EXCEPTION, result=inline(b"first"))
    (again,) = worker.accept()
    worker.end(again, result=inline(b"second"))

    answer = alone.admin(pb.GetResultRequest(job_id=job_id))
    assert (answer.job.status, answer.result) == (S.SUCCEEDED, inline(b"second"))


def test_a_failed_job_tells_of_all_its_tasks_with_the_result(alone: Site) -> None:
    worker = alone.worker()
    job_id = launch(alone.admin, replicas=2)
    first, second = worker.accept(2)
    worker.end(second, 1, cause=types_pb.Cause.EXCEPTION, error_message="ValueError: no", result=inline(b"error"))
    worker.end(first, 143, stop_requested=True)

    answer = alone.admin(pb.GetResultRequest(job_id=job_id, task=1))

    assert (answer.job.status, answer.job.error_message) == (S.FAILED, "ValueError: no")
    assert (len(answer.job.tasks), answer.result) == (2, inline(b"error"))


def test_a_large_result_is_a_blob_that_stays_while_it_is_meant(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)
    content = bytes(70_000)
    sha256 = hashlib.sha256(content).hexdigest()
    worker.api()(pb.PutBlobRequest(sha256=sha256, chunk=content, total_size=len(content)))

    worker.end(uid, result=blob(sha256))

    answer = alone.admin(pb.GetResultRequest(job_id=job_id))
    assert answer.result == blob(sha256)
    assert b"".join(each.chunk for each in alone.admin.stream(pb.GetBlobRequest(sha256=sha256))) == content


# Ending.


def test_terminating_twice_or_after_the_end_is_harmless_and_an_absent_job_is_not_found(alone: Site) -> None:
    waiting = launch(alone.admin, cpu=HUGE)
    for _ in range(2):
        terminate(alone.admin, waiting)
    assert info(alone.admin, waiting).status is S.STOPPED

    worker = alone.worker()
    ended, uid, _ = alone.task(worker)
    worker.end(uid)
    terminate(alone.admin, ended)
    assert info(alone.admin, ended).status is S.SUCCEEDED
    assert alone.admin.post(pb.TerminateJobRequest(request_id=new_id(), job_id="jabsent")).code == "not_found"


def test_a_running_job_is_stopped_once_nothing_of_it_is_left(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)

    terminate(alone.admin, job_id)

    assert info(alone.admin, job_id).status is S.RUNNING
    assert [(each.attempt_uid, each.stop) for each in worker.sync().desired] == [(uid, True)]
    worker.end(uid, 143, stop_requested=True)
    told = info(alone.admin, job_id)
    assert (told.status, told.cause, told.error_message) == (
        S.STOPPED,
        types_pb.Cause.TERMINATED,
        "terminated by admin",
    )


def test_descendants_end_with_their_ancestor_even_after_its_own_end(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, task = alone.task(worker)
    child = launch(task, cpu=HUGE)
    worker.end(uid)
    assert info(alone.admin, child).status is S.PENDING

    terminate(alone.admin, job_id)

    assert info(alone.admin, child).status is S.STOPPED


def test_terminating_while_it_completes_gives_one_end(alone: Site) -> None:
    worker = alone.worker(cpu=100.0)
    job_ids = [launch(alone.admin) for _ in range(20)]
    uids = worker.accept(20)
    ends = {uid.split(".")[0]: uid for uid in uids}
    codes: list[str] = []

    def race(job_id: str) -> None:
        request = pb.TerminateJobRequest(request_id=new_id(), job_id=job_id)
        codes.append(alone.api(alone.server.token).post(request).code)

    for job_id in job_ids:
        thread = threading.Thread(target=race, args=(job_id,))
        thread.start()
        worker.end(ends[job_id])
        thread.join()
        told = info(alone.admin, job_id)
        assert told.status in (S.SUCCEEDED, S.STOPPED)
        kinds = [event.kind for event in alone.admin(pb.ListEventsRequest(job_id=job_id)).events]
        assert sum(kind in ("JobSucceeded", "JobStopped", "JobFailed") for kind in kinds) == 1
    assert set(codes) == {"None"}  # none was an error


# History.


def test_the_journal_is_read_in_pages_and_waited_for(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, task = alone.task(worker)
    request = pb.ListEventsRequest(job_id=job_id, page_size=2)
    seen: list[pb.Event] = []
    while page := alone.admin(request).events:
        assert len(page) <= 2
        seen += page
        request.after_seq = page[-1].seq
    assert [event.kind for event in seen] == ["JobLaunched", "TaskPlaced", "TaskStarted"]
    assert [event.actor for event in seen] == ["admin", "controller", f"worker:{worker.worker_id}"]
    assert seen == sorted(seen, key=lambda event: event.seq)
    assert [event.kind for event in task(pb.ListEventsRequest(job_id=job_id)).events] == [e.kind for e in seen]

    request.wait_s = 10
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(alone.admin, request)
        worker.end(uid)
        assert [event.kind for event in waiting.result(5).events] == ["TaskSucceeded", "JobSucceeded"]
    everything = alone.admin(pb.ListEventsRequest(page_size=1000)).events
    assert {"TokenCreated", "WorkerJoined", "JobSucceeded"} <= {event.kind for event in everything}
    request = pb.ListEventsRequest(job_id=job_id, after_seq=everything[-1].seq, wait_s=0.1)
    assert not alone.admin(request).events


def test_job_ids_sort_by_launch_and_never_repeat() -> None:
    moments = [1.8e9 + n / 500 for n in range(1000)]
    job_ids = [jobs_module.new_job_id(moment) for moment in moments]

    assert job_ids == sorted(job_ids)
    assert len({jobs_module.new_job_id(1.8e9) for _ in range(1000)}) == 1000


def test_workers_and_what_they_have_left_are_listed(alone: Site) -> None:
    worker = alone.worker("w-0", cpu=4.0)
    alone.task(worker, cpu=1.5)

    (told,) = alone.admin(pb.ListWorkersRequest()).workers

    assert (told.worker_id, told.status, told.running_attempts) == ("w-0", "ready", 1)
    assert (told.resources.cpu, told.free.cpu, told.address) == (4.0, 2.5, "127.0.0.1:7078")
    assert told.last_seen_at == pytest.approx(time.time(), abs=10)
    assert not alone.admin(pb.ListAllocationsRequest()).allocations
    assert isinstance(worker, FakeWorker)
