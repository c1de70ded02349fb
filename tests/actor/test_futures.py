"""Futures: many at a time, given up, awaited, and called back."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError, Future, as_completed, wait
from typing import Any

import pytest
from tests.actor.actors import block_of
from tests.actor.conftest import Here, There, eventually

from fluster import ActorCallTimeout
from fluster.actor import admission
from fluster.actor.futures import ActorFuture


def test_a_thousand_outstanding_calls_come_back_right(there: There, way: str) -> None:
    worker = there.call(None)
    for _ in range(5):
        futures = [worker.same.submit(number) for number in range(1_000)]
        assert [future.result(20) for future in futures] == list(range(1_000))
    assert {future.result() for future in as_completed([worker.same.submit(n) for n in range(200)], 20)} == set(
        range(200)
    )


def test_a_future_is_one_of_concurrent_futures(here: Here) -> None:
    future = here.call().add.submit(1, 2)
    assert isinstance(future, Future)
    assert isinstance(future, ActorFuture)
    assert wait([future], 20).done == {future}
    assert future.result() == 3
    assert future.exception() is None
    failed = here.call().fail.submit(ValueError("x"))
    assert isinstance(failed.exception(20), ValueError)


def test_futures_are_awaited(here: Here) -> None:
    async def main() -> list[Any]:
        worker = here.call()
        assert await worker.add.submit(1, 2) == 3
        with pytest.raises(ValueError, match="x"):
            await worker.fail.submit(ValueError("x"))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(worker.async_wait.submit(), 0.1)
        # The coroutine was cancelled with whoever awaited it.
        await asyncio.get_running_loop().run_in_executor(None, here.worker.closed.wait, 10)
        assert here.worker.closed.is_set()
        return list(await asyncio.gather(*[worker.same.submit(number) for number in range(500)]))

    assert asyncio.run(main()) == list(range(500))


def test_a_call_cancelled_before_it_begins_does_not_run(here: Here) -> None:
    worker = here.call()
    first = worker.wait.submit(20.0)
    assert here.worker.begun.wait(10)
    others = [worker.note.submit(number) for number in range(100)]
    assert all(other.cancel() for other in others[::2])
    assert not first.done()
    worker.open_gate_async()  # after the cancellations, on the same connection
    assert first.result(20) is True
    for number, other in enumerate(others):
        if number % 2:
            assert other.result(20) is None
        else:
            with pytest.raises(CancelledError):
                other.result(20)
    assert worker.notes() == list(range(1, 100, 2))


def test_a_coroutine_is_cancelled_with_its_future(here: Here) -> None:
    future = here.call().async_wait.submit()
    assert here.worker.begun.wait(10)
    assert future.cancel()
    assert here.worker.closed.wait(10)


def test_coroutines_cancelled_at_once_leave_no_call_behind(here: Here) -> None:
    worker = here.call()
    for _ in range(300):
        worker.async_add.submit(1, 2).cancel()
        worker.add.submit(1, 2).cancel()
        worker.count_for_ever.stream().close()
    assert worker.add(1) == 2
    (session,) = here.server._sessions.values()
    eventually(lambda: not session.busy)
    began = time.monotonic()
    here.server.shutdown(grace_period=20.0)
    assert time.monotonic() - began < 10.0


def test_a_finished_future_is_not_cancelled(here: Here) -> None:
    future = here.call().add.submit(1)
    assert future.result(20) == 2
    assert not future.cancel()
    assert not future.cancelled()


def test_a_future_has_a_deadline_whatever_else_is_outstanding(here_4: Here) -> None:
    worker = here_4.pool.call()
    endless = worker.wait.submit(30.0)
    assert here_4.worker.begun.wait(10)
    for timeout in (0.5, 0.1, 0.3):
        began = time.monotonic()
        future = worker.wait.options(timeout=timeout).submit(0.8)
        with pytest.raises(ActorCallTimeout):
            future.result(20)
        assert timeout <= time.monotonic() - began + 0.01 < timeout + 1.0
    assert not endless.done()
    here_4.worker.gate.set()
    assert endless.result(20) is True


def test_many_deadlines_pass_each_at_its_time(here: Here) -> None:
    worker = here.pool.call()
    blocked = worker.wait.submit(30.0)
    assert here.worker.begun.wait(10)
    ended: dict[int, float] = {}
    began = time.monotonic()
    timeouts = {number: 0.05 + 0.01 * (number * 7 % 50) for number in range(50)}
    futures = {number: worker.note.options(timeout=each).submit(number) for number, each in timeouts.items()}
    for number, future in futures.items():
        future.add_done_callback(lambda _, number=number: ended.__setitem__(number, time.monotonic() - began))
    assert all(isinstance(future.exception(20), ActorCallTimeout) for future in futures.values())
    eventually(lambda: len(ended) == 50)
    assert all(ended[number] >= timeouts[number] - 0.01 for number in timeouts)
    worker.open_gate_async()  # after the cancellations, on the same connection
    assert blocked.result(20) is True
    assert worker.notes() == []


def test_a_callback_calls_again(here: Here) -> None:
    worker = here.call()
    results: list[Any] = []
    done = threading.Event()

    def again(future: Any) -> None:
        results.append(future.result())
        if len(results) == 50:
            done.set()
        elif len(results) % 2:
            results.append(worker.add(future.result()))
            worker.add.submit(results[-1]).add_done_callback(again)
        else:
            worker.add.submit(future.result()).add_done_callback(again)

    worker.add.submit(0).add_done_callback(again)
    eventually(lambda: len(results) >= 50)
    assert results[:50] == list(range(1, 51))


def test_submitting_more_than_may_be_on_the_way_waits(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_IN_FLIGHT", 50)
    worker = here.call(None)
    first = worker.wait.submit(30.0)
    futures: list[Any] = []
    submitter = threading.Thread(target=lambda: futures.extend(worker.same.submit(n) for n in range(500)))
    submitter.start()
    assert here.worker.begun.wait(10)
    submitter.join(0.3)
    assert submitter.is_alive()
    with pytest.raises(ActorCallTimeout):
        worker.add.options(timeout=0.2)(1)
    with pytest.raises(ActorCallTimeout):
        worker.add.options(timeout=0.2).submit(1)
    here.worker.gate.set()
    submitter.join(20)
    assert first.result(20) is True
    assert [future.result(20) for future in futures] == list(range(500))


def test_large_arguments_on_the_way_are_bounded_and_room_comes_back(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "MAX_IN_FLIGHT_BYTES", 4 << 20)
    monkeypatch.setattr(admission, "LARGE_BYTES", 1 << 10)
    worker = here.call(None)
    first = worker.wait.submit(30.0)
    assert here.worker.begun.wait(10)
    one = worker.seed_of.submit(block_of(1, 3 << 20))
    for _ in range(5):
        with pytest.raises(ActorCallTimeout):
            worker.seed_of.options(timeout=0.05)(block_of(2, 3 << 20))
        with pytest.raises(ActorCallTimeout):
            worker.seed_of.options(timeout=0.05).submit(block_of(2, 3 << 20))
    here.worker.gate.set()
    assert first.result(20) is True
    assert one.result(20) == 1
    assert worker.seed_of.options(timeout=10.0)(block_of(3, 3 << 20)) == 3
    assert worker.seed_of.options(timeout=10.0)(block_of(4, 30 << 20)) == 4  # a larger one goes alone
    (channel,) = here.resolver._channels._channels.values()
    assert channel._admission.large_bytes == 0


def test_what_a_future_does_is_bounded_by_nothing_it_keeps(here: Here) -> None:
    """Neither results nor arguments are kept by anything but the future, and by no cycle."""
    import gc

    worker = here.call()
    for _ in range(3):
        worker.same.submit(1).result(20)
        worker.fail.submit(ValueError("x")).exception(20)
        with pytest.raises(ValueError, match="y"):
            worker.fail(ValueError("y"))
    gc.collect()
    gc.disable()
    try:
        before = len([each for each in gc.get_objects() if type(each).__name__ == "_Pending"])
        for _ in range(50):
            worker.same.submit(1).result(20)
            assert worker.fail.submit(ValueError("x")).exception(20) is not None
            try:
                worker.fail(ValueError("y"))
            except ValueError:
                pass
        eventually(lambda: len([e for e in gc.get_objects() if type(e).__name__ == "_Pending"]) <= before + 1)
    finally:
        gc.enable()


def test_a_callback_that_waits_for_a_lock_keeps_no_reply_from_coming(here_4: Here) -> None:
    """The lock is held by a thread that waits for a reply, which may be the very thread that reads all of them."""
    worker, lock, called = here_4.call(), threading.Lock(), threading.Event()

    def call_back(_: Future[Any]) -> None:
        with lock:
            called.set()

    with lock:
        future = worker.wait.submit(20.0)
        future.add_done_callback(call_back)
        here_4.worker.gate.set()
        for number in range(20):
            assert worker.same(number) == number
        assert future.result(10) is not None
        assert not called.is_set()
    assert called.wait(10)
