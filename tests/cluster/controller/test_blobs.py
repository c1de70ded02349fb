"""Blobs: complete and right, or not there."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluster.cluster.controller import blobs
from fluster.cluster.controller.blobs import BlobNotFound, BlobStore
from fluster.errors import ResourceExhausted

CONTENT = bytes(range(256)) * 40
NAME = hashlib.sha256(CONTENT).hexdigest()


def named(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def send(store: BlobStore, content: bytes, chunk: int = 1000, sha256: str = "") -> int:
    """As a client does: goes on where the store says."""
    sha256 = sha256 or named(content)
    offset = store.put(sha256, 0, content[:chunk], len(content))
    while offset < len(content):
        offset = store.put(sha256, offset, content[offset : offset + chunk], len(content))
    return offset


def read(store: BlobStore, sha256: str, offset: int = 0) -> bytes:
    with store.open(sha256, offset) as file:
        return file.read()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.mark.parametrize("chunk", [1, 999, 10_240, 50_000])
def test_a_blob_is_there_when_its_last_chunk_is(store: BlobStore, chunk: int) -> None:
    content = CONTENT if chunk > 1 else CONTENT[:50]
    assert send(store, content, chunk) == len(content)
    assert read(store, named(content)) == content
    assert read(store, named(content), 40) == content[40:]
    assert store.size(named(content)) == store.used_bytes == len(content)


def test_the_empty_blob_is_a_blob(store: BlobStore) -> None:
    assert store.put(named(b""), 0, b"", 0) == 0
    assert read(store, named(b"")) == b""


def test_an_unfinished_blob_is_not_there(store: BlobStore) -> None:
    store.put(NAME, 0, CONTENT[:5000], len(CONTENT))
    assert not store.exists(NAME)
    assert not store.renew(NAME)
    with pytest.raises(BlobNotFound, match=NAME):
        store.open(NAME)
    with pytest.raises(BlobNotFound, match=NAME):
        store.size(NAME)


def test_chunks_may_repeat_and_overlap_but_leave_no_gap(store: BlobStore) -> None:
    total = len(CONTENT)
    assert store.put(NAME, 100, CONTENT[100:200], total) == 0
    assert store.put(NAME, 0, CONTENT[:1000], total) == 1000
    assert store.put(NAME, 0, CONTENT[:1000], total) == 1000
    assert store.put(NAME, 500, CONTENT[500:3000], total) == 3000
    assert store.put(NAME, 3001, CONTENT[3001:], total) == 3000
    assert store.put(NAME, 0, CONTENT, total) == total
    assert store.put(NAME, 0, CONTENT[:1000], total) == total
    assert read(store, NAME) == CONTENT


@pytest.mark.parametrize("chunk", [0, 100])
def test_an_upload_goes_on_after_a_restart(tmp_path: Path, chunk: int) -> None:
    BlobStore(tmp_path).put(NAME, 0, CONTENT[: 9000 if chunk else len(CONTENT) - 1], len(CONTENT))
    store = BlobStore(tmp_path)
    assert store.used_bytes >= 9000
    offset = store.put(NAME, 0, b"", len(CONTENT))
    assert store.put(NAME, offset, CONTENT[offset:], len(CONTENT)) == len(CONTENT)
    assert read(BlobStore(tmp_path), NAME) == CONTENT
    assert BlobStore(tmp_path).used_bytes == len(CONTENT)


def test_bytes_with_another_hash_are_refused_and_dropped(store: BlobStore) -> None:
    with pytest.raises(ValueError, match="do not have the hash"):
        send(store, CONTENT, sha256="0" * 64)
    assert not store.exists("0" * 64)
    assert store.used_bytes == 0
    with pytest.raises(ValueError, match="do not have the hash"):
        send(store, CONTENT[:-1] + b"?", sha256=NAME)
    assert send(store, CONTENT) == len(CONTENT)


def test_a_sender_with_a_wrong_size_does_not_disturb_one_with_the_right_one(store: BlobStore) -> None:
    store.put(NAME, 0, CONTENT[:10], 10_000_000)
    assert send(store, CONTENT) == len(CONTENT)
    with pytest.raises(ValueError, match="has 10240 bytes, not 10000000"):
        store.put(NAME, 10, CONTENT[10:20], 10_000_000)


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", NAME.upper(), NAME + "\n", NAME[:-1], "/" * 64, "\N{FULLWIDTH DIGIT ZERO}" * 64]
)
def test_a_name_that_is_no_hash_is_refused(store: BlobStore, name: str) -> None:
    with pytest.raises(ValueError, match="64 lower-case hex digits"):
        store.put(name, 0, b"x", 1)
    with pytest.raises(ValueError, match="64 lower-case hex digits"):
        store.open(name)
    with pytest.raises(ValueError, match="64 lower-case hex digits"):
        store.exists(name)


@pytest.mark.parametrize(("offset", "length", "total"), [(-1, 1, 5), (0, 6, 5), (6, 0, 5), (0, 0, -1)])
def test_offsets_and_sizes_that_cannot_be_are_refused(store: BlobStore, offset: int, length: int, total: int) -> None:
    with pytest.raises(ValueError, match="do not lie in a blob"):
        store.put(NAME, offset, b"x" * length, total)


def test_the_cap_is_kept_and_what_cannot_fit_is_refused_at_once(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, cap_bytes=15_000)
    send(store, CONTENT)
    with pytest.raises(ResourceExhausted, match="10240 of 15000 bytes are in use"):
        store.put("0" * 64, 0, b"", 5_000)
    store.put("0" * 64, 0, b"x" * 4000, 4500)
    with pytest.raises(ResourceExhausted, match="do not fit"):
        store.put("1" * 64, 0, b"x" * 4000, 4000)
    assert store.used_bytes == 14_240
    assert BlobStore(tmp_path).used_bytes == 14_240


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files of this process cannot grow past 4096 bytes."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_a_chunk_that_the_disk_does_not_take_can_be_sent_again(store: BlobStore) -> None:
    with pytest.raises(ResourceExhausted, match="cannot be written"):
        store.put(NAME, 0, CONTENT, len(CONTENT))
    assert store.used_bytes == 0
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
    assert send(store, CONTENT) == len(CONTENT)
    assert read(store, NAME) == CONTENT


def test_a_sweep_deletes_what_is_old_and_meant_by_nobody(tmp_path: Path) -> None:
    now = 1000.0
    store = BlobStore(tmp_path, clock=lambda: now)
    for content in (b"old", b"meant", b"renewed", b"sent again"):
        send(store, content)
        os.utime(tmp_path / named(content)[:2] / named(content), (now, now))
    now = 2000.0
    send(store, b"young")
    os.utime(tmp_path / named(b"young")[:2] / named(b"young"), (now, now))
    assert store.renew(named(b"renewed"))
    send(store, b"sent again")
    assert store.sweep({named(b"meant")}, min_age_s=500.0) == len(b"old")
    there = [
        content for content in (b"old", b"meant", b"renewed", b"sent again", b"young") if store.exists(named(content))
    ]
    assert there == [b"meant", b"renewed", b"sent again", b"young"]
    assert store.used_bytes == sum(map(len, there))


def test_blobs_of_before_have_their_time_from_the_start_on_whatever_they_are_dated(tmp_path: Path) -> None:
    now = 1000.0
    send(BlobStore(tmp_path, clock=lambda: now), CONTENT)
    now += 1_000_000.0  # the machine's clock was set, or nobody was there for long
    store = BlobStore(tmp_path, clock=lambda: now)
    assert store.sweep((), min_age_s=500.0) == 0
    now += 500.0
    assert store.sweep((), min_age_s=500.0) == len(CONTENT)


def test_a_blob_is_as_old_as_the_steady_clock_says(tmp_path: Path) -> None:
    now = 1000.0
    store = BlobStore(tmp_path, clock=lambda: now)  # far from the clock that dates files
    send(store, CONTENT)
    assert store.sweep((), min_age_s=500.0) == 0
    now += 500.0
    assert store.sweep((), min_age_s=500.0) == len(CONTENT)


def test_a_sweep_drops_uploads_that_nobody_goes_on_with(tmp_path: Path) -> None:
    now = 1000.0
    store = BlobStore(tmp_path, clock=lambda: now)
    store.put(NAME, 0, CONTENT[:1000], len(CONTENT))
    assert store.sweep((), min_age_s=0.0) == 0
    now += blobs.IDLE_UPLOAD_S
    assert store.sweep((), min_age_s=0.0) == 1000
    assert list((tmp_path / "uploading").iterdir()) == []
    assert store.put(NAME, 1000, CONTENT[1000:], len(CONTENT)) == 0
    assert send(store, CONTENT) == len(CONTENT)


def test_unfinished_uploads_are_bounded_and_the_longest_idle_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "MAX_UPLOADS", 3)
    now = 0.0
    store = BlobStore(tmp_path, clock=lambda: now)
    contents = [bytes([n]) * 10 for n in range(5)]
    for content in contents:
        now += 1
        store.put(named(content), 0, content[:5], 10)
    assert len(list((tmp_path / "uploading").iterdir())) == 3
    assert store.used_bytes == 15
    assert store.put(named(contents[4]), 5, contents[4][5:], 10) == 10
    assert store.put(named(contents[0]), 5, contents[0][5:], 10) == 0


def test_a_blob_is_read_to_its_end_though_it_is_swept_meanwhile(store: BlobStore) -> None:
    send(store, CONTENT)
    with store.open(NAME) as file:
        start = file.read(100)
        store.sweep((), min_age_s=-1.0)
        assert start + file.read() == CONTENT
    assert not store.exists(NAME)


def test_several_senders_of_one_blob_finish_together(store: BlobStore) -> None:
    content = os.urandom(300_000)
    ends: list[int] = []
    senders = [threading.Thread(target=lambda n=n: ends.append(send(store, content, 7_000 + n))) for n in range(6)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert ends == [len(content)] * 6
    assert read(store, named(content)) == content
    assert store.used_bytes == len(content)


def test_what_else_lies_in_the_directory_is_left_alone(tmp_path: Path) -> None:
    send(BlobStore(tmp_path), CONTENT)
    for stray in (tmp_path / "note", tmp_path / NAME[:2] / "note", tmp_path / "uploading" / "note"):
        stray.touch()
    assert BlobStore(tmp_path).sweep((), min_age_s=-1.0) == len(CONTENT)
    assert {file.name for file in tmp_path.rglob("note")} == {"note"}
