"""Tasks of a pool: what they are given, what they give, what goes wrong in them."""

import asyncio
import concurrent.futures
import contextlib
import functools
import os
import signal
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
from tests.pool import functions
from tests.pool.conftest import SMALL
from tests.pool.functions import add, on_main_thread, pid, square, until

from fluster import ActorFuture, Cluster, LocalCluster, RemoteError, ResourceConfig
from fluster.pool import WorkerPool


@pytest.mark.everywhere
def test_worker_pool(cluster: Cluster) -> None:
    """Two workers with the default resources."""

    def square(x: int) -> int:
        return x * x

    pool = WorkerPool(cluster, num_workers=2, resources=ResourceConfig.with_cpu())
    pool.wait_for_workers()

    futures = pool.map(square, [1, 2, 3, 4])
    results = [f.result() for f in futures]

    assert sorted(results) == [1, 4, 9, 16]

    pool.shutdown()


@pytest.mark.everywhere
def test_a_task_gets_its_arguments_and_gives_its_result(pool: WorkerPool) -> None:
    future = pool.submit(add, 2, b=3)
    assert isinstance(future, ActorFuture)
    assert future.result(timeout=8) == 5
    assert future.done()
    assert not future.running()


def test_tasks_run_on_the_main_thread_of_another_process(pool: WorkerPool) -> None:
    assert pool.submit(on_main_thread).result(timeout=8)
    assert pool.submit(pid).result(timeout=8) != os.getpid()


def test_tasks_may_use_event_loops_and_signals(pool: WorkerPool) -> None:
    async def nap() -> str:
        await asyncio.sleep(0)
        return "slept"

    def interrupted() -> list[int]:
        seen: list[int] = []
        before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
        os.kill(os.getpid(), signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, before)
        return seen

    assert pool.submit(lambda: asyncio.run(nap())).result(timeout=8) == "slept"
    assert pool.submit(interrupted).result(timeout=8) == [signal.SIGUSR1]


def test_results_are_in_the_order_of_the_items(pool: WorkerPool) -> None:
    assert [future.result(timeout=8) for future in pool.map(square, range(5_000))] == [x * x for x in range(5_000)]


def test_starmap_spreads_each_item(pool: WorkerPool) -> None:
    items: list[Any] = [(1, 2), [3, 4], "56"[:0] or (5,), ({"a": 1}.get("a"), 6)]
    assert [future.result(timeout=8) for future in pool.starmap(add, items)] == [3, 7, 5, 7]


def test_closures_lambdas_and_partials_travel_by_value(pool: WorkerPool) -> None:
    offset = 10
    assert pool.submit(lambda x: x + offset, 1).result(timeout=8) == 11
    assert pool.submit(functools.partial(add, b=4), 1).result(timeout=8) == 5
    assert [f.result(timeout=8) for f in pool.map(lambda x: x * offset, [1, 2])] == [10, 20]


def test_a_function_is_taken_as_it_is_when_submitted(pool: WorkerPool) -> None:
    factor = 1

    def scaled(x: int) -> int:
        return x * factor

    one = pool.submit(scaled, 7)
    factor = 3
    three = pool.submit(scaled, 7)
    assert (one.result(timeout=8), three.result(timeout=8)) == (7, 21)


@pytest.mark.here
def test_arguments_are_taken_as_they_are_when_submitted(pool: WorkerPool, tmp_path: Path) -> None:
    blockers = [pool.submit(functions.wait_for, str(tmp_path / "go")) for _ in range(2)]
    mutable = [1]
    one, many = pool.submit(len, mutable), pool.map(len, [mutable])
    mutable.append(2)
    (tmp_path / "go").touch()
    assert [blocker.result(timeout=8) for blocker in blockers] == [0, 0]
    assert one.result(timeout=8) == 1
    assert many[0].result(timeout=8) == 1


def test_a_function_of_many_items_is_pickled_once(pool: WorkerPool) -> None:
    pickled = []

    class Counted:
        def __call__(self, x: int) -> int:
            return x + 1

        def __getstate__(self) -> dict[str, int]:
            pickled.append(1)
            return {"any": 1}

    assert [f.result(timeout=8) for f in pool.map(Counted(), range(3_000))] == list(range(1, 3_001))
    assert len(pickled) == 1


def test_more_functions_than_a_worker_keeps_still_work(pool: WorkerPool) -> None:
    functions = [functools.partial(add, number) for number in range(700)]
    for _ in range(2):
        futures = [pool.submit(function, 1) for function in functions]
        assert [future.result(timeout=8) for future in futures] == list(range(1, 701))


def test_large_arguments_and_results_arrive_whole(pair: WorkerPool) -> None:
    block = os.urandom(1 << 20) * 8
    futures = pair.map(bytearray, [block, block])
    for future in futures:
        result = future.result(timeout=8)
        assert result == block
        result[0] ^= 1  # the caller's own


@pytest.mark.parametrize("kind", [RuntimeError, TimeoutError, ConnectionError, ValueError, SystemExit, EOFError])
def test_an_exception_of_the_task_is_its_result(pool: WorkerPool, kind: type[BaseException]) -> None:
    def fail() -> None:
        raise kind("said by the task")

    workers = {pool.submit(pid).result(timeout=8) for _ in range(6)}
    error = pool.submit(fail).exception(timeout=8)
    assert type(error) is kind
    assert str(error) == "said by the task"
    assert "in fail" in "".join(traceback.format_exception(error))
    assert {pool.submit(pid).result(timeout=8) for _ in range(6)} == workers


def test_an_interrupt_in_the_task_is_told_of_and_interrupts_nobody(pool: WorkerPool) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        pool.submit(interrupt).result(timeout=8)
    assert pool.submit(square, 3).result(timeout=8) == 9


def test_the_remote_traceback_begins_with_the_users_own_lines(pool: WorkerPool) -> None:
    def outer() -> None:
        raise LookupError("deep inside")

    error = pool.submit(outer).exception(timeout=8)
    assert error is not None
    (note,) = error.__notes__
    assert "LookupError: deep inside" in note
    assert f'File "{__file__}"' in note
    assert "fluster/pool" not in note


def test_an_exception_among_many_is_in_its_place(pool: WorkerPool) -> None:
    futures = pool.map(lambda x: 1 // (x - 500), range(1_000))
    wrong = [index for index, future in enumerate(futures) if future.exception(timeout=8) is not None]
    assert wrong == [500]


def test_a_function_that_cannot_be_pickled_is_named_at_once(pool: WorkerPool) -> None:
    lock = threading.Lock()

    def locked(x: object) -> None:
        with lock:
            pass

    for call in (lambda: pool.submit(locked, 1), lambda: pool.map(locked, [1]), lambda: pool.imap(locked, [1])):
        with pytest.raises(TypeError, match=r"lock.*locked"):
            call()
    with pytest.raises(TypeError, match="function"):
        pool.submit("no function")  # type: ignore[arg-type]


def test_an_argument_that_cannot_be_pickled_is_named_at_once(pool: WorkerPool) -> None:
    with pytest.raises(TypeError, match="argument 0 of 'square'"):
        pool.submit(square, threading.Lock())


def test_an_item_that_cannot_be_pickled_fails_its_own_future(pool: WorkerPool) -> None:
    items: list[Any] = [1, threading.Lock(), [2]]
    first, wrong, last = pool.map(str, items)
    assert (first.result(timeout=8), last.result(timeout=8)) == ("1", "[2]")
    with pytest.raises(TypeError, match="lock"):
        wrong.result(timeout=8)
    stream = pool.imap(str, items)
    assert next(stream) == "1"
    with pytest.raises(TypeError, match="lock"):
        next(stream)
    assert next(stream) == "[2]"


def test_a_result_that_cannot_be_pickled_is_told_of(pool: WorkerPool) -> None:
    good, wrong = pool.submit(square, 2), pool.submit(threading.Lock)
    with pytest.raises(RemoteError, match="lock"):
        wrong.result(timeout=8)
    assert good.result(timeout=8) == 4


def test_an_argument_that_cannot_be_rebuilt_fails_its_task_alone(pool: WorkerPool) -> None:
    class Broken:
        def __reduce__(self) -> Any:
            return (int, ("no number",))

    with pytest.raises(RemoteError, match="no number"):
        pool.submit(str, Broken()).result(timeout=8)
    assert pool.submit(square, 2).result(timeout=8) == 4


def test_a_future_can_be_awaited(pool: WorkerPool) -> None:
    async def both() -> list[int]:
        return list(await asyncio.gather(*map(asyncio.wrap_future, pool.map(square, [2, 3])), pool.submit(square, 4)))

    assert asyncio.run(both()) == [4, 9, 16]


def test_futures_are_what_concurrent_futures_expects(pool: WorkerPool) -> None:
    futures = pool.map(square, range(100))
    assert {future.result() for future in concurrent.futures.as_completed(futures, timeout=8)} == {
        x * x for x in range(100)
    }
    called: list[int] = []
    done = threading.Event()
    future = pool.submit(square, 5)

    def call(each: concurrent.futures.Future[int]) -> None:
        called.append(each.result())
        done.set()

    future.add_done_callback(call)
    assert done.wait(8)
    assert called == [25]
    finished, rest = concurrent.futures.wait([pool.submit(square, 1), future], timeout=8)
    assert (len(finished), len(rest)) == (2, 0)


@pytest.mark.here
def test_waiting_for_a_result_has_a_limit(pool: WorkerPool, tmp_path: Path) -> None:
    future = pool.submit(functions.wait_for, str(tmp_path / "go"), 3)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.05)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0)
    (tmp_path / "go").touch()
    assert future.result(timeout=8) == 3


@pytest.mark.here
def test_many_threads_may_wait_for_one_future(pool: WorkerPool, tmp_path: Path) -> None:
    future = pool.submit(functions.wait_for, str(tmp_path / "go"), 3)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(future.result, 8) for _ in range(4)]
        (tmp_path / "go").touch()
        assert [each.result(timeout=8) for each in waiting] == [3] * 4


def test_many_threads_may_submit(pool: WorkerPool) -> None:
    def submit_some(base: int) -> list[int]:
        return [future.result(timeout=8) for future in [pool.submit(square, base + n) for n in range(200)]]

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for base, results in zip(range(8), threads.map(submit_some, range(8)), strict=True):
            assert results == [(base + n) ** 2 for n in range(200)]


@pytest.mark.here
def test_a_queued_task_can_be_cancelled_and_does_not_run(pool: WorkerPool, tmp_path: Path) -> None:
    before = pool.stats()
    blockers = [pool.submit(lambda: functions.wait_for(str(tmp_path / "go"))) for _ in range(2)]
    until(lambda: all(blocker.running() for blocker in blockers))
    queued = [pool.submit(functions.touch, str(tmp_path / f"ran{n}")) for n in range(3)]
    assert queued[1].cancel()
    assert queued[1].cancel()
    assert queued[1].cancelled()
    assert concurrent.futures.wait([queued[1]], timeout=8).done == {queued[1]}
    with pytest.raises(concurrent.futures.CancelledError):
        queued[1].result(timeout=8)
    (tmp_path / "go").touch()
    concurrent.futures.wait(queued, timeout=8)
    concurrent.futures.wait(blockers, timeout=8)
    assert not (tmp_path / "ran1").exists()
    assert not queued[0].cancel()
    assert pool.stats().cancelled == before.cancelled + 1


@pytest.mark.here
def test_a_cancelled_task_that_a_worker_has_not_begun_does_not_run(pair: WorkerPool, tmp_path: Path) -> None:
    def work(go: str, begun: str) -> int:
        if begun:
            Path(begun).touch()
        return functions.wait_for(go) if go else 0

    for future in pair.starmap(work, [("", "")] * 500):  # known to be quick: tasks are sent before others are through
        future.result(timeout=8)
    go = str(tmp_path / "go")
    futures = pair.starmap(work, [(go, str(tmp_path / f"ran{n}")) for n in range(4)])
    with contextlib.suppress(AssertionError):  # on a machine so busy that they were not quick, two wait in the pool
        until(lambda: pair.stats().running == 4, 1.0)
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    (waiting, *_) = [n for n in range(4) if not (tmp_path / f"ran{n}").exists()]
    assert futures[waiting].cancel()
    until(lambda: pair.stats().running < 4 and pair.stats().cancelled == 1)
    Path(go).touch()
    assert [future.result(timeout=8) for future in futures if not future.cancelled()] == [0, 0, 0]
    assert not (tmp_path / f"ran{waiting}").exists()


@pytest.mark.here
def test_a_finished_result_does_not_wait_for_a_long_task_behind_it(pool: WorkerPool, tmp_path: Path) -> None:
    """The function is known to be quick, so that many of its tasks travel together."""

    def work(path: str) -> str:
        return path if not path else str(functions.wait_for(path))

    for future in pool.map(work, [""] * 500):
        future.result(timeout=8)
    path = str(tmp_path / "go")
    futures = pool.map(work, [*[""] * 20, path, *[""] * 200])
    quick = [future for index, future in enumerate(futures) if index != 20]
    # Those behind it are not held up either: another worker takes them.
    assert [future.result(timeout=8) for future in quick] == [""] * 220
    assert not futures[20].done()
    Path(path).touch()
    assert futures[20].result(timeout=8) == "0"


@pytest.mark.here
def test_a_finished_result_does_not_wait_for_a_long_task_when_there_is_only_one_worker(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    def work(path: str) -> int:
        return functions.wait_for(path) if path else 0

    go = str(tmp_path / "go")
    with WorkerPool(cluster, 1, SMALL) as pool:
        for future in pool.map(work, [""] * 500):  # known to be quick, so that many travel together
            future.result(timeout=9)
        futures = pool.map(work, [*[""] * 20, go, *[""] * 20])
        assert [future.result(timeout=8) for future in futures[:20]] == [0] * 20
        assert not any(future.done() for future in futures[20:])
        Path(go).touch()
        assert [future.result(timeout=8) for future in futures[20:]] == [0] * 21


@pytest.mark.here
def test_no_task_is_lost_or_run_twice_when_workers_give_tasks_back(pool: WorkerPool, tmp_path: Path) -> None:
    """Now and then a task takes long, so that what is behind it goes to another worker."""

    def work(number: int, place: str) -> int:
        with open(f"{place}/{number}", "x"):  # fails if it is there
            time.sleep(0.03 if number % 61 == 0 else 0)
        return number

    for future in pool.starmap(work, [(number, str(tmp_path)) for number in range(10_000, 10_300)]):
        future.result(timeout=8)
    futures = pool.starmap(work, [(number, str(tmp_path)) for number in range(2_000)])
    assert [future.result(timeout=8) for future in futures] == list(range(2_000))


@pytest.mark.here
def test_tasks_spread_over_idle_workers(pool: WorkerPool, tmp_path: Path) -> None:
    futures = [pool.submit(functions.meet, str(tmp_path), name, 2) for name in "ab"]
    assert [future.result(timeout=8) for future in futures] == ["a", "b"]


@pytest.mark.here
def test_one_task_after_the_other_goes_round_the_workers(pool: WorkerPool) -> None:
    pids = [pool.submit(pid).result(timeout=8) for _ in range(6)]
    assert pids[0] != pids[1]
    assert pids == pids[:2] * 3


@pytest.mark.here
def test_modules_of_the_users_project_travel_by_value_to_a_cluster_elsewhere(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fluster.cluster.context import read_token_file

    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "of_the_project.py").write_text(
        "class Box:\n    def __init__(self, v): self.v = v\ndef open_it(b): return b.v\n"
    )
    import of_the_project  # type: ignore[import-not-found]

    token = read_token_file(cluster._daemon.token_file)
    with Cluster(cluster.address, token=token) as elsewhere, WorkerPool(elsewhere, 1, SMALL) as pool:
        assert pool.submit(of_the_project.open_it, of_the_project.Box(5)).result(timeout=9) == 5
        boxes = [of_the_project.Box(n) for n in range(100)]
        assert [future.result(timeout=8) for future in pool.map(of_the_project.open_it, boxes)] == list(range(100))


def test_a_result_comes_back_soon(pool: WorkerPool) -> None:
    """Far below what a thread that polls, or one reply per task with a timer, would take."""
    took = []
    for number in range(50):
        began = time.perf_counter()
        pool.submit(square, number).result(timeout=8)
        took.append(time.perf_counter() - began)
    assert sorted(took)[25] < 0.05
