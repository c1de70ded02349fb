"""The database file: made whole or not at all, and opened only when it is ours, sound and not newer.

What is refused is left byte for byte as it was: everything is checked before anything could be written.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from fluster.cluster.controller.store import sql
from fluster.cluster.controller.store.errors import StoreBusy, StoreError, StoreFailed, StoreFull, StoreRefused

CHECK_LIMIT_S = 1.0
"""How long the check for damage may take. It is done with some 300 MB then; what lies behind is checked when read."""
BUSY_TIMEOUT_MS = 2000
_CACHE_KIB = 16 * 1024
_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_RESTORE = "restore it from a backup, or move it away to start with an empty one"


def open_writer(path: Path) -> apsw.Connection:
    """The one connection that writes; the database is made if there is none.

    Raises:
        StoreRefused: It is newer, foreign or damaged.
        StoreFailed: It cannot be read or written.
    """
    with _as_store_errors(path):
        if not path.exists():
            _create(path)
        _check(path)
        db = apsw.Connection(os.fspath(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            _settle(db)
            _migrate(db)
        except BaseException:
            db.close()
            raise
        return db


def open_reader(path: Path) -> apsw.Connection:
    """A connection for reads beside the writer: they do not wait for each other."""
    with _as_store_errors(path):
        db = apsw.Connection(os.fspath(path), flags=apsw.SQLITE_OPEN_READONLY)
        db.set_busy_timeout(BUSY_TIMEOUT_MS)
        db.pragma("cache_size", -_CACHE_KIB)
        db.pragma("temp_store", "memory")
        return db


def wal_of(path: Path) -> Path:
    """The write-ahead log beside a database."""
    return path.with_name(f"{path.name}-wal")


def _create(path: Path) -> None:
    """Built under another name and renamed: a database that is there is complete, an empty file is none of ours."""
    if wal_of(path).exists() and wal_of(path).stat().st_size:
        raise StoreRefused(
            path, "is missing while its write-ahead log is there", _RESTORE.replace("it away", "that away")
        )
    new = path.with_name(f"{path.name}.new")
    for leftover in (new, wal_of(new), new.with_name(f"{new.name}-shm")):
        leftover.unlink(missing_ok=True)
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    db = apsw.Connection(os.fspath(new), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        _settle(db)
        db.pragma("application_id", sql.APPLICATION_ID)
        _migrate(db)
    finally:
        db.close()  # the last connection brings all of the log into the file and removes the log
    wal_of(path).unlink(missing_ok=True)
    os.rename(new, path)
    _sync(path)
    _sync(path.parent)


def _settle(db: apsw.Connection) -> None:
    """Settings of the connection that writes."""
    db.set_busy_timeout(BUSY_TIMEOUT_MS)
    db.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    db.pragma("trusted_schema", False)
    db.pragma("cache_size", -_CACHE_KIB)
    db.pragma("temp_store", "memory")
    db.pragma("journal_mode", "wal")
    # NORMAL loses acknowledged commits on a power cut: it syncs the log only at checkpoints.
    db.pragma("synchronous", "full")
    # The writer checkpoints itself, at a commit that finds the log over 1,000 pages (4 MiB, some 10 ms): with nobody
    # else doing it no checkpoint can race a commit, and the log stays small enough to open quickly.
    db.wal_autocheckpoint(1000)
    # Log pages that an earlier process could not sync look clean to the kernel and may never reach the disk. Copying
    # all of them into the database and syncing that makes what was read here durable before anything builds on it.
    if db.execute("PRAGMA wal_checkpoint(TRUNCATE)").get[0]:
        raise StoreBusy("another program keeps the database open for reading; close it and start again")


def _migrate(db: apsw.Connection) -> None:
    for version in range(int(db.pragma("user_version")), sql.SCHEMA_VERSION):
        with db:
            db.execute(sql.MIGRATIONS[version])
            db.pragma("user_version", version + 1)


def _check(path: Path) -> None:
    """Raises StoreRefused unless the file is a sound database of this version or an older one."""
    wal = wal_of(path)
    has_wal = wal.exists() and wal.stat().st_size > 0
    _check_header(path, has_wal=has_wal)
    with _untouched(path, has_wal=has_wal) as db:
        try:
            _check_version(path, int(db.pragma("user_version")))
            if damage := _find_damage(db):
                raise StoreRefused(path, f"is damaged ({damage})", _RESTORE)
        except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError) as error:
            raise StoreRefused(path, f"is damaged ({error})", _RESTORE) from error


def _check_header(path: Path, *, has_wal: bool) -> None:
    with open(path, "rb") as file:
        header, size = file.read(_HEADER_BYTES), os.fstat(file.fileno()).st_size
    if size == 0:
        raise StoreRefused(path, "is empty (0 bytes)", _RESTORE)
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise StoreRefused(path, "is not a database", _RESTORE)
    page_size, changes, pages, version, valid_for, application_id = (
        struct.unpack_from(form, header, offset)[0]
        for form, offset in ((">H", 16), (">I", 24), (">I", 28), (">i", 60), (">I", 92), (">I", 68))
    )
    if application_id != sql.APPLICATION_ID:
        raise StoreRefused(path, "is a database of another program", "choose another state directory")
    _check_version(path, version)
    expected = pages * (65536 if page_size == 1 else page_size)
    # While a log is there the file may be behind what its header says; the check for damage reads both.
    if not has_wal and changes == valid_for and size < expected:
        raise StoreRefused(path, f"is cut off ({size} of {expected} bytes)", _RESTORE)


def _check_version(path: Path, version: int) -> None:
    if version > sql.SCHEMA_VERSION:
        raise StoreRefused(
            path,
            f"was written by a newer Fluster (its schema is version {version}, this one knows {sql.SCHEMA_VERSION})",
            "use that one",
        )
    if version < 1:
        raise StoreRefused(path, f"has no schema version of Fluster's ({version})", _RESTORE)


@contextmanager
def _untouched(path: Path, *, has_wal: bool) -> Iterator[apsw.Connection]:
    """A connection through which nothing can be written, not even by opening and closing it."""
    if has_wal:
        # Exclusive mode keeps the log's index in memory instead of in a file; the log itself is only read.
        db = apsw.Connection(os.fspath(path), flags=apsw.SQLITE_OPEN_READWRITE)
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        db.pragma("locking_mode", "exclusive")
        db.pragma("query_only", True)
    else:
        uri = f"{path.absolute().as_uri()}?immutable=1"
        db = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    try:
        yield db
    finally:
        db.close()


def _find_damage(db: apsw.Connection) -> str:
    """The first damage found within the time limit; empty if none was."""
    deadline = time.monotonic() + CHECK_LIMIT_S
    db.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
    try:
        found = str(db.execute("PRAGMA quick_check(1)").get)
    except apsw.InterruptError:
        return ""
    finally:
        db.set_progress_handler(None)
    return "" if found == "ok" else " ".join(found.split())


@contextmanager
def _as_store_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except apsw.BusyError as error:
        raise StoreBusy(f"another program holds {path} locked; close it and start again") from error
    except apsw.FullError as error:
        raise StoreFull(f"no space left to open {path}; free some and start again") from error
    except (apsw.Error, OSError) as error:
        raise StoreFailed(f"cannot open {path}: {error}; check the disk, its free space and the permissions") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
