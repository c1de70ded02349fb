"""Deadlines: a caller is told in time, whatever the other side does, and what need not be done is not done."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.actor.actors import block_of
from tests.actor.conftest import Here, There, eventually

from fluster import ActorCallTimeout

SOON_S = 2.0
"""Slack on a loaded machine."""


def late(call: Callable[[], Any], timeout_s: float) -> None:
    """The call ends at its deadline, and not much later."""
    began = time.monotonic()
    with pytest.raises(ActorCallTimeout) as caught:
        call()
    assert isinstance(caught.value, TimeoutError)
    assert timeout_s - 0.01 <= time.monotonic() - began < timeout_s + SOON_S


def test_a_call_ends_at_its_deadline_and_later_ones_go_on(here: Here) -> None:
    late(lambda: here.pool.call(0.1).wait(30.0), 0.1)
    late(lambda: here.pool.call(30.0).note.options(timeout=0.2)("too late"), 0.2)
    late(lambda: here.pool.call(0.1).note.submit("too late").result(), 0.1)
    late(lambda: here.pool.broadcast(0.1).note("too late")[0].result(), 0.1)
    here.worker.gate.set()
    assert here.call().notes() == []  # what waited too long was not begun
    assert here.call().add(1) == 2


def test_there_is_no_deadline_by_default(here: Here) -> None:
    waiting = here.pool.call().wait.submit(30.0)
    assert here.worker.begun.wait(10)
    late(lambda: here.pool.call(0.3).add(1), 0.3)
    here.worker.gate.set()
    assert waiting.result(20) is True


def test_a_coroutine_is_cancelled_at_the_deadline(here: Here) -> None:
    late(lambda: here.pool.call(0.2).async_wait(), 0.2)
    assert here.worker.closed.wait(10)


def test_a_method_that_raises_a_timeout_of_its_own_is_no_deadline(here: Here) -> None:
    for method in ("fail", "async_fail"):
        with pytest.raises(TimeoutError, match="mine") as caught:
            getattr(here.pool.call(20.0), method)(TimeoutError("mine"))
        assert not isinstance(caught.value, ActorCallTimeout)


def test_many_threads_with_deadlines_and_one_without(here: Here) -> None:
    """Whoever reads for all leaves at its deadline: another must take over, or the last one waits for ever."""
    worker = here.pool.call()
    results: list[Any] = []
    patient = [threading.Thread(target=lambda: results.append(worker.async_wait_for_gate())) for _ in range(4)]

    async def async_wait_for_gate() -> bool:
        import asyncio

        while not here.worker.gate.is_set():
            await asyncio.sleep(0.002)
        return True

    here.worker.async_wait_for_gate = async_wait_for_gate  # type: ignore[attr-defined]

    def hurried(number: int) -> None:
        for each in range(15):
            with pytest.raises(ActorCallTimeout):
                worker.async_wait_for_gate.options(timeout=0.002 * ((number + each) % 9))()

    threads = [threading.Thread(target=hurried, args=(number,)) for number in range(8)]
    for thread in patient + threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    here.worker.gate.set()
    for thread in patient:
        thread.join(10)
        assert not thread.is_alive()
    assert results == [True] * 4


def test_a_first_call_to_a_process_that_does_not_run_ends_at_its_deadline(there: There, way: str) -> None:
    there.send(signal.SIGSTOP)
    late(lambda: there.call(0.3).add(1), 0.3)
    late(lambda: there.call(0.3).add.submit(1).result(), 0.3)
    there.send(signal.SIGCONT)
    assert there.call(20.0).add(1) == 2


def test_a_stopped_process_is_late_and_no_failure(there: There, way: str) -> None:
    assert there.call().add(1) == 2
    there.send(signal.SIGSTOP)
    waiting = there.pool.call().increment.submit()
    late(lambda: there.call(0.3).add(1), 0.3)
    assert not waiting.done()
    there.send(signal.SIGCONT)
    assert waiting.result(20) == 1
    assert there.call().total() == 1


def test_large_arguments_for_a_process_that_does_not_read_end_at_their_deadline(there: There, way: str) -> None:
    assert there.call().add(1) == 2
    there.send(signal.SIGSTOP)
    waiting = there.pool.call().increment.submit()
    for _ in range(3):
        late(lambda: there.call(0.3).seed_of(block_of(1, 16 << 20)), 0.3)
    late(lambda: there.call(0.3).seed_of.submit(block_of(1, 16 << 20)).result(), 0.3)
    late(lambda: there.call(0.3).add(1), 0.3)
    there.send(signal.SIGCONT)
    assert waiting.result(20) == 1
    assert there.call().seed_of(block_of(5, 16 << 20)) == 5
    assert there.call().total() == 1


def test_more_small_calls_than_the_socket_takes_end_at_their_deadlines(there: There, way: str) -> None:
    assert there.call().add(1) == 2
    there.send(signal.SIGSTOP)
    worker = there.call(0.001)
    for _ in range(120):
        with pytest.raises(ActorCallTimeout):
            worker.same(b"x" * 8_000)
    there.send(signal.SIGCONT)
    eventually(lambda: there.call().same(b"y") == b"y")


CALLS_IN_A_HANDLER = """
import os, signal, sys, threading
from fluster import FixedResolver
resolver = FixedResolver({"worker": sys.argv[1]}, access_key=sys.argv[2])
worker, answers = resolver.lookup("worker").call(eval(sys.argv[3])), []
worker.add(1)
signal.signal(signal.SIGUSR1, lambda *_: answers.append(worker.add(41)))
timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
timer.start()
worker.wait(1.0)
print(answers)
resolver.close()
"""


@pytest.mark.parametrize("timeout", ["None", "15.0"])
def test_a_signals_handler_may_call_the_actor_that_is_waited_for(there: There, timeout: str) -> None:
    command = [sys.executable, "-c", CALLS_IN_A_HANDLER, there.address, there.access_key, timeout]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert (ran.stdout, ran.stderr) == ("[42]\n", "")
