import asyncio
import os
from pathlib import Path

import pytest

from fluster.cluster.worker.cache import Shelf


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    made = Shelf(tmp_path / "shelf")
    made.open()
    return made


def put(shelf: Shelf, key: str, used_at: float) -> None:
    made = shelf.new(key)
    made.mkdir()
    shelf.put(key, made)
    os.utime(shelf.path(key), (used_at, used_at))


def attempt_of(tmp_path: Path, uid: str) -> Path:
    path = tmp_path / "attempts" / uid
    path.mkdir(parents=True)
    return path


def kept(shelf: Shelf) -> set[str]:
    return {path.name for path in shelf._all()}


def test_what_was_not_used_for_longest_gives_way(shelf: Shelf) -> None:
    for key, used_at in (("old", 1), ("new", 3), ("middle", 2)):
        put(shelf, key, used_at)
    assert shelf.evict(20, lambda _: 10) == ["old"]
    assert kept(shelf) == {"new", "middle"}
    assert shelf.evict(20, lambda _: 10) == []


def test_what_an_attempt_uses_stays_until_the_attempt_has_ended_or_is_gone(shelf: Shelf, tmp_path: Path) -> None:
    for key in ("a", "b"):
        put(shelf, key, 1)
    first, second = attempt_of(tmp_path, "j.0.1"), attempt_of(tmp_path, "j.0.2")
    shelf.use("a", first)
    shelf.use("b", second)
    shelf.use("b", second)
    assert shelf.evict(0, lambda _: 10) == []
    (first / "exit.json").touch()  # nobody released it: its worker was killed
    second.rename(tmp_path / "discarded")
    assert sorted(shelf.evict(0, lambda _: 10)) == ["a", "b"]


def test_a_released_environment_may_go(shelf: Shelf, tmp_path: Path) -> None:
    put(shelf, "a", 1)
    shelf.use("a", attempt_of(tmp_path, "j.0.1"))
    shelf.release("another")
    assert shelf.in_use("a")
    shelf.release("j.0.1")
    assert shelf.evict(0, lambda _: 10) == ["a"]
    assert kept(shelf) == set()


async def test_what_is_being_made_is_left_alone_and_what_a_crash_left_is_not(shelf: Shelf) -> None:
    half = shelf.new("crashed")
    (half / "venv").mkdir(parents=True)
    async with shelf.locked("busy"):
        working = shelf.new("busy")
        working.mkdir()
        shelf.evict(0, lambda _: 10)
        assert working.exists()
        assert not half.exists()
    shelf.clear("busy")
    assert not working.exists()


async def test_only_one_at_a_time_holds_a_key(shelf: Shelf) -> None:
    waited: list[str] = []
    async with shelf.locked("k"):
        second = asyncio.create_task(_hold(shelf, waited))
        while not waited:
            await asyncio.sleep(0.001)
        assert waited == ["waits"]
    await second
    assert waited == ["waits", "held"]


async def _hold(shelf: Shelf, said: list[str]) -> None:
    async with shelf.locked("k", lambda: said.append("waits")):
        said.append("held")
