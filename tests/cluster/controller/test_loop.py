"""The loop: commit, then answer; what fails harms nobody else and is never answered as done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.cluster.controller.remote import job_spec

from fluster.cluster.controller import convert, turns
from fluster.cluster.controller import loop as loop_module
from fluster.cluster.controller.core.events import Event, JobsSubmitted, NewJob, TerminationRequested
from fluster.cluster.controller.core.index import index_worker
from fluster.cluster.controller.core.rows import Changes, JobRow, RequestRow, Resources, WorkerRow
from fluster.cluster.controller.core.schedule import Decision, schedule
from fluster.cluster.controller.core.state import Settings, State
from fluster.cluster.controller.core.transitions import apply
from fluster.cluster.controller.loading import load_state
from fluster.cluster.controller.loop import Loop
from fluster.cluster.controller.store import Store, StoreBusy, StoreFailed, StoreFull
from fluster.cluster.ids import AllocationId, JobId, Namespace, WorkerId
from fluster.errors import AlreadyExists, JobNotFound, RemoteFault, ResourceExhausted, Unreachable


class WatchedStore(Store):
    """The real store; counts commits, and fails as it is told."""

    commits: list[Changes]
    failure: Callable[[Changes], Exception | None]

    def commit(self, changes: Changes) -> list[int]:
        failure = self.failure(changes)
        if failure is not None:
            raise failure
        self.commits.append(changes)
        return super().commit(changes)


class Clock:
    """Goes on by itself, and as it is told."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with WatchedStore.open(tmp_path / "fluster.db") as made:
        made.commits = []
        made.failure = lambda _: None
        yield made


@asynccontextmanager
async def running(store: WatchedStore, clock: Clock | None = None) -> AsyncIterator[Loop]:
    settings, now = Settings(), clock or Clock()
    loop = Loop(store, lambda old: load_state(store, settings, now(), old), now, 1)
    task = asyncio.create_task(loop.run())
    try:
        yield loop
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def launch(name: str, request_id: str | None = None, *, tasks: int = 1, body: str = "0") -> JobsSubmitted:
    spec = job_spec(name, cpu=1.0, replicas=tasks)
    row = convert.job_row(
        spec,
        job_id=JobId(f"j-{name}"),
        namespace=Namespace("default"),
        owner="admin",
        user="",
        depth=0,
        now=time.time(),
    )
    request = RequestRow("admin", request_id or f"r-{name}", "LaunchJob", body * 64, row.job_id, row.submitted_at)
    return JobsSubmitted((NewJob(row, spec.to_binary()),), request)


async def gather(*awaitables: Any) -> list[Any]:
    return await asyncio.gather(*awaitables, return_exceptions=True)


def holds(changes: Changes, name: str) -> bool:
    return any(isinstance(row, JobRow) and row.name == name for row in changes.rows.values())


def run(test: Callable[[], Any]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


# Answers.


def test_what_is_answered_is_on_disk(store: WatchedStore) -> None:
    async def test() -> None:
        async with running(store) as loop:
            assert await loop.submit(launch("a")) == "j-a"
            assert store.job(JobId("j-a")) is not None
            assert store.request("admin", "r-a") is not None

    run(test)


def test_launches_at_one_time_share_a_commit(store: WatchedStore) -> None:
    async def test() -> None:
        async with running(store) as loop:
            answers = await gather(*(loop.submit(launch(f"n{n}")) for n in range(500)))
        assert answers == [f"j-n{n}" for n in range(500)]
        assert len(store.commits) == 1

    run(test)


def test_thousands_of_launches_in_one_moment_are_all_acknowledged_in_few_commits(store: WatchedStore) -> None:
    count = 3_000

    async def test() -> None:
        async with running(store) as loop:
            answers = await gather(*(loop.submit(launch(f"n{n}")) for n in range(count)))
        assert answers == [f"j-n{n}" for n in range(count)]
        assert len(store.commits) <= count / loop_module.MAX_TURN + 1
        assert len(store.load().jobs) == count

    run(test)


def test_an_inbox_that_is_full_refuses(store: WatchedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "MAX_INBOX", 3)

    async def test() -> None:
        async with running(store) as loop:
            answers = await gather(*(loop.submit(launch(f"n{n}")) for n in range(5)))
            assert answers[:3] == ["j-n0", "j-n1", "j-n2"]
            assert all(isinstance(answer, ResourceExhausted) for answer in answers[3:])
            assert await loop.submit(launch("later")) == "j-later"

    run(test)


def test_a_turn_carries_so_many_tasks_that_others_are_served_in_between(store: WatchedStore) -> None:
    async def test() -> None:
        async with running(store) as loop:
            await gather(*(loop.submit(launch(f"n{n}", tasks=4_000)) for n in range(4)), loop.submit(launch("small")))
        assert len(store.commits) == 2

    run(test)


def test_the_same_request_is_answered_the_same_within_a_turn_and_later(store: WatchedStore) -> None:
    async def test() -> None:
        async with running(store) as loop:
            first, again = launch("a", "once"), launch("a2", "once")
            other = launch("b", "once", body="1")
            answers = await gather(loop.submit(first), loop.submit(again), loop.submit(other))
            assert answers[:2] == ["j-a", "j-a"]
            assert isinstance(answers[2], AlreadyExists)
            assert await loop.submit(launch("a3", "once")) == "j-a"
            assert list(loop.state.jobs) == ["j-a"]

    run(test)


def test_a_caller_that_has_gone_takes_nothing_back(store: WatchedStore) -> None:
    async def test() -> None:
        async with running(store) as loop:
            gone = asyncio.create_task(loop.submit(launch("a")))
            await asyncio.sleep(0)
            gone.cancel()
            assert await loop.submit(launch("b")) == "j-b"
            assert set(loop.state.jobs) == {"j-a", "j-b"}

    run(test)


def test_a_refused_event_harms_no_other(store: WatchedStore) -> None:
    async def test() -> None:
        async with running(store) as loop:
            absent = TerminationRequested(JobId("absent"), "admin")
            answers = await gather(loop.submit(launch("a")), loop.submit(absent), loop.submit(launch("b")))
        assert (answers[0], answers[2]) == ("j-a", "j-b")
        assert isinstance(answers[1], JobNotFound)
        assert len(store.commits) == 1

    run(test)


# What goes wrong.


def test_a_full_disk_refuses_new_jobs_and_takes_them_again_when_there_is_room(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "FULL_RETRY_S", 0.2)

    async def test() -> None:
        async with running(store) as loop:
            await loop.submit(launch("before"))
            store.failure = lambda _: StoreFull("no space left for /var/lib/fluster.db")
            for name in ("a", "b"):
                with pytest.raises(ResourceExhausted, match="disk is full; nothing was taken in") as caught:
                    await loop.submit(launch(name))
                assert "/var/lib" not in str(caught.value)
            assert list(loop.state.jobs) == ["j-before"]
            assert await loop.submit(launch("before")) == "j-before"  # what was acknowledged stays so

            store.failure = lambda _: None
            while True:
                with suppress(ResourceExhausted):
                    assert await loop.submit(launch("a")) == "j-a"
                    break
                await asyncio.sleep(0.01)
            assert list(loop.state.jobs) == ["j-before", "j-a"]

    run(test)


def test_a_full_disk_is_not_asked_again_for_each_launch(store: WatchedStore) -> None:
    async def test() -> None:
        tries: list[Changes] = []

        def failure(changes: Changes) -> Exception:
            tries.append(changes)
            return StoreFull("full")

        async with running(store) as loop:
            await loop.submit(launch("before"))
            store.failure = failure
            for n in range(20):
                with pytest.raises(ResourceExhausted):
                    await loop.submit(launch(f"n{n}"))
        assert len(tries) <= 3

    run(test)


def test_a_locked_database_takes_nothing_in_and_says_so(store: WatchedStore) -> None:
    async def test() -> None:
        async with running(store) as loop:
            store.failure = lambda _: StoreBusy("another program holds /x locked")
            with pytest.raises(Unreachable, match="nothing was taken in, ask again"):
                await loop.submit(launch("a"))
            store.failure = lambda _: None
            assert not loop.state.jobs
            assert await loop.submit(launch("a")) == "j-a"

    run(test)


def test_a_broken_store_ends_the_loop_and_nobody_is_told_that_it_went_well(store: WatchedStore) -> None:
    async def test() -> None:
        loop = Loop(store, lambda old: load_state(store, Settings(), time.time(), old), time.time, 1)
        ended = asyncio.create_task(loop.run())
        await loop.submit(launch("before"))
        store.failure = lambda _: StoreFailed("cannot sync /var/lib/fluster.db")
        waiting = [asyncio.create_task(loop.submit(launch(f"n{n}", tasks=6_000))) for n in range(3)]
        answers = await gather(*waiting)
        assert [type(answer) for answer in answers] == [Unreachable] * 3
        assert all("unknown" in str(answer) and "/var/lib" not in str(answer) for answer in answers)
        with pytest.raises(StoreFailed):
            await ended
        with pytest.raises(Unreachable):
            await loop.submit(launch("later"))

    run(test)


def test_a_store_that_cannot_be_read_ends_the_loop_too(store: WatchedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        loop = Loop(store, lambda old: load_state(store, Settings(), time.time(), old), time.time, 1)
        ended = asyncio.create_task(loop.run())
        await loop.submit(launch("before"))
        store.close()
        with pytest.raises(Unreachable):
            await loop.submit(launch("a"))
        with pytest.raises(StoreFailed):
            await ended

    run(test)


def test_who_waits_when_the_loop_is_stopped_is_told(store: WatchedStore) -> None:
    async def test() -> None:
        loop = Loop(store, lambda old: load_state(store, Settings(), time.time(), old), time.time, 1)
        ended = asyncio.create_task(loop.run())
        await loop.submit(launch("a"))
        ended.cancel()
        with pytest.raises(Unreachable, match="ask again under the same id"):
            await loop.submit(launch("b"))
        with pytest.raises(Unreachable):
            await loop.submit(launch("c"))
        await gather(ended)

    run(test)


@pytest.mark.parametrize("where", ["fold", "commit"])
def test_an_event_that_cannot_be_folded_harms_no_other(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    def poisoned(state: State, event: Event, now: float, changes: Changes) -> Changes:
        made = apply(state, event, now, changes)  # it has altered the state already
        if where == "fold" and isinstance(event, JobsSubmitted) and event.jobs[0].row.name == "poison":
            raise KeyError("secret detail")
        return made

    monkeypatch.setattr(turns, "apply", poisoned)
    if where == "commit":
        store.failure = lambda changes: apsw.ConstraintError("secret detail") if holds(changes, "poison") else None

    async def test() -> None:
        async with running(store) as loop:
            await loop.submit(launch("before"))
            names = ("a", "poison", "b")
            answers = await gather(*(loop.submit(launch(name)) for name in names))
            assert (answers[0], answers[2]) == ("j-a", "j-b")
            assert isinstance(answers[1], RemoteFault)
            assert "secret" not in str(answers[1])
            assert set(loop.state.jobs) == {"j-before", "j-a", "j-b"}
            assert {job.job_id for job in store.load().jobs} == set(loop.state.jobs)

    run(test)
    assert "secret detail" in caplog.text


def test_a_defect_in_deciding_is_answered_and_forgotten(store: WatchedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = True

    def failing(state: State, now: float) -> Decision:
        if broken:
            raise ZeroDivisionError("secret detail")
        return schedule(state, now)

    monkeypatch.setattr(turns, "schedule", failing)

    async def test() -> None:
        nonlocal broken
        async with running(store) as loop:
            answers = await gather(*(loop.submit(launch(f"n{n}")) for n in range(3)))
            assert [type(answer) for answer in answers] == [RemoteFault] * 3
            assert not loop.state.jobs
            broken = False
            assert await loop.submit(launch("a")) == "j-a"

    run(test)


# Time.


def test_what_is_known_of_times_outlives_a_turn_that_came_to_nothing(store: WatchedStore) -> None:
    async def test() -> None:
        async with running(store) as loop:
            await loop.submit(launch("a"))
            worker = WorkerRow(
                WorkerId("w"), "0" * 64, "i", "", "h", "b", AllocationId(""), Resources(), "none", "", 1.0
            )
            index_worker(loop.state, worker)
            store.commit(Changes(rows={(WorkerRow, "w"): worker}))
            loop.state.last_seen[WorkerId("w")] = 1_000.0
            old = loop.state
            store.failure = lambda _: StoreBusy("busy")
            with pytest.raises(Unreachable):
                await loop.submit(launch("b"))
            assert loop.state is not old
            assert loop.state.last_seen == {"w": 1_000.0}

    run(test)


def test_a_flood_of_launches_pays_for_few_passes_of_the_scheduler(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that takes 50 ms of the clock is not made with each of a hundred commits, nor left out for good."""
    clock = Clock()
    passes: list[float] = []

    def slow(state: State, now: float) -> Decision:
        passes.append(now)
        clock.ahead += 0.05
        return schedule(state, now)

    monkeypatch.setattr(turns, "schedule", slow)

    async def test() -> None:
        async with running(store, clock) as loop:
            began = clock()
            for n in range(100):
                await loop.submit(launch(f"n{n}"))
                clock.ahead += 0.001
            took = clock() - began
            assert 1 <= len(passes) <= 1 + took / 0.2 + 1
            while loop.state.waiting.keys() != loop.state.jobs.keys():  # each gets its reason soon
                await asyncio.sleep(0.01)

    run(test)


def test_what_alters_nothing_that_waits_pays_for_no_pass_of_the_scheduler(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    passes: list[float] = []

    def counted(state: State, now: float) -> Decision:
        passes.append(now)
        return schedule(state, now)

    monkeypatch.setattr(turns, "schedule", counted)

    async def test() -> None:
        async with running(store, clock) as loop:
            await loop.submit(launch("a"))
            assert loop.decision.waiting.keys() == {"j-a"}
            before = len(passes)
            for _ in range(10):
                clock.ahead += 2.0
                with pytest.raises(JobNotFound):
                    await loop.submit(TerminationRequested(JobId("j-none"), "admin"))
            assert len(passes) == before
            clock.ahead += 2.0
            await loop.submit(launch("b"))
            assert loop.decision.waiting.keys() == {"j-a", "j-b"}

    run(test)
