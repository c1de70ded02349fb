"""What attempts print on its way to a log store."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fluster.cluster.worker import logfile
from fluster.cluster.worker.logs import LogShipper
from fluster.cluster.worker.runtime import LogFiles
from fluster.errors import Unreachable
from fluster.rpc.gen.fluster.cluster.v1.controller_pb import LogPosition, PushLogsRequest, PushLogsResponse
from fluster.rpc.gen.fluster.cluster.v1.types_pb import LogStream

WITHIN_S = 15.0
MEBI = 1 << 20


class Store:
    """A log store that remembers each chunk; `away` makes it unreachable."""

    def __init__(self) -> None:
        self.content: dict[tuple[str, LogStream], bytearray] = {}
        self.timestamps: list[float] = []
        self.requests: list[PushLogsRequest] = []
        self.gaps: list[tuple[int, int]] = []
        self.away = False
        self.deaf = False

    async def push(self, request: PushLogsRequest) -> PushLogsResponse:
        if self.away:
            raise Unreachable("nobody there")
        self.requests.append(request)
        positions = {}
        for chunk in request.chunks:
            log = self.content.setdefault((chunk.attempt_uid, chunk.stream), bytearray())
            if not self.deaf:
                if chunk.offset > len(log):
                    self.gaps.append((len(log), chunk.offset))
                    log += bytes(chunk.offset - len(log))
                log[chunk.offset : chunk.offset + len(chunk.data)] = chunk.data
                self.timestamps.append(chunk.timestamp)
            positions[chunk.attempt_uid, chunk.stream] = len(log)
        return PushLogsResponse(
            positions=[LogPosition(attempt_uid=u, stream=s, size=n) for (u, s), n in positions.items()]
        )

    def of(self, uid: str, stream: LogStream = LogStream.STDOUT) -> bytes:
        return bytes(self.content.get((uid, stream), b""))


@asynccontextmanager
async def shipping(store: Store, cap_bytes: int = 256 * MEBI) -> AsyncIterator[LogShipper]:
    shipper = LogShipper(store.push, cap_bytes=cap_bytes, look_s=0.01)
    task = asyncio.create_task(shipper.run())
    try:
        yield shipper
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def files_in(directory: Path) -> LogFiles:
    directory.mkdir(exist_ok=True)
    return LogFiles(directory / "stdout", directory / "stderr")


def append(path: Path, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


async def until_equal(store: Store, uid: str, expected: bytes) -> None:
    async with asyncio.timeout(WITHIN_S):
        while store.of(uid) != expected:
            await asyncio.sleep(0.01)


async def finished(shipper: LogShipper, uid: str) -> None:
    async with asyncio.timeout(WITHIN_S):
        await shipper.finish(uid)


async def test_both_streams_arrive_while_they_grow(tmp_path: Path) -> None:
    store, files = Store(), files_in(tmp_path)
    async with shipping(store) as shipper:
        shipper.follow("a", files, adopted=False)
        append(files.stdout, b"one\n")
        await until_equal(store, "a", b"one\n")
        append(files.stdout, b"two")
        append(files.stderr, b"\xff\x00bytes")
        await finished(shipper, "a")
    assert store.of("a") == b"one\ntwo"
    assert store.of("a", LogStream.STDERR) == b"\xff\x00bytes"


async def test_what_was_written_last_has_arrived_when_finish_returns(tmp_path: Path) -> None:
    store = Store()
    async with shipping(store) as shipper:
        for number in range(50):
            files = files_in(tmp_path / str(number))
            shipper.follow(f"a{number}", files, adopted=False)
            append(files.stdout, os.urandom(number * 1000))
            await finished(shipper, f"a{number}")
            assert store.of(f"a{number}") == (files.stdout.read_bytes() if number else b"")


async def test_no_request_holds_more_than_two_mebibytes(tmp_path: Path) -> None:
    store = Store()
    async with shipping(store) as shipper:
        contents = {}
        for uid in ("a", "b", "c"):
            files = files_in(tmp_path / uid)
            contents[uid] = os.urandom(5 * MEBI)
            append(files.stdout, contents[uid])
            shipper.follow(uid, files, adopted=False)
        await asyncio.gather(*(finished(shipper, uid) for uid in contents))
    assert {uid: store.of(uid) for uid in contents} == contents
    assert max(sum(len(chunk.data) for chunk in request.chunks) for request in store.requests) <= 2 * MEBI
    assert max(len(request.to_binary()) for request in store.requests) <= 2 * MEBI


async def test_a_controller_that_is_away_loses_nothing_and_times_stay_those_of_the_first_sight(tmp_path: Path) -> None:
    store, files = Store(), files_in(tmp_path)
    store.away = True
    async with shipping(store) as shipper:
        shipper.follow("a", files, adopted=False)
        append(files.stdout, b"early")
        before = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < before + 0.15:
            await asyncio.sleep(0.01)
        append(files.stdout, b"late")
        finish = asyncio.create_task(finished(shipper, "a"))
        await asyncio.sleep(0)
        store.away = False
        await finish
    assert store.of("a") == b"earlylate"
    assert len(store.timestamps) == 2
    assert store.timestamps[1] - store.timestamps[0] >= 0.1


async def test_an_adopted_log_is_neither_doubled_nor_torn(tmp_path: Path) -> None:
    store, files = Store(), files_in(tmp_path)
    append(files.stdout, b"0123456789")
    store.content["a", LogStream.STDOUT] = bytearray(b"0123")
    async with shipping(store) as shipper:
        shipper.follow("a", files, adopted=True)
        append(files.stdout, b"abc")
        await finished(shipper, "a")
    assert store.of("a") == b"0123456789abc"


async def test_a_store_that_takes_nothing_does_not_hold_up_the_end(tmp_path: Path) -> None:
    store, files = Store(), files_in(tmp_path)
    store.deaf = True
    append(files.stdout, b"never heard")
    async with shipping(store) as shipper:
        shipper.follow("a", files, adopted=False)
        await finished(shipper, "a")


async def test_a_forgotten_attempt_is_not_waited_for(tmp_path: Path) -> None:
    store, files = Store(), files_in(tmp_path)
    store.away = True
    append(files.stdout, b"x")
    async with shipping(store) as shipper:
        shipper.follow("a", files, adopted=False)
        finish = asyncio.create_task(finished(shipper, "a"))
        await asyncio.sleep(0)
        shipper.forget("a")
        await finish


async def test_beyond_the_cap_the_oldest_shipped_bytes_give_their_disk_space_back(tmp_path: Path) -> None:
    store, files = Store(), files_in(tmp_path)
    content = os.urandom(10 * MEBI)
    async with shipping(store, cap_bytes=2 * MEBI) as shipper:
        shipper.follow("a", files, adopted=False)
        for start in range(0, len(content), MEBI):
            append(files.stdout, content[start : start + MEBI])
            await until_equal(store, "a", content[: start + MEBI])
        await until_small(files.stdout, 4 * MEBI)
        assert files.stdout.stat().st_size == 10 * MEBI
        await finished(shipper, "a")
    assert store.gaps == []
    assert logfile.first_kept(files.stdout) >= 6 * MEBI
    assert logfile.read(files.stdout, 9 * MEBI, MEBI) == content[9 * MEBI :]


async def until_small(path: Path, limit_bytes: int) -> None:
    async with asyncio.timeout(WITHIN_S):
        while path.stat().st_blocks * 512 > limit_bytes:
            await asyncio.sleep(0.01)


async def test_a_job_that_prints_faster_than_its_controller_listens_is_not_blocked_and_leaves_a_gap(
    tmp_path: Path,
) -> None:
    store, files = Store(), files_in(tmp_path)
    store.away = True
    async with shipping(store, cap_bytes=2 * MEBI) as shipper:
        shipper.follow("a", files, adopted=False)
        for _ in range(8):
            append(files.stdout, b"x" * MEBI)
            await asyncio.sleep(0.02)
        await until_small(files.stdout, 4 * MEBI)
        store.away = False
        await finished(shipper, "a")
    assert len(store.of("a")) == 8 * MEBI
    assert store.gaps
    assert store.gaps[-1][1] >= 5 * MEBI


async def test_an_adopted_log_goes_on_behind_what_was_cut_off(tmp_path: Path) -> None:
    store, files = Store(), files_in(tmp_path)
    append(files.stdout, b"x" * 2 * MEBI + b"rest")
    assert logfile.cut(files.stdout, MEBI) == MEBI
    store.content["a", LogStream.STDOUT] = bytearray(b"x" * 2 * MEBI)
    async with shipping(store) as shipper:
        shipper.follow("a", files, adopted=True)
        await finished(shipper, "a")
    assert store.of("a") == b"x" * 2 * MEBI + b"rest"


async def test_a_log_that_its_job_replaced_by_a_link_leads_nowhere(tmp_path: Path) -> None:
    store, files = Store(), files_in(tmp_path / "logs")
    (tmp_path / "secret").write_bytes(b"of the worker")
    files.stdout.symlink_to(tmp_path / "secret")
    os.mkfifo(files.stderr)
    async with shipping(store) as shipper:
        shipper.follow("a", files, adopted=False)
        await finished(shipper, "a")
    assert store.of("a") == b""
