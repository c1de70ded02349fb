"""The store on SQLite: one connection writes, one reads; a commit is synced when it returns."""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self, TypeVar

import apsw

from fluster.cluster.controller.core.rows import (
    AllocationRow,
    AttemptRow,
    Changes,
    EndpointRow,
    JobRow,
    JournalRow,
    RequestRow,
    ResultRow,
    TaskRow,
    TokenRow,
    UserRow,
    WorkerRow,
)
from fluster.cluster.controller.store import columns, dbfile, sql
from fluster.cluster.controller.store.columns import Table
from fluster.cluster.controller.store.errors import StoreBusy, StoreFailed, StoreFull
from fluster.cluster.ids import AttemptUid, JobId, Namespace
from fluster.cluster.states import JobStatus
from fluster.cluster.validation import MAX_TASKS

R = TypeVar("R")

# What these say is wrong with the statement or the values, not with the disk: a bug of ours, and it stays one.
_BUGS = (apsw.ConstraintError, apsw.MismatchError, apsw.RangeError, apsw.BindingsError, apsw.SQLError, apsw.TooBigError)
# Of one transaction: some 10 ms in which no commit can run.
_PRUNED_ROWS = 500
_PRUNED_JOBS = 50
_SPECS_AT_ONCE = 1000
# As a protobuf message holds it: a length byte (64 is "@"), then the digits. What follows may be a digit by chance.
_HASH = re.compile(rb"@([0-9a-f]{64})")


class JobCursor(NamedTuple):
    """Where a page of jobs ends: the last job's time and id."""

    submitted_at: float
    job_id: JobId


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is not finished: all that the controller keeps in memory.

    Attributes:
        jobs: Without an outcome, oldest first.
        tasks, attempts: All of those jobs', by job and index; ended attempts too.
        workers: Not gone, and the gone ones whose join token is still there: its uses are counted from them.
    """

    jobs: list[JobRow]
    tasks: list[TaskRow]
    attempts: list[AttemptRow]
    workers: list[WorkerRow]
    allocations: list[AllocationRow]
    endpoints: list[EndpointRow]
    tokens: list[TokenRow]
    users: list[UserRow]


class Store:
    """The rows of the controller on disk.

    Reads may come from any thread and see what is committed; they run beside a commit, one at a time. Writes may too,
    but are meant for one thread: a write waits until the one before it is synced.

    After a `StoreFailed` the store is closed. What a failed sync left behind may or may not be on the disk, and the
    kernel will not say it a second time; opening it again finds out and makes durable what it finds.
    """

    def __init__(self, path: Path, writer: apsw.Connection, reader: apsw.Connection) -> None:
        self.path = path
        self._writer = writer
        self._reader = reader
        self._write_lock = threading.RLock()
        self._read_lock = threading.Lock()
        self._seq = int(reader.execute(sql.JOURNAL_TAIL).get)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens the database, makes it if there is none, brings an older one up to date.

        Raises:
            StoreRefused: It is newer, foreign or damaged; it was not touched.
            StoreBusy: Another program holds it.
            StoreFailed: It cannot be read or written.
        """
        writer = dbfile.open_writer(path)
        try:
            return cls(path, writer, dbfile.open_reader(path))
        except BaseException:
            writer.close()
            raise

    def close(self) -> None:
        """Closes the database; repeating is harmless."""
        with self._read_lock:
            _close(self._reader)
        with self._write_lock:
            _close(self._writer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Writing. Raises of each: StoreFull and StoreBusy (nothing was kept, the store goes on), StoreFailed (closed).

    def begin_epoch(self) -> int:
        """Counts the controller's starts: the number of this one, from 1, durable."""
        with self._transaction() as db:
            return int(db.execute(sql.NEXT_EPOCH).get)

    def commit(self, changes: Changes) -> list[int]:
        """Writes all of one turn or nothing; durable when it returns.

        Returns:
            The sequence numbers of `changes.journal`.
        """
        grouped: dict[type, list[Any]] = defaultdict(list)
        for row in changes.rows.values():
            grouped[type(row)].append(row)
        with self._transaction() as db:
            for kind, rows in grouped.items():
                table = columns.UPSERTED[kind]
                db.executemany(table.upsert, map(table.encode, rows))
            if changes.deleted_endpoints:
                db.executemany(sql.DELETE_ENDPOINT, [(key,) for key in changes.deleted_endpoints])
            if changes.deleted_tokens:
                db.executemany(sql.DELETE_TOKEN, [(key,) for key in changes.deleted_tokens])
            seqs = list(range(self._seq + 1, self._seq + 1 + len(changes.journal)))
            if seqs:
                lines = zip(seqs, map(columns.JOURNAL.encode, changes.journal), strict=True)
                db.executemany(_ADD_JOURNAL, ((seq, *line) for seq, line in lines))
        self._seq += len(seqs)
        return seqs

    def prune(self, before: float, keep_jobs: int) -> list[JobId]:
        """Removes a bounded part of the finished jobs that ended before `before` or are more than `keep_jobs`.

        With a job goes all that is its own; with `before` go answered requests and journal lines without a job, and
        what is known of workers and allocations that are gone. To be called until it returns nothing.

        Returns:
            The jobs it removed, so that their logs can be removed too.
        """
        removed: list[JobId] = []
        with self._transaction() as db:
            start = db.total_changes()
            db.execute(sql.KEEP_JOURNAL_SEQ, (self._seq,))
            excess = int(db.execute(sql.FINISHED_COUNT).get) - keep_jobs
            oldest: list[Any] = db.execute(sql.OLDEST_FINISHED, (_PRUNED_JOBS,)).fetchall()
            for n, (job_id, finished_at) in enumerate(oldest):
                if (finished_at >= before and n >= excess) or db.total_changes() - start > _PRUNED_ROWS:
                    break
                for statement in sql.DELETE_JOB:
                    db.execute(statement, (job_id,))
                removed.append(JobId(job_id))
            for statement in sql.DELETE_OLD:
                db.execute(statement, {"before": before, "limit": _PRUNED_ROWS})
        return removed

    def prune_refused(self, before: float, keep: int) -> int:
        """Removes a bounded part of the refused requests from before `before` or beyond the newest `keep`.

        Returns:
            How many: to be called until it is none.
        """
        with self._transaction() as db:
            start = db.total_changes()
            db.execute(sql.KEEP_JOURNAL_SEQ, (self._seq,))
            kept = db.total_changes() - start
            db.execute(sql.DELETE_REFUSED, {"before": before, "keep": keep, "limit": _PRUNED_ROWS})
            return db.total_changes() - start - kept

    # Reading.

    def load(self) -> Loaded:
        """Everything that is not finished, however long the history is."""
        return Loaded(
            self._rows(columns.JOBS, _UNFINISHED_JOBS),
            self._rows(columns.TASKS, _UNFINISHED_TASKS),
            self._rows(columns.ATTEMPTS, _UNFINISHED_ATTEMPTS),
            self._rows(columns.WORKERS, _WORKERS),
            self._rows(columns.ALLOCATIONS, _ALLOCATIONS),
            self._rows(columns.ENDPOINTS, _ENDPOINTS),
            self._rows(columns.TOKENS, _TOKENS),
            self._rows(columns.USERS, _USERS),
        )

    def spec(self, job_id: JobId) -> bytes | None:
        """The job's JobSpec message as it was launched; None if there is no such job."""
        found = self._read(sql.SPEC, (job_id,))
        return bytes(found[0][0]) if found else None

    def result(self, uid: AttemptUid) -> ResultRow | None:
        """What the attempt's entrypoint gave."""
        return self._row(columns.RESULTS, _RESULT, (uid,))

    def request(self, caller: str, request_id: str) -> RequestRow | None:
        """What this caller's request was answered."""
        return self._row(columns.REQUESTS, _REQUEST, (caller, request_id))

    def job(self, job_id: JobId) -> JobRow | None:
        """The job, finished or not."""
        return self._row(columns.JOBS, _JOB, (job_id,))

    def tasks(self, job_id: JobId, task: int | None = None) -> list[TaskRow]:
        """Its tasks, by index; of `task` alone if it is given."""
        return self._rows(columns.TASKS, _TASKS, _of_task(job_id, task))

    def attempts(self, job_id: JobId, task: int | None = None) -> list[AttemptRow]:
        """Its attempts, by task and number; of `task` alone if it is given."""
        return self._rows(columns.ATTEMPTS, _ATTEMPTS, _of_task(job_id, task))

    def started_at(self, job_id: JobId) -> float | None:
        """When the first of its tasks' latest attempts started; None when none did."""
        found: float | None = self._read(sql.STARTED_AT, (job_id,))[0][0]
        return found

    def list_jobs(
        self,
        *,
        namespace: Namespace | None = None,
        status: JobStatus | None = None,
        finished: bool = False,
        name_prefix: str = "",
        name: str = "",
        before: JobCursor | None = None,
        limit: int = 100,
    ) -> list[JobRow]:
        """A page of jobs, newest first.

        Args:
            namespace: None: all.
            status: One that is final; None: any.
            finished: Without the unfinished ones.
            name_prefix: What the name starts with.
            name: The whole name; empty: any.
            before: Of the last job of the page before.
            limit: Of the page.
        """
        if status is not None and not status.finished():
            raise ValueError(f"{status} is not final and not stored: it is derived from the tasks of unfinished jobs")
        given: dict[str, Any] = {
            "namespace": namespace,
            "outcome": status,
            "finished": True if finished and status is None else None,
            "name": name or None,
            "name_from": name_prefix or None,
            # No name holds this character: everything that starts with the prefix sorts before it.
            "name_to": f"{name_prefix}\U0010ffff" if name_prefix else None,
            "before_id": before.job_id if before else None,
        }
        conditions = [text for parameter, text in sql.JOBS_WHERE.items() if given[parameter] is not None]
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        statement = columns.JOBS.select(f"{sql.JOBS_FROM} {where} {sql.JOBS_PAGE}")
        given |= {"before_at": before.submitted_at if before else None, "limit": limit}
        return self._rows(columns.JOBS, statement, given)

    def journal(
        self,
        *,
        job_id: JobId | None = None,
        after_seq: int = 0,
        limit: int = 100,
        asked: bool = False,
        refused: bool = True,
        actor: str | None = None,
        user: str | None = None,
        newest: bool = False,
    ) -> list[tuple[int, JournalRow]]:
        """Lines of history after `after_seq`, oldest first, with their numbers.

        Args:
            job_id: None: of everything.
            after_seq: Number of the last line seen.
            limit: At most so many.
            asked: Only what somebody asked for.
            refused: With the requests that were refused.
            actor: Only what this one caused.
            user: Only what this user or the user's jobs caused.
            newest: The last `limit` lines instead of the first.
        """
        given = {
            "job_id": job_id,
            "asked": asked or None,
            "not_refused": None if refused else True,
            "actor": actor,
            "user": user,
        }
        conditions = [text for parameter, text in sql.JOURNAL_AND.items() if given[parameter] is not None]
        statement = " ".join((sql.JOURNAL_FROM, *conditions, sql.JOURNAL_PAGE[newest]))
        found = self._read(columns.JOURNAL.select(statement), {**given, "after_seq": after_seq, "limit": limit})
        lines = [(seq, columns.JOURNAL.decode(values)) for seq, *values in found]
        return lines[::-1] if newest else lines

    def last_at(self) -> float:
        """When the newest line was written; 0 when there is none."""
        found = self._read(sql.JOURNAL_LAST_AT)
        return float(found[0][0]) if found else 0.0

    def journal_tail(self) -> int:
        """The number of the newest line; 0 when there is none."""
        return self._seq

    def referenced_blobs(self) -> set[str]:
        """Hashes that any job or result may mean. For sweeping blobs: reads every spec, so give it a thread.

        Specs are opaque here: every string in one that looks like a hash counts. That may keep a blob too long, and
        never drops one that is meant.
        """
        hashes = {blob for (blob,) in self._read(sql.RESULT_BLOBS)}
        rowid = -1
        while page := self._read(sql.ALL_SPECS, (rowid, _SPECS_AT_ONCE)):
            for rowid, spec in page:  # noqa: B007 - the last one is where the next page starts
                hashes.update(match.decode() for match in _HASH.findall(spec))
        return hashes

    def _rows(self, table: Table[R], statement: str, values: Any = ()) -> list[R]:
        return list(map(table.decode, self._read(statement, values)))

    def _row(self, table: Table[R], statement: str, values: Any) -> R | None:
        return next(iter(self._rows(table, statement, values)), None)

    def _read(self, statement: str, values: Any = ()) -> list[tuple[Any, ...]]:
        try:
            with self._read_lock:
                return self._reader.execute(statement, values).fetchall()
        except apsw.Error as error:
            self._fail(error)

    @contextmanager
    def _transaction(self) -> Iterator[apsw.Connection]:
        with self._write_lock:
            db = self._writer
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            except apsw.Error as error:
                self._roll_back()
                self._fail(error)
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        try:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        except apsw.ConnectionClosedError:
            pass
        except apsw.Error as error:
            self._give_up(error)

    def _fail(self, error: apsw.Error) -> NoReturn:
        match error:
            case apsw.FullError():
                raise StoreFull(f"no space left for {self.path}; free some, nothing was changed") from error
            case apsw.BusyError() | apsw.LockedError():
                raise StoreBusy(f"another program holds {self.path} locked; nothing was changed") from error
            case apsw.ConnectionClosedError():
                raise StoreFailed(f"{self.path} is closed") from error
            case _ if isinstance(error, _BUGS):
                raise error
        self._give_up(error)

    def _give_up(self, error: apsw.Error) -> NoReturn:
        self.close()
        raise StoreFailed(f"{self.path} failed and was closed: {error}; check the disk and start again") from error


def _of_task(job_id: JobId, task: int | None) -> dict[str, Any]:
    return {"job_id": job_id, "first": 0 if task is None else task, "last": MAX_TASKS if task is None else task}


def _close(db: apsw.Connection) -> None:
    try:
        db.close()
    except apsw.Error:
        db.close(True)  # a checkpoint that fails on the way out loses nothing: the log stays


_ADD_JOURNAL = columns.JOURNAL.select(sql.ADD_JOURNAL)
_UNFINISHED_JOBS = columns.JOBS.select(sql.UNFINISHED_JOBS)
_UNFINISHED_TASKS = columns.TASKS.select(sql.UNFINISHED_TASKS, "t.")
_UNFINISHED_ATTEMPTS = columns.ATTEMPTS.select(sql.UNFINISHED_ATTEMPTS, "t.")
_WORKERS = columns.WORKERS.select(sql.WORKERS)
_ALLOCATIONS = columns.ALLOCATIONS.select(sql.ALLOCATIONS)
_ENDPOINTS = columns.ENDPOINTS.select(sql.ENDPOINTS)
_TOKENS = columns.TOKENS.select(sql.TOKENS)
_USERS = columns.USERS.select(sql.USERS)
_RESULT = columns.RESULTS.select(sql.RESULT)
_REQUEST = columns.REQUESTS.select(sql.REQUEST)
_JOB = columns.JOBS.select(sql.JOB)
_TASKS = columns.TASKS.select(sql.TASKS)
_ATTEMPTS = columns.ATTEMPTS.select(sql.ATTEMPTS)
