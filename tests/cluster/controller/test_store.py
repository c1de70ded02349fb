"""What is committed is there, in the right order, and only what should go goes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluster.cluster.controller.core.rows import (
    AllocationRow,
    AllocationStatus,
    AttemptRow,
    AttemptState,
    Changes,
    EndpointRow,
    JobRow,
    JournalRow,
    RequestRow,
    Resources,
    ResultRow,
    Retry,
    Row,
    SpecRow,
    TaskRow,
    TokenRow,
    WorkerRow,
)
from fluster.cluster.controller.store import JobCursor, Store, StoreFailed, columns
from fluster.cluster.ids import AllocationId, AttemptUid, EndpointId, JobId, Namespace, WorkerId
from fluster.cluster.states import JobStatus, WorkerStatus


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "fluster.db") as opened:
        yield opened


def changes(*rows: Row, journal: tuple[JournalRow, ...] = ()) -> Changes:
    made = Changes(journal=list(journal))
    for n, row in enumerate(rows):
        made.rows[type(row), n] = row
    return made


def job(job_id: str, at: float = 1.0, **fields: Any) -> JobRow:
    given = {"name": "train", "namespace": Namespace("default"), "owner": "admin", "parent": None} | fields
    return JobRow(
        job_id=JobId(job_id),
        depth=0,
        priority=1,
        num_tasks=1,
        gang=True,
        resources=Resources(cpu_milli=1000, memory_bytes=10**9),
        slice_hosts=0,
        retry=Retry(),
        timeout_s=None,
        scheduling_timeout_s=None,
        ports=("http",),
        submitted_at=at,
        **given,
    )


def finished(row: JobRow, at: float, outcome: JobStatus = JobStatus.SUCCEEDED) -> JobRow:
    return replace(row, outcome=outcome, finished_at=at)


def attempt(job_id: str, number: int = 1, state: AttemptState = AttemptState.RUNNING) -> AttemptRow:
    return AttemptRow(
        uid=AttemptUid(f"{job_id}-0-{number}"),
        job_id=JobId(job_id),
        task=0,
        number=number,
        worker_id=WorkerId("w1"),
        incarnation="i1",
        placed_at=1.0,
        state=state,
    )


def worker(worker_id: str, status: WorkerStatus = WorkerStatus.READY, joined_by: str = "") -> WorkerRow:
    return WorkerRow(
        worker_id=WorkerId(worker_id),
        credential_sha256="",
        incarnation="i1",
        address="",
        advertise_host="127.0.0.1",
        host_id="h",
        allocation_id=AllocationId(""),
        resources=Resources(),
        cgroup="none",
        joined_by=joined_by,
        registered_at=1.0,
        status=status,
    )


def allocation(allocation_id: str, status: AllocationStatus) -> AllocationRow:
    return AllocationRow(AllocationId(allocation_id), "local", Resources(), 1.0, status, ("h1", "h2"))


def endpoint(endpoint_id: str) -> EndpointRow:
    return EndpointRow(
        EndpointId(endpoint_id), "calc", Namespace("default"), "127.0.0.1:80", "admin", None, None, 1.0, (("a", "b"),)
    )


def token(token_id: str) -> TokenRow:
    return TokenRow(token_id, "0" * 64, 1, 600.0, 1.0)


def _values(hint: Any) -> st.SearchStrategy[Any]:
    """Anything a field may hold that SQLite could get wrong: extreme numbers, empty and strange text, None."""
    if hint is int:
        return st.integers(-(2**63), 2**63 - 1)
    if hint is float:
        return st.floats(allow_nan=False)
    if isinstance(hint, type) and hint in (Resources, Retry):
        return st.builds(hint, **{name: _values(of) for name, of in get_type_hints(hint).items()})
    if hint in (float | None, int | None):
        return st.none() | _values(float if hint == float | None else int)
    return st.from_type(hint)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.data())
@pytest.mark.parametrize("kind", columns.UPSERTED, ids=lambda kind: kind.__name__)
def test_a_row_comes_back_as_it_was_written(store: Store, kind: type[Any], rows: st.DataObject) -> None:
    table = columns.UPSERTED[kind]
    row = rows.draw(st.builds(kind, **{field: _values(hint) for field, hint in get_type_hints(kind).items()}))
    store._writer.execute(f"DELETE FROM {table.name}")
    store.commit(changes(row))
    where = " AND ".join(f'"{name}" = ?' for name in table.key)
    found = store._read(
        table.select(f"SELECT {{columns}} FROM {table.name} WHERE {where}"), [getattr(row, k) for k in table.key]
    )
    assert [table.decode(values) for values in found] == [row]


def test_a_row_written_again_takes_the_place_of_the_first(store: Store) -> None:
    first = job("a")
    store.commit(changes(first, attempt("a")))
    ended = replace(attempt("a"), state=AttemptState.FAILED, exit_code=3, error_message="exit code 3")
    store.commit(changes(finished(first, 9.0, JobStatus.FAILED), ended))
    assert store.job(JobId("a")) == finished(first, 9.0, JobStatus.FAILED)
    assert store.attempts(JobId("a")) == [ended]


@pytest.mark.parametrize("table", columns.UPSERTED.values(), ids=lambda table: table.name)
def test_every_field_but_key_and_fixed_ones_can_change(store: Store, table: columns.Table[Any]) -> None:
    """A column that an update forgot would keep what it was first written with."""
    never_changes = {*table.key, *table.fixed}
    assignments = table.upsert.partition("DO UPDATE SET ")[2]
    changed = {f.name for f in fields(table.row) if f'"{f.name}" = excluded' in assignments}
    assert changed == set(table.columns) - never_changes


def test_a_commit_is_all_or_nothing(store: Store) -> None:
    store.commit(changes(job("a"), journal=(JournalRow(1.0, "JobLaunched", "admin", "a"),)))
    broken = replace(job("b"), name=None)  # type: ignore[arg-type]
    with pytest.raises(apsw.ConstraintError):
        store.commit(changes(job("c"), broken, journal=(JournalRow(1.0, "JobLaunched", "admin", "c"),)))
    assert [row.job_id for row in store.list_jobs()] == ["a"]
    assert store.journal_tail() == 1
    assert store.commit(changes(job("d"), journal=(JournalRow(2.0, "JobLaunched", "admin", "d"),))) == [2]


def test_what_sql_would_read_as_a_command_is_stored_as_it_is(store: Store) -> None:
    name = "'; DROP TABLE jobs; --"
    store.commit(changes(job("a", name=name), job("b", name="50%_x")))
    assert [row.name for row in store.list_jobs(name=name)] == [name]
    assert store.list_jobs(name_prefix="50_") == []
    assert [row.job_id for row in store.list_jobs(name_prefix="50%")] == ["b"]


def test_endpoints_and_tokens_are_deleted_with_the_rest_of_the_turn(store: Store) -> None:
    store.commit(changes(endpoint("e1"), endpoint("e2"), token("t1"), token("t2")))
    turn = changes(job("a"))
    turn.deleted_endpoints, turn.deleted_tokens = [EndpointId("e1")], ["t2"]
    store.commit(turn)
    loaded = store.load()
    assert (loaded.endpoints, loaded.tokens) == ([endpoint("e2")], [token("t1")])


def test_epochs_rise_and_survive(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        with Store.open(tmp_path / "fluster.db") as store:
            assert store.begin_epoch() == epoch


def test_only_what_is_unfinished_is_loaded(store: Store) -> None:
    ended_attempt = attempt("a", 1, AttemptState.FAILED)
    store.commit(
        changes(
            job("b", 2.0),
            job("a", 1.0),
            TaskRow(JobId("a"), 0),
            TaskRow(JobId("b"), 0),
            ended_attempt,
            attempt("a", 2),
            worker("w1"),
            worker("w2", WorkerStatus.LOST),
            worker("w3", WorkerStatus.GONE),
            allocation("v1", AllocationStatus.RELEASING),
            allocation("v2", AllocationStatus.GONE),
        )
    )
    store.commit(changes(finished(job("c"), 5.0), TaskRow(JobId("c"), 0), attempt("c")))
    loaded = store.load()
    assert loaded.jobs == [job("a", 1.0), job("b", 2.0)]
    assert loaded.tasks == [TaskRow(JobId("a"), 0), TaskRow(JobId("b"), 0)]
    assert loaded.attempts == [ended_attempt, attempt("a", 2)]
    assert [row.worker_id for row in loaded.workers] == ["w1", "w2"]
    assert [row.allocation_id for row in loaded.allocations] == ["v1"]


def test_gone_workers_are_told_of_while_their_token_is_there(store: Store) -> None:
    joined = worker("w1", WorkerStatus.GONE, joined_by="t1")
    store.commit(changes(joined, worker("w2", WorkerStatus.GONE, joined_by="t0"), token("t1")))
    assert store.load().workers == [joined]
    assert store.prune(before=1000.0, keep_jobs=0) == []
    assert store.load().workers == [joined]


def test_specs_results_and_requests_are_found_by_their_keys(store: Store) -> None:
    request = RequestRow("admin", "r1", "launch", "0" * 64, "a", 1.0)
    result = ResultRow(AttemptUid("a-0-1"), b"\x00\xff", "", "0" * 64)
    store.commit(changes(SpecRow(JobId("a"), b"\x00spec"), request, result))
    assert store.spec(JobId("a")) == b"\x00spec"
    assert store.spec(JobId("b")) is None
    assert store.request("admin", "r1") == request
    assert store.request("job:a", "r1") is None
    assert store.result(AttemptUid("a-0-1")) == result
    assert store.result(AttemptUid("a-0-2")) is None


def test_pages_of_jobs_go_from_new_to_old_without_gap_or_repetition(store: Store) -> None:
    store.commit(changes(*(job(f"j{n:02}", at=n // 4) for n in range(30))))
    seen: list[JobRow] = []
    cursor = None
    while page := store.list_jobs(before=cursor, limit=7):
        seen += page
        cursor = JobCursor(page[-1].submitted_at, page[-1].job_id)
    assert [row.job_id for row in seen] == [f"j{n:02}" for n in reversed(range(30))]


def test_jobs_are_listed_by_namespace_status_and_name(store: Store) -> None:
    store.commit(
        changes(
            job("a", 1.0, name="train/x"),
            finished(job("b", 2.0, name="train"), 9.0),
            finished(job("c", 3.0, name="eval"), 9.0, JobStatus.FAILED),
            job("d", 4.0, namespace=Namespace("other")),
        )
    )

    def ids(**filters: Any) -> str:
        return "".join(row.job_id for row in store.list_jobs(**filters))

    assert ids() == "dcba"
    assert ids(namespace="default") == "cba"
    assert ids(status=JobStatus.FAILED) == "c"
    assert ids(name_prefix="train") == "dba"
    assert ids(name="train", namespace="default") == "b"
    assert ids(name_prefix="e", status=JobStatus.SUCCEEDED) == ""
    with pytest.raises(ValueError, match="not final"):
        ids(status=JobStatus.RUNNING)


def test_no_page_of_jobs_sorts_or_reads_the_whole_table(store: Store) -> None:
    statement = columns.JOBS.select(
        "EXPLAIN QUERY PLAN SELECT {columns} FROM jobs WHERE namespace = 'n' AND outcome = 'failed' AND name >= 'a' "
        "AND name < 'b' AND (submitted_at, job_id) < (1, 'x') ORDER BY submitted_at DESC, job_id DESC LIMIT 10"
    )
    (plan,) = (detail for *_, detail in store._read(statement))
    assert plan.startswith("SEARCH jobs USING INDEX jobs_by_age")


def test_the_journal_goes_on_from_any_line(store: Store) -> None:
    assert store.last_at() == 0.0
    lines = [JournalRow(float(n), "JobLaunched", "admin", job_id="ab"[n % 2], message=f"{n}") for n in range(6)]
    assert store.commit(changes(journal=tuple(lines[:4]))) == [1, 2, 3, 4]
    assert store.commit(changes(journal=tuple(lines[4:]))) == [5, 6]
    assert store.journal(after_seq=1, limit=3) == [(2, lines[1]), (3, lines[2]), (4, lines[3])]
    assert store.journal(job_id=JobId("b"), after_seq=2) == [(4, lines[3]), (6, lines[5])]
    assert (store.journal_tail(), store.last_at()) == (6, 5.0)


def test_old_jobs_go_with_all_that_is_theirs(store: Store) -> None:
    for n, name in enumerate("abcd"):
        row = job(name, float(n))
        store.commit(
            changes(
                row if name == "d" else finished(row, float(n)),
                SpecRow(JobId(name), b""),
                TaskRow(JobId(name), 0),
                attempt(name),
                ResultRow(attempt(name).uid, b"", "", ""),
                RequestRow("admin", name, "launch", "", name, float(n)),
                journal=(JournalRow(float(n), "JobLaunched", "admin", name), JournalRow(float(n), "Started", "admin")),
            )
        )
    assert store.prune(before=2.0, keep_jobs=10) == ["a", "b"]
    assert store.prune(before=2.0, keep_jobs=10) == []
    assert [row.job_id for row in store.list_jobs()] == ["d", "c"]
    for name, there in zip("abcd", (False, False, True, True), strict=True):
        key = JobId(name)
        found = (store.spec(key), store.tasks(key), store.attempts(key), store.journal(job_id=key))
        assert [value not in (None, []) for value in found] == [there] * 4
        assert (store.result(attempt(name).uid) is not None) is there
        assert (store.request("admin", name) is not None) is there
    assert [line.at for _, line in store.journal() if not line.job_id] == [2.0, 3.0]


def test_more_finished_jobs_than_are_kept_go_oldest_first(store: Store) -> None:
    store.commit(changes(*(finished(job(f"{n}", float(n)), float(n)) for n in range(5)), job("u")))
    assert store.prune(before=0.0, keep_jobs=3) == ["0", "1"]


def test_a_long_history_goes_in_small_parts(store: Store) -> None:
    store.commit(changes(*(finished(job(f"{n:03}"), float(n)) for n in range(200))))
    removed: list[JobId] = []
    while part := store.prune(before=1000.0, keep_jobs=0):
        assert len(part) <= 50
        removed += part
    assert len(removed) == 200


def test_no_journal_number_is_given_twice_when_the_newest_lines_are_gone(tmp_path: Path) -> None:
    with Store.open(tmp_path / "fluster.db") as store:
        line = JournalRow(1.0, "JobFinished", "controller", "a")
        store.commit(changes(finished(job("a"), 1.0), journal=(line, line)))
        assert store.prune(before=2.0, keep_jobs=0) == ["a"]
    with Store.open(tmp_path / "fluster.db") as store:
        assert store.commit(changes(journal=(line,))) == [3]


def test_every_hash_in_a_spec_or_a_result_keeps_its_blob(store: Store) -> None:
    first, second, third = "a1" * 32, "b2" * 32, "c3" * 32
    # As protobuf writes two strings in a row; the tag of the second one is the digit "2".
    spec = b"\x2a\x40" + first.encode() + b"\x32\x40" + second.encode() + b"22"
    store.commit(changes(SpecRow(JobId("a"), spec), SpecRow(JobId("b"), b"no hash")))
    store.commit(changes(ResultRow(AttemptUid("u"), None, third, third), ResultRow(AttemptUid("v"), b"", "", third)))
    assert store.referenced_blobs() == {first, second, third}


def test_reads_in_other_threads_see_whole_commits(store: Store) -> None:
    stop = threading.Event()
    torn: list[int] = []

    def read() -> None:
        while not stop.is_set():
            loaded = store.list_jobs(limit=1000)
            if len(loaded) % 10:
                torn.append(len(loaded))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for turn in range(20):
        store.commit(changes(*(job(f"{turn}-{n}") for n in range(10))))
    stop.set()
    for reader in readers:
        reader.join()
    assert torn == []


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreFailed, match="is closed"):
        store.commit(changes(job("a")))
    with pytest.raises(StoreFailed, match="is closed"):
        store.load()
