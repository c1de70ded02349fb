"""Results as they come, the pool as an executor, and what it tells of itself."""

import concurrent.futures
import contextlib
import gc
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.pool import functions
from tests.pool.conftest import SMALL
from tests.pool.functions import add, square, until

from fluster import Cluster
from fluster.pool import PoolStats, WorkerPool


class Counter:
    """Numbers without end, and how many were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.taken += 1
        return self.taken - 1


def test_results_come_in_order_and_items_are_taken_as_they_are_needed(pool: WorkerPool) -> None:
    numbers = Counter()
    stream = pool.imap(square, numbers, max_in_flight=16)
    assert numbers.taken == 0
    for expected in range(2_000):
        assert next(stream) == expected**2
        assert numbers.taken <= expected + 1 + 16
    stream.close()
    assert list(stream) == []


def test_the_default_window_is_bounded_too(pool: WorkerPool) -> None:
    numbers = Counter()
    with pool.imap(square, numbers) as stream:
        assert list(itertools.islice(stream, 20_000)) == [x * x for x in range(20_000)]
        assert numbers.taken < 20_000 + 4 * 2 * 2_048 + 1


def test_memory_stays_as_it_is_over_many_items(pool: WorkerPool) -> None:
    with pool.imap(square, itertools.count(), max_in_flight=64) as stream:
        sum(itertools.islice(stream, 3_000))
        gc.collect()
        before = len(gc.get_objects())
        sum(itertools.islice(stream, 6_000))
        gc.collect()
        assert len(gc.get_objects()) - before < 2_000


@pytest.mark.here
def test_unordered_results_come_as_soon_as_they_are_there(pool: WorkerPool, tmp_path: Path) -> None:
    go = tmp_path / "go"
    items = [str(go), *[""] * 5]

    def work(path: str) -> str:
        if path:
            functions.wait_for(path)
        return path

    stream = pool.imap(work, items, ordered=False)
    assert [next(stream) for _ in range(5)] == [""] * 5
    go.touch()
    assert list(stream) == [str(go)]


def test_unordered_results_are_complete(pool: WorkerPool) -> None:
    assert sorted(pool.imap(square, range(3_000), ordered=False)) == [x * x for x in range(3_000)]


@pytest.mark.parametrize("ordered", [True, False])
def test_a_stream_goes_on_behind_an_error(pool: WorkerPool, ordered: bool) -> None:
    stream = pool.imap(lambda x: 6 // x, [1, 0, 2], ordered=ordered)
    found: list[object] = []
    for _ in range(3):
        try:
            found.append(next(stream))
        except ZeroDivisionError:
            found.append("zero")
    assert sorted(map(str, found)) == ["3", "6", "zero"]
    assert list(stream) == []


def test_what_the_items_raise_comes_behind_the_results_before_it(pool: WorkerPool) -> None:
    def items() -> Iterator[int]:
        yield 2
        yield 3
        raise LookupError("no more")

    stream = pool.imap(square, items())
    assert [next(stream), next(stream)] == [4, 9]
    with pytest.raises(LookupError, match="no more"):
        next(stream)
    assert list(stream) == []


@pytest.mark.parametrize("how", ["close", "forget"])
@pytest.mark.here
def test_ending_a_stream_cancels_what_is_queued(pool: WorkerPool, tmp_path: Path, how: str) -> None:
    blockers = [pool.submit(functions.wait_for, str(tmp_path / "go")) for _ in range(2)]
    until(lambda: all(blocker.running() for blocker in blockers))
    before = pool.stats()
    stream = pool.imap(lambda n: (tmp_path / f"ran{n}").touch(), itertools.count(), max_in_flight=50)
    stream._take_items()
    assert pool.stats().total == before.total + 50
    if how == "close":
        stream.close()
    else:
        del stream
    until(lambda: pool.stats().running == 2)  # what was sent ahead is taken back
    assert pool.stats().queued == before.queued
    (tmp_path / "go").touch()
    assert [blocker.result(timeout=8) for blocker in blockers] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["go"]


@pytest.mark.parametrize("ordered", [True, False])
def test_an_interrupt_in_the_middle_of_a_stream_ends_the_pool_with_its_workers(cluster: Cluster, ordered: bool) -> None:
    with contextlib.suppress(KeyboardInterrupt), WorkerPool(cluster, 1, SMALL, name_prefix="broken-off") as pool:
        stream = pool.imap(square, itertools.count(), ordered=ordered, max_in_flight=10)
        stream._take_items()
        raise KeyboardInterrupt
    until(lambda: all(job.status.finished() for job in cluster.list_jobs(name_prefix="broken-off")))
    with pytest.raises(concurrent.futures.CancelledError):
        next(stream)
    assert pool.stats().cancelled > 0


@pytest.mark.here
def test_whoever_waits_for_a_stream_whose_pool_is_shut_down_is_told(cluster: Cluster, tmp_path: Path) -> None:
    pool = WorkerPool(cluster, 1, SMALL)
    blocker = pool.submit(functions.wait_for, str(tmp_path / "go"))
    until(blocker.running)
    stream = pool.imap(square, range(10))
    stream._take_items()
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        waiter = threads.submit(next, stream)
        until(lambda: stream._window.waits)
        pool.shutdown(wait=False, cancel_futures=True)
        assert isinstance(waiter.exception(timeout=8), concurrent.futures.CancelledError)
        (tmp_path / "go").touch()
    pool.shutdown()


def test_the_pool_as_an_executor(pool: WorkerPool) -> None:
    with pool.as_executor() as executor:
        assert isinstance(executor, concurrent.futures.Executor)
        assert executor.submit(add, 1, b=2).result(timeout=8) == 3
        results = executor.map(add, range(100), range(100))
        assert next(results) == 0
        assert list(results) == [2 * x for x in range(1, 100)]
        late = executor.submit(square, 4)
    assert late.done()
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(square, 1)
    assert pool.submit(square, 5).result(timeout=8) == 25


@pytest.mark.here
def test_results_of_the_executor_have_a_limit(pool: WorkerPool, tmp_path: Path) -> None:
    executor = pool.as_executor()
    results = executor.map(functions.wait_for, [str(tmp_path / "go")], timeout=0.05)
    with pytest.raises(TimeoutError):
        next(results)
    (tmp_path / "go").touch()
    executor.shutdown()


@pytest.mark.here
def test_the_numbers_of_a_pool_add_up(cluster: Cluster, tmp_path: Path) -> None:
    with WorkerPool(cluster, 1, SMALL) as pool:
        pool.wait_for_workers(timeout=30)
        assert pool.stats() == PoolStats(1, 0, 0, 0, 0, 0, 0)
        blocker = pool.submit(functions.begin_and_wait, str(tmp_path / "begun"), str(tmp_path / "go"))
        others = pool.map(lambda x: 1 // x, [0, 1, 2])
        until((tmp_path / "begun").exists)
        stats = pool.stats()
        assert (stats.running, stats.queued, stats.finished, stats.total) == (1, 3, 0, 4)
        others[2].cancel()
        (tmp_path / "go").touch()
        blocker.result(timeout=8)
        concurrent.futures.wait(others, timeout=8)
        assert pool.stats() == PoolStats(1, 0, 0, 2, 1, 0, 1)


def test_progress_is_told_by_one_thread_and_at_the_end(cluster: Cluster) -> None:
    told: list[PoolStats] = []
    threads: set[int] = set()

    def tell(stats: PoolStats) -> None:
        told.append(stats)
        threads.add(threading.get_ident())

    with WorkerPool(cluster, 1, SMALL, progress=tell) as pool:
        for future in pool.map(square, range(500)):
            future.result(timeout=9)
        until(lambda: bool(told) and told[-1].finished == 500)
        pool.submit(square, 1)
    assert (told[-1].finished, told[-1].total, told[-1].workers) == (501, 501, told[-1].workers)
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert [stats.finished for stats in told] == sorted(stats.finished for stats in told)


def test_a_bar_given_instead_of_a_progress_hook_is_refused_with_the_cure(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match=r"bar\.update"):
        WorkerPool(cluster, 1, SMALL, progress=object())  # type: ignore[arg-type]


def test_a_progress_hook_that_fails_harms_nothing(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    def tell(stats: PoolStats) -> None:
        raise LookupError("the hook's own")

    with WorkerPool(cluster, 1, SMALL, progress=tell) as pool:
        assert pool.submit(square, 3).result(timeout=9) == 9
        until(lambda: "progress hook" in caplog.text)
        assert pool.submit(square, 4).result(timeout=9) == 16
