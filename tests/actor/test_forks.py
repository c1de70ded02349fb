"""Forked children use their parent's proxies while the parent uses them too."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.actor.actors import block_of
from tests.actor.conftest import There

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def in_child(work: Callable[[], None]) -> int:
    """Forks; gives the child's pid. It ends with 0 if the work raised nothing."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
        finally:
            os._exit(code)
    return pid


def end_well(pids: list[int], within_s: float = 30.0) -> None:
    until = time.monotonic() + within_s
    left = set(pids)
    while left and time.monotonic() < until:
        for pid in list(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                left.discard(pid)
                assert os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.005)
    for pid in left:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert not left, "children hang"


def test_parent_and_children_call_at_the_same_time(there: There, way: str) -> None:
    worker = there.pool.call(20.0)
    assert worker.seed_of(block_of(1, 1 << 20)) == 1
    stop = threading.Event()
    failures: list[BaseException] = []
    calls = 0

    def use(number: int) -> None:
        nonlocal calls
        try:
            while not stop.is_set():
                assert there.call().same((number, calls))[0] == number
                assert worker.same.submit(number).result(20) == number
                assert worker.seed_of(block_of(number, 300_000)) == number
                calls += 1
        except BaseException as error:
            failures.append(error)

    def child() -> None:
        for each in range(5):
            assert worker.same(("child", each)) == ("child", each)
            assert there.call().same.submit(each).result(20) == each
            assert worker.seed_of(block_of(each, 300_000)) == each
            worker.increment()

    threads = [threading.Thread(target=use, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        end_well([in_child(child) for _ in range(12)])
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert not failures
    assert worker.total() == 60


def test_a_child_that_ends_takes_no_connection_of_its_parent_along(there: There, way: str) -> None:
    worker = there.pool.call(20.0)
    waiting: Any = worker.nap.submit(0.5)

    def child() -> None:
        there.resolver.close()

    end_well([in_child(child) for _ in range(3)])
    assert waiting.result(20) == 0.5
    assert worker.add(1) == 2
