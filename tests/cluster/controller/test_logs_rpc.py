"""Logs over the wire: pushed once by offset, read merged by time, followed as they come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from queue import Queue

import pytest
from tests.cluster.controller.remote import WITHIN_S, Api, FakeWorker, Site, info, launch, wait_for

from fluster import Cluster
from fluster.cluster.controller.core.rows import AttemptRow, AttemptState
from fluster.cluster.controller.logmerge import LogMerge
from fluster.cluster.controller.logstore import LogStore
from fluster.cluster.ids import AttemptUid, JobId, WorkerId
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1.types_pb import JobStatus, LogStream, RetrySpec

OUT, ERR = LogStream.STDOUT, LogStream.STDERR
_WIDE = 30
PROMPT_S = 3.0
"""Less than the pause after which a follower looks without being told."""


def lines(api: Api, job_id: str, **fields: object) -> list[pb.LogLine]:
    request = pb.FetchLogsRequest(job_id=job_id, **fields)  # type: ignore[arg-type]
    return [line for message in api.stream(request) for line in message.lines]


def texts(api: Api, job_id: str, **fields: object) -> list[bytes]:
    return [line.data for line in lines(api, job_id, **fields)]


class Follower:
    """Reads a followed stream in a thread of its own."""

    def __init__(self, api: Api, job_id: str, **fields: object) -> None:
        self.lines: Queue[bytes | None] = Queue()
        self._request = pb.FetchLogsRequest(job_id=job_id, follow=True, **fields)  # type: ignore[arg-type]
        self._thread = threading.Thread(target=self._read, args=(api,))
        self._thread.start()

    def _read(self, api: Api) -> None:
        for message in api.stream(self._request):
            for line in message.lines:
                self.lines.put(line.data)
        self.lines.put(None)

    def next(self) -> bytes | None:
        return self.lines.get(timeout=WITHIN_S)

    def join(self) -> None:
        self._thread.join(WITHIN_S)
        assert not self._thread.is_alive()


@pytest.fixture
def follow(alone: Site) -> Iterator[Callable[..., Follower]]:
    made: list[Follower] = []

    def start(job_id: str, **fields: object) -> Follower:
        made.append(Follower(alone.api(alone.server.token), job_id, **fields))
        return made[-1]

    yield start
    alone.close()
    for each in made:
        each.join()


# Pushing.


def test_what_is_pushed_twice_is_there_once(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)

    assert worker.push(uid, b"one\ntwo\n") == 8
    assert worker.push(uid, b"one\ntwo\n") == 8
    assert worker.push(uid, b"two\nthree\n", offset=4) == 14  # overlaps
    assert worker.push(uid, b"late\n", offset=100) == 14  # a gap: go on at 14

    assert texts(alone.admin, job_id) == [b"one", b"two", b"three"]


def test_positions_are_told_for_each_stream_of_a_request(alone: Site) -> None:
    worker = alone.worker()
    _, uid, _ = alone.task(worker)
    chunks = [
        pb.LogChunk(attempt_uid=uid, stream=OUT, data=b"abc", timestamp=1.0),
        pb.LogChunk(attempt_uid=uid, stream=ERR, data=b"de", timestamp=1.0),
        pb.LogChunk(attempt_uid=uid, stream=OUT, offset=3, data=b"f", timestamp=1.0),
    ]

    positions = worker.api()(pb.PushLogsRequest(chunks=chunks)).positions

    assert [(each.stream, each.size) for each in positions] == [(OUT, 3), (ERR, 2), (OUT, 4)]


def test_what_comes_of_a_finished_or_unknown_job_is_taken_as_read(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)
    worker.push(uid, b"in time\n")
    worker.end(uid)

    assert worker.push(uid, b"late\n", offset=8) == 13
    assert worker.push("jabsent.0.1", b"x", offset=5) == 6
    assert texts(alone.admin, job_id) == [b"in time"]


@pytest.mark.parametrize(
    "chunk",
    [
        pb.LogChunk(data=b"x"),
        pb.LogChunk(stream=LogStream(9), data=b"x"),
        pb.LogChunk(stream=OUT, offset=-1, data=b"x"),
        pb.LogChunk(stream=OUT, offset=(1 << 63) - 1, data=b"it would end where no offset is"),
    ],
)
def test_a_chunk_that_cannot_be_is_refused(alone: Site, chunk: pb.LogChunk) -> None:
    worker = alone.worker()
    chunk.attempt_uid = "jabsent.0.1"

    assert worker.api().post(pb.PushLogsRequest(chunks=[chunk])).code == "invalid_argument"


# Reading.


def test_lines_of_all_streams_are_merged_by_time(alone: Site) -> None:
    worker = alone.worker()
    job_id = launch(alone.admin, replicas=2, independent_tasks=True)
    first, second = sorted(worker.accept(2))
    worker.push(first, b"a1\n", at=1.0)
    worker.push(second, b"b1\nb2\n", at=2.0)
    worker.push(first, b"e1\n", at=3.0, stream="STDERR")
    worker.push(first, b"a2\n", offset=3, at=4.0)

    got = lines(alone.admin, job_id)

    assert [line.data for line in got] == [b"a1", b"b1", b"b2", b"e1", b"a2"]
    assert [(line.task, line.attempt, line.stream) for line in got] == [
        (0, 1, OUT),
        (1, 1, OUT),
        (1, 1, OUT),
        (0, 1, ERR),
        (0, 1, OUT),
    ]
    assert [line.timestamp for line in got] == [1.0, 2.0, 2.0, 3.0, 4.0]
    assert [line.next_offset for line in got] == [3, 3, 6, 3, 6]
    assert texts(alone.admin, job_id, task=1) == [b"b1", b"b2"]
    assert texts(alone.admin, job_id, attempt=2) == []


def test_long_logs_of_several_streams_stay_in_order_of_time(alone: Site) -> None:
    """More than is read of each at a time."""
    worker = alone.worker()
    job_id = launch(alone.admin, replicas=2, independent_tasks=True)
    uids = sorted(worker.accept(2))
    offsets = dict.fromkeys(uids, 0)
    expected = []
    for number in range(60):
        uid = uids[number % 2]
        block = b"".join(b"%03d %s %04d\n" % (number, uid[-3:].encode(), n) for n in range(1_000))
        offsets[uid] = worker.push(uid, block, offset=offsets[uid], at=float(number))
        expected += block.splitlines()

    assert texts(alone.admin, job_id) == expected
    assert texts(alone.admin, job_id, tail=1_500) == expected[-1_500:]


def test_a_clock_that_is_set_back_disorders_no_stream(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)
    for number, at in enumerate((10.0, 5.0, 7.0, 20.0)):
        worker.push(uid, b"%d\n" % number, offset=2 * number, at=at)
    worker.push(uid, b"err\n", at=15.0, stream="STDERR")
    worker.end(uid)

    assert texts(alone.admin, job_id) == [b"0", b"1", b"2", b"err", b"3"]
    assert texts(alone.admin, job_id, tail=3) == [b"2", b"err", b"3"]
    with Cluster(alone.address, token=alone.server.token) as cluster:
        assert [line.data for line in cluster.logs(job_id)] == ["0", "1", "2", "err", "3"]


@pytest.mark.parametrize("off_s", [0.0, 86_400.0, -86_400.0])
def test_lines_are_dated_by_how_long_ago_they_were_seen_whatever_the_workers_clock_shows(
    alone: Site, off_s: float
) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)
    now = time.time()
    chunk = pb.LogChunk(attempt_uid=uid, stream=OUT, data=b"a minute ago\n", timestamp=now + off_s - 60.0)
    worker.api()(pb.PushLogsRequest(chunks=[chunk], sent_at=now + off_s))
    worker.end(uid)

    (line,) = lines(alone.admin, job_id)
    assert line.timestamp == pytest.approx(now - 60.0, abs=5.0)


def test_cursors_go_on_where_a_stream_broke(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)
    worker.push(uid, b"one\ntwo\nthree\n")
    worker.push(uid, b"oops\n", stream="STDERR")
    seen = lines(alone.admin, job_id)[:2]
    cursors = [
        pb.LogCursor(task=line.task, attempt=line.attempt, stream=line.stream, offset=line.next_offset) for line in seen
    ]

    assert texts(alone.admin, job_id, cursors=cursors) == [b"three", b"oops"]
    bad = [pb.LogCursor(stream=OUT, offset=-1)]
    with pytest.raises(ValueError, match="the offset of a cursor must be at least 0"):
        texts(alone.admin, job_id, cursors=bad)


def test_the_tail_is_of_all_streams_together(alone: Site) -> None:
    worker = alone.worker()
    job_id = launch(alone.admin, replicas=2, independent_tasks=True)
    first, second = sorted(worker.accept(2))
    worker.push(first, b"a1\na2\na3\n", at=1.0)
    worker.push(second, b"b1\n", at=2.0)
    worker.push(first, b"e1\n", at=3.0, stream="STDERR")

    assert texts(alone.admin, job_id, tail=3) == [b"a3", b"b1", b"e1"]
    assert texts(alone.admin, job_id, tail=0) == []
    assert texts(alone.admin, job_id, tail=100) == [b"a1", b"a2", b"a3", b"b1", b"e1"]
    assert texts(alone.admin, job_id, tail=1, task=0) == [b"e1"]
    for count in (-1, 100_001):
        with pytest.raises(ValueError, match="tail must be 0 to 100000"):
            texts(alone.admin, job_id, tail=count)


def test_a_rest_without_newline_is_a_line_once_its_attempt_has_ended(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)
    worker.push(uid, b"whole\nrest")
    assert texts(alone.admin, job_id) == [b"whole"]

    worker.end(uid)

    assert texts(alone.admin, job_id) == [b"whole", b"rest"]
    assert texts(alone.admin, job_id, tail=1) == [b"rest"]


def test_bytes_are_kept_as_they_are(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)
    odd = ["\u540d\u524d \U0001f600".encode(), b"\xff\xfe\x00", b"\x1b[31m<script>", b"", b"x" * 70_000]
    worker.push(uid, b"\n".join(odd) + b"\n")
    worker.end(uid)

    got = lines(alone.admin, job_id)

    assert [line.data for line in got[:4]] == odd[:4]
    assert [len(line.data) for line in got[4:]] == [65_536, 4_464]
    with Cluster(alone.address, token=alone.server.token) as cluster:
        read = [line.data for line in cluster.logs(job_id)]
    assert read[:3] == ["\u540d\u524d \U0001f600", "\ufffd\ufffd\x00", "\x1b[31m<script>"]


def test_logs_of_every_attempt_are_kept(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker, retry=RetrySpec(max_failures=1))
    worker.push(uid, b"first\n", at=1.0)
    worker.end(uid, 1)
    (again,) = worker.accept()
    worker.push(again, b"second\n", at=2.0)
    worker.end(again)

    assert texts(alone.admin, job_id) == [b"first", b"second"]
    assert texts(alone.admin, job_id, attempt=1) == [b"first"]
    assert texts(alone.admin, job_id, attempt=2) == [b"second"]


@pytest.mark.parametrize("fields", [{"task": 1}, {"task": -1}])
def test_a_task_that_is_none_of_the_jobs_is_refused(alone: Site, fields: dict[str, int]) -> None:
    job_id = launch(alone.admin)

    with pytest.raises(ValueError, match="task must be 0 to 0"):
        texts(alone.admin, job_id, **fields)


# Following.


def test_a_follower_gets_each_line_at_once_and_ends_with_the_job(alone: Site, follow: Callable[..., Follower]) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)
    worker.push(uid, b"before\n")
    follower = follow(job_id)
    assert follower.next() == b"before"

    offset = 7
    for number in range(5):
        began = time.monotonic()
        offset = worker.push(uid, b"%d\n" % number, offset=offset)
        assert follower.next() == b"%d" % number
        assert time.monotonic() - began < PROMPT_S
    worker.push(uid, b"rest", offset=offset)
    began = time.monotonic()
    worker.end(uid)

    assert [follower.next(), follower.next()] == [b"rest", None]
    assert time.monotonic() - began < PROMPT_S


def test_a_follower_sees_attempts_that_appear_later(alone: Site, follow: Callable[..., Follower]) -> None:
    job_id = launch(alone.admin, retry=RetrySpec(max_failures=1))
    follower = follow(job_id)
    worker = alone.worker()
    (uid,) = worker.accept()
    worker.push(uid, b"first\n")
    assert follower.next() == b"first"
    worker.end(uid, 1)
    (again,) = worker.accept()
    worker.push(again, b"second\n")
    assert follower.next() == b"second"
    worker.end(again)
    assert follower.next() is None


def test_a_follower_may_begin_with_the_tail(alone: Site, follow: Callable[..., Follower]) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)
    size = worker.push(uid, b"1\n2\n3\n")
    follower = follow(job_id, tail=1)
    assert follower.next() == b"3"
    worker.push(uid, b"4\n", offset=size)
    assert follower.next() == b"4"
    worker.end(uid)
    assert follower.next() is None


def test_a_follower_of_one_task_ends_with_the_job(alone: Site, follow: Callable[..., Follower]) -> None:
    worker = alone.worker()
    job_id = launch(alone.admin, replicas=2, independent_tasks=True)
    first, second = sorted(worker.accept(2))
    follower = follow(job_id, task=0)
    worker.push(second, b"of the other\n")
    worker.push(first, b"mine\n")
    assert follower.next() == b"mine"
    worker.end(first)
    worker.end(second)
    assert follower.next() is None


def test_following_a_finished_job_is_reading_it(alone: Site, follow: Callable[..., Follower]) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)
    worker.push(uid, b"all\n")
    worker.end(uid)
    follower = follow(job_id)

    assert [follower.next(), follower.next()] == [b"all", None]


def test_many_followers_are_all_served(alone: Site, follow: Callable[..., Follower]) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)
    followers = [follow(job_id) for _ in range(10)]
    size = worker.push(uid, b"one\n")
    assert [each.next() for each in followers] == [b"one"] * 10
    worker.push(uid, b"two\n", offset=size)
    worker.end(uid)
    assert [[each.next(), each.next()] for each in followers] == [[b"two", None]] * 10


def test_a_follower_that_goes_away_is_forgotten(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)
    worker.push(uid, b"one\n")
    api = alone.api(alone.server.token)
    with closing(api.stream(pb.FetchLogsRequest(job_id=job_id, follow=True))) as stream:  # type: ignore[type-var]
        assert next(stream).lines[0].data == b"one"
        running = alone.server._running
        assert running is not None
        wakers = running.controller.loop.wakers
        assert len(wakers.jobs) == 1

    wait_for(lambda: len(wakers.jobs) == 0, "the follower to be forgotten")
    worker.push(uid, b"two\n", offset=4)
    worker.end(uid)
    assert info(alone.admin, job_id).status is JobStatus.SUCCEEDED


def test_reading_without_following_ends_although_the_job_goes_on_printing(alone: Site) -> None:
    worker = alone.worker()
    job_id, uid, _ = alone.task(worker)
    worker.push(uid, b"x" * 99 + b"\n")
    stop = threading.Event()

    def chatter(worker: FakeWorker) -> None:
        offset = 100
        while not stop.is_set():
            offset = worker.push(uid, (b"x" * 99 + b"\n") * 1_000, offset=offset)

    with ThreadPoolExecutor(1) as pool:
        chattering = pool.submit(chatter, worker)
        try:
            for _ in range(3):
                assert len(texts(alone.admin, job_id)) >= 1
        finally:
            stop.set()
        chattering.result(WITHIN_S)
    worker.end(uid)


def test_the_round_of_a_wide_job_is_bounded(tmp_path: Path) -> None:
    """However many streams there are, what is read of them at a time stays small."""
    job_id = JobId("jwide")
    with LogStore(tmp_path) as store:
        attempts = []
        for task in range(_WIDE):
            store.append(job_id, task, 1, "stdout", 0, b"%050d\n" % task * 2_000, 1.0)
            uid = AttemptUid(f"{job_id}.{task}.1")
            attempts.append(AttemptRow(uid, job_id, task, 1, WorkerId("w"), "i", 0.0, AttemptState.RUNNING))
        merge = LogMerge(store, job_id, {})
        total = rounds = 0
        unread: set[tuple[int, int, LogStream]] = set()
        while rounds == 0 or unread:
            found, unread = merge.read(attempts)
            size = sum(len(each.line.data) + 200 for each in found)  # which is what a line takes in memory
            assert size <= 2 * 1024 * 1024
            total, rounds = total + len(found), rounds + 1
    assert total == _WIDE * 2_000
    assert rounds > 2
