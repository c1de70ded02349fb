"""Full disks, failing syncs and power cuts lose nothing that was acknowledged."""

from __future__ import annotations

import os
import random
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import pytest

from fluster.cluster.controller.core.rows import Changes, JournalRow
from fluster.cluster.controller.store import Store, StoreFailed, StoreFull

POWER_CUTS = int(os.environ.get("POWER_CUTS", "300"))
SECTOR = 512


def line(text: str) -> Changes:
    return Changes(journal=[JournalRow(1.0, "JobLaunched", "admin", message=text)])


@dataclass
class Disk:
    """What is done to the files of a directory, in order, and what of it shall fail.

    Attributes:
        steps: ("write", name, offset, bytes), ("truncate", name, size), ("delete", name), ("sync", name), ("mark", n).
        fail: Names of the operations that fail from now on.
    """

    steps: list[tuple[Any, ...]] = field(default_factory=list)
    fail: set[str] = field(default_factory=set)


class DiskVFS(apsw.VFS):
    """The system's files, watched and broken on demand."""

    def __init__(self, name: str, disk: Disk) -> None:
        self.disk = disk
        super().__init__(name, base="unix", makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return DiskFile(name, flags, self.disk)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        super().xDelete(filename, syncdir)
        self.disk.steps.append(("delete", os.path.basename(filename)))


class DiskFile(apsw.VFSFile):
    def __init__(self, name: Any, flags: list[int], disk: Disk) -> None:
        self.disk = disk
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self.name = os.path.basename(path) if path else ""
        super().__init__("unix", name, flags)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        if "write" in self.disk.fail:
            raise apsw.FullError("no space left on device")
        super().xWrite(data, offset)
        self.disk.steps.append(("write", self.name, offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        super().xTruncate(newsize)
        self.disk.steps.append(("truncate", self.name, newsize))

    def xSync(self, flags: int) -> None:  # noqa: N802
        if "sync" in self.disk.fail:
            raise apsw.IOError("fsync: input/output error")
        super().xSync(flags)
        self.disk.steps.append(("sync", self.name))


@pytest.fixture
def disk() -> Iterator[Disk]:
    made = Disk()
    vfs = DiskVFS(f"disk-{id(made)}", made)
    yield made
    vfs.unregister()


def test_a_full_disk_refuses_the_commit_and_the_next_one_may_succeed(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "fluster.db"
    with Store.open(path) as store:
        store.commit(line("before"))
        disk.fail.add("write")
        for _ in range(3):
            with pytest.raises(StoreFull, match="no space left"):
                store.commit(line("full"))
            assert [row.message for _, row in store.journal()] == ["before"]
        disk.fail.clear()
        assert store.commit(line("after")) == [2]
    with Store.open(path) as store:
        assert [row.message for _, row in store.journal()] == ["before", "after"]


def test_a_full_database_refuses_large_commits_and_keeps_what_it_has(tmp_path: Path) -> None:
    with Store.open(tmp_path / "fluster.db") as store:
        store._writer.pragma("max_page_count", 60)
        with pytest.raises(StoreFull):
            store.commit(line("x" * 500_000))
        assert store.commit(line("small")) == [1]
        assert len(store.journal()) == 1


def test_after_a_failed_sync_the_store_is_closed(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "fluster.db"
    with Store.open(path) as store:
        store.commit(line("kept"))
        disk.fail.add("sync")
        with pytest.raises(StoreFailed, match="failed and was closed"):
            store.commit(line("unknown"))
        disk.fail.clear()
        with pytest.raises(StoreFailed, match="is closed"):
            store.commit(line("never"))
        with pytest.raises(StoreFailed, match="is closed"):
            store.journal()
    with Store.open(path) as store:
        assert [row.message for _, row in store.journal()][:1] == ["kept"]


def test_opening_writes_and_syncs_again_what_the_log_holds(tmp_path: Path, disk: Disk) -> None:
    """The log may be in the kernel's cache only, its sync having failed in the process before."""
    path = tmp_path / "fluster.db"
    with Store.open(path) as store:
        store.commit(line("kept"))
        disk.fail.add("sync")
        with pytest.raises(StoreFailed):
            store.commit(line("unknown"))
        disk.fail.clear()
    disk.steps.clear()
    with Store.open(path) as store:
        opened = [step[:2] for step in disk.steps]
        assert store.journal_tail() == 2
        last_write = len(opened) - 1 - opened[::-1].index(("write", "fluster.db"))
        assert ("sync", "fluster.db") in opened[last_write:]


def test_a_failing_sync_at_the_start_is_said_and_nothing_is_left_open(tmp_path: Path, disk: Disk) -> None:
    disk.fail.add("sync")
    with pytest.raises(StoreFailed, match="cannot open"):
        Store.open(tmp_path / "fluster.db")
    disk.fail.clear()
    with Store.open(tmp_path / "fluster.db") as store:
        assert store.begin_epoch() == 1


@pytest.mark.timeout(60 + POWER_CUTS // 10)
def test_a_power_cut_loses_nothing_that_was_acknowledged(tmp_path: Path, disk: Disk) -> None:
    """Cuts the power after every kind of step; what was not synced is dropped, kept or torn, sector by sector."""
    rng = random.Random(20)
    path = tmp_path / "live" / "fluster.db"
    path.parent.mkdir()
    with Store.open(path) as store:
        store._writer.wal_autocheckpoint(20)  # many checkpoints in a short run
        first = len(disk.steps)
        for n in range(150):
            store.commit(line(f"{n} " + "x" * rng.randrange(4000)))
            disk.steps.append(("mark", n + 1))
    steps = list(disk.steps)
    disk.steps.clear()
    for cut in range(POWER_CUTS):
        state = tmp_path / f"cut{cut}"
        state.mkdir()
        acknowledged = _cut_power(state, steps[: rng.randrange(first, len(steps) + 1)], rng)
        with Store.open(state / "fluster.db") as store:
            found = [int(row.message.split()[0]) for _, row in store.journal(limit=1000)]
            assert found == list(range(len(found)))
            assert len(found) in (acknowledged, acknowledged + 1)
            assert store.commit(line("and on")) == [len(found) + 1]
        shutil.rmtree(state)


def _cut_power(state: Path, steps: list[tuple[Any, ...]], rng: random.Random) -> int:
    """Writes the files as the cut left them; returns how many commits had been acknowledged.

    The database was renamed into its place before the first of the steps that are cut: its old name means it.
    """
    acknowledged = 0
    pending: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    files: dict[str, bytearray] = defaultdict(bytearray)
    for step in steps:
        match step:
            case ("mark", n):
                acknowledged = n
            case ("sync", name):
                _apply(files, pending.pop(_final(name), []))
            case ("delete", name):
                pending.pop(_final(name), None)
                files.pop(_final(name), None)
            case (_, name, *_):
                pending[_final(name)].append(step)
    for unsynced in pending.values():
        _apply(files, _torn(unsynced, rng))
    for name, content in files.items():
        if not name.endswith("-shm"):
            (state / name).write_bytes(content)
    return acknowledged


def _final(name: str) -> str:
    return name.replace("fluster.db.new", "fluster.db")


def _torn(steps: list[tuple[Any, ...]], rng: random.Random) -> Iterator[tuple[Any, ...]]:
    """Each sector of each write that was not synced is on the disk or not, in no order."""
    keep = rng.choice([0.0, 0.5, 0.9, 1.0])
    for step in steps:
        if step[0] == "write":
            _, name, offset, content = step
            for start in range(0, len(content), SECTOR):
                if rng.random() < keep:
                    yield ("write", name, offset + start, content[start : start + SECTOR])
        elif rng.random() < keep:
            yield step


def _apply(files: dict[str, bytearray], steps: Any) -> None:
    for step in steps:
        content = files[_final(step[1])]
        if step[0] == "truncate":
            del content[step[2] :]
        else:
            _, _, offset, written = step
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(written)] = written
