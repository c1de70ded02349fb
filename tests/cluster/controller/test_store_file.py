"""The database file: ours, sound and not newer, or refused and left as it was."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from fluster.cluster.controller.core.rows import Changes, JournalRow
from fluster.cluster.controller.store import Store, StoreBusy, StoreFailed, StoreRefused, dbfile, sql
from fluster.cluster.ids import JobId


def line(text: str) -> Changes:
    return Changes(journal=[JournalRow(1.0, "JobLaunched", "admin", message=text)])


def made(directory: Path, lines: int = 200) -> Path:
    """A database of several pages, closed."""
    path = directory / "fluster.db"
    with Store.open(path) as store:
        for n in range(lines):
            store.commit(line(f"{n} " + "x" * 200))
    return path


def crashed(directory: Path) -> Path:
    """A database as a killed controller leaves it: part of it in the write-ahead log."""
    directory.mkdir()
    live = directory.with_name(f"{directory.name}-live")
    live.mkdir()
    with Store.open(live / "fluster.db") as store:
        for n in range(20):
            store.commit(line(f"{n} " + "x" * 200))
        for name in ("fluster.db", "fluster.db-wal"):
            shutil.copy(live / name, directory / name)
    return directory / "fluster.db"


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def statement(text: str) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        db = apsw.Connection(str(path))
        db.execute(text)
        db.close()

    return run


def overwrite(content: bytes) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(content))


def cut(keep: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, int(path.stat().st_size * keep))


def scribble(path: Path) -> None:
    """Garbage in the middle: the header stays right."""
    with open(path, "r+b") as file:
        for page in range(3, path.stat().st_size // 4096 - 1):
            file.seek(page * 4096)
            file.write(os.urandom(4096))


def void(_: object) -> None:
    return None


HARMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "newer": (statement(f"PRAGMA user_version = {sql.SCHEMA_VERSION + 1}"), "newer Fluster"),
    "of another program": (statement("PRAGMA application_id = 1"), "another program"),
    "without a version": (statement("PRAGMA user_version = 0"), "no schema version"),
    "empty": (overwrite(b""), "is empty"),
    "short": (overwrite(b"SQLite format 3\0"), "not a database"),
    "garbage": (overwrite(b"\x00\xff garbage" * 5000), "not a database"),
    "cut in half": (cut(0.5), "cut off"),
    "cut by a byte": (cut(0.9999), "cut off"),
    "scribbled over": (scribble, "damaged"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_database_that_cannot_be_trusted_is_refused_and_left_as_it_was(tmp_path: Path, harm: str) -> None:
    path = made(tmp_path)
    do_harm, why = HARMS[harm]
    do_harm(path)
    before = contents(tmp_path)
    with pytest.raises(StoreRefused, match=why) as refused:
        Store.open(path)
    assert str(path) in str(refused.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("harm", ["newer", "scribbled over"])
def test_it_is_left_as_it_was_with_its_log_too(tmp_path: Path, harm: str) -> None:
    directory = tmp_path / "state"
    if harm == "newer":
        path = crashed(directory)
        # The newer version is in the log only: the header of the file does not know it yet.
        db = apsw.Connection(str(path))
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        db.execute(f"PRAGMA user_version = {sql.SCHEMA_VERSION + 1}")
        db.close()
    else:
        path = crashed(directory)
        # The log's copies of these pages are gone with their checkpoint, those of the file are garbage.
        db = apsw.Connection(str(path))
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("UPDATE meta SET value = value + 1")
        db.close()
        scribble(path)
    assert dbfile.wal_of(path).stat().st_size > 0
    (directory / "fluster.db-shm").unlink(missing_ok=True)
    before = contents(directory)
    with pytest.raises(StoreRefused, match="newer Fluster" if harm == "newer" else "damaged"):
        Store.open(path)
    assert contents(directory) == before


def test_what_a_killed_controller_committed_is_there(tmp_path: Path) -> None:
    with Store.open(crashed(tmp_path / "state")) as store:
        assert len(store.journal(limit=1000)) == 20


def test_a_log_without_its_database_is_not_taken_for_a_fresh_start(tmp_path: Path) -> None:
    path = crashed(tmp_path / "state")
    path.unlink()
    with pytest.raises(StoreRefused, match="is missing while its write-ahead log is there"):
        Store.open(path)
    assert dbfile.wal_of(path).exists()


def test_a_start_that_was_cut_off_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "fluster.db"
    made(tmp_path).rename(tmp_path / "fluster.db.new")
    os.truncate(tmp_path / "fluster.db.new", 5000)
    with Store.open(path) as store:
        assert store.journal() == []
    assert sorted(contents(tmp_path)) == ["fluster.db"]


def test_the_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    with Store.open(tmp_path / "fluster.db") as store:
        store.commit(line("a"))
        assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def test_an_older_database_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path, lines=2)
    monkeypatch.setattr(sql, "MIGRATIONS", (*sql.MIGRATIONS, "CREATE TABLE extra (id INTEGER PRIMARY KEY);"))
    monkeypatch.setattr(sql, "SCHEMA_VERSION", sql.SCHEMA_VERSION + 1)
    with Store.open(path) as store:
        assert len(store.journal()) == 2
        assert store._read("SELECT count(*) FROM extra") == [(0,)]


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path, lines=2)
    with monkeypatch.context() as patch:
        patch.setattr(sql, "MIGRATIONS", (*sql.MIGRATIONS, "CREATE TABLE extra (id); CREATE TABLE jobs (id);"))
        patch.setattr(sql, "SCHEMA_VERSION", sql.SCHEMA_VERSION + 1)
        with pytest.raises(StoreFailed, match="already exists"):
            Store.open(path)
    with Store.open(path) as store:
        assert store._read("SELECT name FROM sqlite_schema WHERE name = 'extra'") == []


def test_a_locked_database_is_named_and_can_be_used_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbfile, "BUSY_TIMEOUT_MS", 10)
    with Store.open(tmp_path / "fluster.db") as store:
        other = apsw.Connection(str(tmp_path / "fluster.db"))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusy, match="locked"):
            store.commit(line("a"))
        other.execute("ROLLBACK")
        other.close()
        assert store.commit(line("a")) == [1]


def test_the_check_for_damage_ends_in_time_on_a_large_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path, lines=2000)
    monkeypatch.setattr(dbfile, "CHECK_LIMIT_S", 0.0)
    with Store.open(path) as store:
        assert store.journal_tail() == 2000
        assert store.job(JobId("a")) is None


def test_a_database_of_before_users_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was launched then is the administrator's, and was asked for from nobody knows where."""
    path = tmp_path / "fluster.db"
    monkeypatch.setattr(sql, "MIGRATIONS", sql.MIGRATIONS[:1])
    monkeypatch.setattr(sql, "SCHEMA_VERSION", 1)
    Store.open(path).close()
    db = apsw.Connection(str(path))
    db.execute("""
        INSERT INTO jobs VALUES ('j1', 'old', 'default', 'admin', NULL, 0, 1, 1, 1,
          '{"cpu_milli":1000,"memory_bytes":1,"disk_bytes":0,"gpu":0,"slots":1,"gpu_variant":"","tpu_variant":""}', 0,
          '{"max_failures":0,"max_preemptions":100,"backoff_s":1.0,"max_backoff_s":60.0}', NULL, NULL, '[]', 1.0, NULL,
          NULL, '', NULL, NULL, -1, NULL, NULL, '');
        INSERT INTO tokens VALUES ('join-1', 'hash', 2, 9.0, 1.0);
        INSERT INTO journal VALUES (1, 1.0, 'JobLaunched', 'admin', 'j1', -1, 0, '', 'old: 1 task');
    """)
    db.close()
    monkeypatch.undo()

    with Store.open(path) as store:
        loaded = store.load()
        lines = store.journal()

    assert [(job.name, job.user) for job in loaded.jobs] == [("old", "")]
    assert [(token.token_id, token.uses, token.user) for token in loaded.tokens] == [("join-1", 2, "")]
    assert loaded.users == []
    assert [(line.kind, line.peer) for _, line in lines] == [("JobLaunched", "")]
