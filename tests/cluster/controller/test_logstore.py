"""Logs: every byte once, in lines with their times, the newest ones when there are too many."""

from __future__ import annotations

import os
import random
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fluster.cluster.controller import logstore
from fluster.cluster.controller.loglines import MAX_LINE_BYTES
from fluster.cluster.controller.logstore import Line, LogStore
from fluster.cluster.ids import JobId
from fluster.errors import ResourceExhausted

JOB = JobId("j1")


@pytest.fixture
def open_logs(tmp_path: Path) -> Iterator[Callable[..., LogStore]]:
    """Opens the store, as often as a controller starts."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(LogStore(tmp_path / "logs", **settings))


@pytest.fixture
def logs(open_logs: Callable[..., LogStore]) -> LogStore:
    return open_logs()


def put(logs: LogStore, offset: int, data: bytes, at: float = 1.0, stream: str = "stdout") -> int:
    return logs.append(JOB, 0, 1, stream, offset, data, at)


def read(logs: LogStore, offset: int = 0, *, limit: int = 10**9, final: bool = False) -> list[Line]:
    """All lines from `offset` on, as a reader that goes on does."""
    lines: list[Line] = []
    more = True
    while more:
        part, more = logs.read_lines(JOB, 0, 1, "stdout", offset, limit_bytes=limit, final=final)
        assert part or not more
        lines += part
        offset = lines[-1].next_offset if lines else offset
    return lines


def texts(lines: list[Line]) -> list[bytes]:
    return [line.data for line in lines]


def test_lines_come_back_with_their_times_and_where_to_go_on(logs: LogStore) -> None:
    put(logs, 0, b"one\ntw", at=10.0)
    put(logs, 6, b"o\n\nfour", at=20.0)
    assert read(logs) == [Line(10.0, b"one", 4), Line(10.0, b"two", 8), Line(20.0, b"", 9)]
    assert read(logs, 4) == read(logs)[1:]
    assert read(logs, final=True)[3:] == [Line(20.0, b"four", 13)]
    assert read(logs, 13, final=True) == []
    assert logs.size(JOB, 0, 1, "stdout") == 13


def test_streams_attempts_and_jobs_do_not_mix(logs: LogStore) -> None:
    places = [(JobId(job), task, n, s) for job in "ab" for task in (0, 1) for n in (1, 2) for s in logstore.STREAMS]
    for place in places:
        logs.append(*place, 0, repr(place).encode() + b"\n", 1.0)
    for place in places:
        lines, _ = logs.read_lines(*place, 0, limit_bytes=1000, final=True)
        assert texts(lines) == [repr(place).encode()]


def test_what_nobody_printed_is_empty(logs: LogStore) -> None:
    assert read(logs, final=True) == []
    assert logs.size(JOB, 0, 1, "stderr") == 0
    assert logs.tail_offset(JOB, 0, 1, "stdout", 5) == 0


def test_each_byte_is_stored_once_however_chunks_overlap(logs: LogStore) -> None:
    rng = random.Random(1)
    printed = b"".join(b"line %d\n" % n for n in range(500))
    size = ahead = 0
    while size < len(printed):
        start = rng.randrange(max(0, size - 50), min(size + ahead + 1, len(printed)))
        chunk = printed[start : start + rng.randrange(80)]
        answer = put(logs, start, chunk)
        assert answer == (max(size, start + len(chunk)) if start <= size else size)
        size, ahead = answer, 20 if start <= size else 0
    assert texts(read(logs)) == printed.splitlines()


def test_a_restarted_controller_goes_on_where_the_stream_ends(open_logs: Callable[..., LogStore]) -> None:
    first = open_logs()
    put(first, 0, b"one\ntw", at=1.0)
    second = open_logs()  # the first one was killed: nothing was closed
    assert put(second, 6, b"o\n", at=9.0) == 8
    assert read(second) == [Line(1.0, b"one", 4), Line(1.0, b"two", 8)]


@pytest.mark.parametrize("limit", [1, 50, 5_000, 10**9])
def test_lines_are_the_same_however_much_is_read_at_a_time(logs: LogStore, limit: int) -> None:
    rng = random.Random(2)
    printed = b"".join(os.urandom(rng.randrange(300)).replace(b"\n", b" ") + b"\n" for _ in range(300))
    for start in range(0, len(printed), 777):
        put(logs, start, printed[start : start + 777], at=float(start))
    lines = read(logs, limit=limit)
    assert texts(lines) == printed.split(b"\n")[:-1]
    for line in lines:
        begin = line.next_offset - len(line.data) - 1
        assert line.timestamp == begin - begin % 777


def test_an_answer_of_many_short_lines_is_bounded_too(logs: LogStore) -> None:
    put(logs, 0, b"\n" * 100_000)
    lines, more = logs.read_lines(JOB, 0, 1, "stdout", 0, limit_bytes=200 * 100, final=False)
    assert (len(lines), more) == (100, True)


@pytest.mark.parametrize("length", [MAX_LINE_BYTES - 1, MAX_LINE_BYTES, MAX_LINE_BYTES + 1, 3 * MAX_LINE_BYTES])
@pytest.mark.parametrize("chunk", [10_000, MAX_LINE_BYTES, 10**6])
def test_long_lines_are_given_in_pieces_and_end_once(logs: LogStore, length: int, chunk: int) -> None:
    printed = b"x" * length + b"\nnext\n"
    pieces: list[Line] = []
    for start in range(0, len(printed), chunk):
        put(logs, start, printed[start : start + chunk])
        pieces += read(logs, pieces[-1].next_offset if pieces else 0)  # followed while it is written
    assert pieces == read(logs)
    assert b"".join(texts(pieces)) == printed.replace(b"\n", b"")
    assert texts(pieces)[-1] == b"next"
    assert len(pieces) == 1 + -(-length // MAX_LINE_BYTES)
    assert max(map(len, texts(pieces))) <= MAX_LINE_BYTES


def test_long_lines_are_not_cut_inside_a_character(logs: LogStore) -> None:
    text = "a" + "€" * 40_000
    put(logs, 0, text.encode() + b"\n")
    assert "".join(line.data.decode() for line in read(logs)) == text


def test_long_lines_that_are_no_text_are_cut_all_the_same(logs: LogStore) -> None:
    printed = b"\x80" * (2 * MAX_LINE_BYTES + 5)
    put(logs, 0, printed)
    assert [len(text) for text in texts(read(logs, final=True))] == [MAX_LINE_BYTES, MAX_LINE_BYTES, 5]


def test_a_gap_is_refused_by_saying_where_the_stream_ends(logs: LogStore) -> None:
    put(logs, 0, b"one\n")
    assert put(logs, 100, b"late\n") == 4
    assert put(logs, 4, b"two\n") == 8
    assert texts(read(logs)) == [b"one", b"two"]


def test_bytes_that_the_sender_does_not_have_any_more_are_given_up(logs: LogStore) -> None:
    put(logs, 0, b"one\n", at=1.0)
    for _ in range(2):  # two requests, of two chunks each
        assert put(logs, 100, b"late\n", at=5.0) == 4
        assert put(logs, 105, b"later\n", at=5.0) == 4
    assert put(logs, 100, b"late\n", at=5.0) == 105
    assert put(logs, 105, b"later\n", at=5.0) == 111
    marker, *rest = read(logs)
    assert marker.data.startswith(b"[fluster: 100 earlier bytes were dropped")
    assert marker.next_offset == 100
    assert rest == [Line(5.0, b"late", 105), Line(5.0, b"later", 111)]
    assert read(logs, 105) == rest[1:]


def test_past_the_cap_the_oldest_lines_give_way_and_readers_are_told(
    open_logs: Callable[..., LogStore], tmp_path: Path
) -> None:
    cap = 1024 * 1024
    logs = open_logs(cap_bytes=cap)
    size = 0
    for n in range(50_000):
        size = put(logs, size, b"line %06d %s\n" % (n, b"x" * 87), at=float(n))
    assert logs.size(JOB, 0, 1, "stdout") == size == 5_000_000
    marker, *rest = read(logs)
    assert marker.data == b"[fluster: %d earlier bytes were dropped; %d are kept of a stream]" % (
        marker.next_offset,
        cap,
    )
    assert cap * 14 // 16 < size - marker.next_offset <= cap
    first = marker.next_offset // 100
    assert [line.data[:11] for line in rest] == [b"line %06d" % n for n in range(first, 50_000)]
    assert [line.timestamp for line in rest] == [float(n) for n in range(first, 50_000)]
    assert read(logs, marker.next_offset + 100) == rest[1:]
    on_disk = (tmp_path / "logs" / JOB / "0.1.stdout").stat().st_blocks * 512
    assert on_disk <= cap + 64 * 1024


def test_the_cap_holds_after_a_restart_and_for_one_endless_line(open_logs: Callable[..., LogStore]) -> None:
    size = 0
    for _ in range(30):
        logs = open_logs(cap_bytes=200_000)
        size = put(logs, size, b"x" * 50_000)
    logs = open_logs(cap_bytes=200_000)
    marker, *rest = read(logs, final=True)
    assert b"".join(texts(rest)) == b"x" * (size - marker.next_offset)
    assert size - marker.next_offset <= 200_000


def test_a_reader_never_sees_the_hole_that_is_being_made(open_logs: Callable[..., LogStore]) -> None:
    logs = open_logs(cap_bytes=100_000)
    stop = threading.Event()
    wrong: list[bytes] = []

    def follow() -> None:
        while not stop.is_set():
            lines, _ = logs.read_lines(JOB, 0, 1, "stdout", 0, limit_bytes=50_000, final=False)
            wrong.extend(line.data for line in lines if b"\0" in line.data)

    readers = [threading.Thread(target=follow) for _ in range(2)]
    for reader in readers:
        reader.start()
    size = 0
    for n in range(3_000):
        size = put(logs, size, b"%01000d\n" % n)
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []


def test_the_tail_begins_at_the_last_lines(logs: LogStore) -> None:
    printed = b"".join(b"%d%s\n" % (n, b"x" * (n % 500)) for n in range(1_000))
    put(logs, 0, printed)
    for count in (0, 1, 7, 400, 999, 1_000, 5_000):
        offset = logs.tail_offset(JOB, 0, 1, "stdout", count)
        assert texts(read(logs, offset)) == printed.splitlines()[max(0, 1_000 - count) :]
    put(logs, len(printed), b"half")
    assert texts(read(logs, logs.tail_offset(JOB, 0, 1, "stdout", 1), final=True)) == [
        printed.splitlines()[-1],
        b"half",
    ]


def test_the_tail_of_an_endless_line_is_bounded(logs: LogStore) -> None:
    put(logs, 0, b"x" * 10_000_000)
    offset = logs.tail_offset(JOB, 0, 1, "stdout", 10)
    assert offset == 10_000_000 - 11 * MAX_LINE_BYTES


def test_the_tail_does_not_reach_before_what_is_kept(open_logs: Callable[..., LogStore]) -> None:
    logs = open_logs(cap_bytes=10_000)
    size = 0
    for n in range(300):
        size = put(logs, size, b"%0100d\n" % n)
    marker = read(logs)[0]
    assert logs.tail_offset(JOB, 0, 1, "stdout", 1_000) == marker.next_offset


def test_times_are_of_the_lines_first_byte_also_when_the_clock_went_back(logs: LogStore) -> None:
    size = 0
    for at in (100.0, 50.0, float("nan"), 75.0):
        size = put(logs, size, b"line\n", at=at)
    assert [line.timestamp for line in read(logs)] == [100.0, 50.0, 50.0, 75.0]


def test_times_of_a_stream_that_goes_on_for_long_are_kept_to_the_second(
    logs: LogStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logstore, "_FINE_TIMES", 10)
    size = 0
    for n in range(50):
        size = put(logs, size, b"%d\n" % n, at=n / 10)
    off = [abs(line.timestamp - n / 10) for n, line in enumerate(read(logs))]
    assert max(off[:10]) == 0
    assert 0 < max(off[10:]) < 1
    assert (tmp_path / "logs" / JOB / "0.1.stdout.index").stat().st_size < 16 * 16


def test_a_torn_index_costs_times_not_lines(open_logs: Callable[..., LogStore], tmp_path: Path) -> None:
    logs = open_logs()
    put(logs, 0, b"one\n", at=1.0)
    put(logs, 4, b"two\n", at=2.0)
    index = tmp_path / "logs" / JOB / "0.1.stdout.index"
    for torn in (index.stat().st_size - 5, 16, 3, 0):
        os.truncate(index, torn)
        logs = open_logs()
        assert texts(read(logs)) == [b"one", b"two"]
    logs = open_logs()
    put(logs, 8, b"three\n", at=3.0)
    assert read(logs)[2] == Line(3.0, b"three", 14)
    index.unlink()
    assert texts(read(logs)) == [b"one", b"two", b"three"]


def test_an_index_that_knows_of_bytes_that_a_power_cut_took_is_mended(
    open_logs: Callable[..., LogStore], tmp_path: Path
) -> None:
    logs = open_logs()
    for n in range(5):
        put(logs, n * 4, b"l %d\n" % n, at=float(n))
    os.truncate(tmp_path / "logs" / JOB / "0.1.stdout", 9)
    logs = open_logs()
    assert texts(read(logs)) == [b"l 0", b"l 1"]
    assert put(logs, 20, b"l 5\n", at=5.0) == 9
    assert put(logs, 8, b"l 2\nl 3\n", at=7.0) == 16
    assert [(line.data, line.timestamp) for line in read(logs)] == [
        (b"l 0", 0.0),
        (b"l 1", 1.0),
        (b"l 2", 2.0),
        (b"l 3", 7.0),
    ]


def test_a_log_that_is_shorter_than_where_it_should_begin_is_readable_again(
    open_logs: Callable[..., LogStore], tmp_path: Path
) -> None:
    logs = open_logs()
    put(logs, 0, b"one\n")
    for _ in range(3):
        put(logs, 100, b"late\n")
    os.truncate(tmp_path / "logs" / JOB / "0.1.stdout", 50)  # a power cut kept the index but not the log
    logs = open_logs()
    assert put(logs, 50, b"new\n") == 54
    assert texts(read(logs, 50)) == [b"new"]


def test_descriptors_are_bounded(open_logs: Callable[..., LogStore], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logstore, "MAX_OPEN", 4)
    logs = open_logs()
    before = len(os.listdir("/proc/self/fd"))
    for turn in range(3):
        for task in range(20):
            logs.append(JOB, task, 1, "stdout", turn * 3, b"%d!\n" % turn, float(turn))
    assert len(os.listdir("/proc/self/fd")) <= before + 8
    for task in range(20):
        lines, _ = logs.read_lines(JOB, task, 1, "stdout", 0, limit_bytes=1000, final=True)
        assert lines == [Line(float(turn), b"%d!" % turn, turn * 3 + 3) for turn in range(3)]


def test_a_jobs_logs_are_deleted_with_it(logs: LogStore, tmp_path: Path) -> None:
    put(logs, 0, b"one\n")
    logs.append(JobId("j2"), 0, 1, "stdout", 0, b"other\n", 1.0)
    assert sorted(logs.job_ids()) == ["j1", "j2"]
    logs.delete_job(JOB)
    logs.delete_job(JOB)
    assert read(logs) == []
    assert logs.job_ids() == ["j2"]
    assert put(logs, 0, b"again\n") == 6


@pytest.mark.parametrize("job_id", ["", "..", "../j1", "a/b", ".hidden", "a\n", "j\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_no_name_leads_out_of_the_directory(logs: LogStore, tmp_path: Path, job_id: str) -> None:
    (tmp_path / "kept").touch()
    with pytest.raises(ValueError, match="job_id must be"):
        logs.append(JobId(job_id), 0, 1, "stdout", 0, b"x", 1.0)
    with pytest.raises(ValueError, match="job_id must be"):
        logs.delete_job(JobId(job_id))
    with pytest.raises(ValueError, match="stream must be"):
        logs.append(JOB, 0, 1, "../stdout", 0, b"x", 1.0)
    with pytest.raises(ValueError, match="offset must be"):
        put(logs, -1, b"x")
    assert (tmp_path / "kept").exists()


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files of this process cannot grow past 4096 bytes."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_said_and_what_fitted_is_kept(logs: LogStore) -> None:
    printed = b"".join(b"line %04d\n" % n for n in range(1_000))
    with pytest.raises(ResourceExhausted, match="logs cannot be written"):
        put(logs, 0, printed)
    size = logs.size(JOB, 0, 1, "stdout")
    assert size == 4096
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
    assert put(logs, size, printed[size:]) == len(printed)
    assert texts(read(logs)) == printed.splitlines()
