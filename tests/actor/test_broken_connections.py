"""Connections break at any byte of a call: each runs once, and its caller gets the right answer."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from typing import Any

import pytest
from tests.actor.actors import Block, block_of
from tests.actor.conftest import Here, eventually
from tests.actor.cutter import Cutter, Plan

from fluster import ActorPool, ActorUnavailable, FixedResolver
from fluster.actor import line

pytestmark = pytest.mark.usefixtures("tcp", "no_pause")


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "_PAUSE_S", 0.001)


@contextmanager
def through(here: Here, plan: Plan, *, reset: bool = False) -> Iterator[tuple[ActorPool[Any], Cutter]]:
    """The actor, reached through a relay."""
    port = int(here.server.address.rpartition(":")[2])
    with Cutter(port, plan, reset=reset) as cutter:
        resolver = FixedResolver({"worker": cutter.address}, access_key=here.server.access_key)
        try:
            yield resolver.lookup("worker"), cutter
        finally:
            resolver.close()


def once(up: int | None = None, down: int | None = None) -> Plan:
    return iter([(up, down)])


def sizes(here: Here) -> tuple[int, int]:
    """Bytes of a connection with one call: to the server, to the caller."""
    with through(here, once()) as (pool, cutter):
        pool.call(10.0).increment()
        return cutter.up, cutter.down


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_cut_at_any_byte_of_a_call_runs_it_once(here: Here, reset: bool) -> None:
    up, down = sizes(here)
    expected = here.worker.count
    cuts = [(at, None) for at in range(0, up + 1, 2)] + [(None, at) for at in range(0, down + 1, 2)]
    cuts += [(up - 1, None), (up, None), (None, down - 1), (None, down)]
    for cut in cuts:
        with through(here, once(*cut), reset=reset) as (pool, cutter):
            expected += 1
            assert pool.call(20.0).increment() == expected, cut
            assert pool.call(20.0).total() == expected, cut
            assert cutter.cuts == 1, cut
    assert here.worker.count == expected


def test_a_cut_at_any_byte_of_a_future_runs_it_once(here: Here) -> None:
    up, down = sizes(here)
    expected = here.worker.count
    for cut in [(at, None) for at in range(0, up + 40, 7)] + [(None, at) for at in range(0, down + 40, 7)]:
        with through(here, once(*cut)) as (pool, _):
            futures = [pool.call(20.0).increment.submit() for _ in range(4)]
            assert [future.result(20) for future in futures] == [expected + n for n in (1, 2, 3, 4)], cut
            expected += 4
    assert here.worker.count == expected


def test_a_connection_that_breaks_again_and_again_gets_there(here: Here) -> None:
    up, down = sizes(here)
    plan = iter([(up - 1, None), (None, down - 1), (1, None), (95, None), (None, 1), (None, 65), (57, None)])
    with through(here, plan) as (pool, cutter):
        before = here.worker.count
        assert pool.call(20.0).increment() == before + 1
        assert here.worker.count == before + 1
        assert cutter.cuts == 7


def test_a_method_goes_on_while_its_caller_is_away(here: Here) -> None:
    with through(here, once(None, 66 + 1)) as (pool, cutter):
        slow = pool.call(20.0).wait.submit(20.0)
        assert here.worker.begun.wait(10)
        quick = pool.call(20.0).async_add.submit(1, 2)  # its reply is where the cut is
        eventually(lambda: cutter.cuts == 1)
        assert quick.result(20) == 3
        assert not slow.done()
        here.worker.gate.set()
        assert slow.result(20) is True


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("way_of_calling", ["call", "submit"])
def test_large_messages_are_cut_in_the_middle(here: Here, share: float, way_of_calling: str) -> None:
    size = 6 << 20

    def exchange(block: Block) -> Block:
        here.worker.count += 1
        return block_of((block.seed or 0) + 1, size)

    here.worker.exchange = exchange  # type: ignore[attr-defined]
    cut = int(size * share) + 300
    for plan in ([(cut, None)], [(None, cut)], [(cut, None), (None, cut), (None, cut // 2)]):
        with through(here, iter(plan)) as (pool, cutter):
            before = here.worker.count
            method = pool.call(20.0).exchange
            block = block_of(5, size)
            if way_of_calling == "call":
                back = method(block)
            else:
                future = method.submit(block)
                block.memory[:] = bytes(size)
                back = future.result(20)
            assert back.seed == 6
            assert here.worker.count == before + 1
            assert cutter.cuts == len(plan)


@pytest.mark.parametrize("method", ["count_to", "async_count_to"])
def test_streams_go_on_where_they_were(here: Here, method: str) -> None:
    plan = ((None, 66 + at) for at in itertools.chain(range(1, 2_000, 97), range(5_000, 20_000, 1_000)))
    with through(here, plan) as (pool, cutter):
        for length in (1, 20, 300, 1_000):
            here.worker.produced = 0
            assert list(getattr(pool.call(20.0), method).stream(length)) == list(range(length))
            assert here.worker.produced == length
        assert cutter.cuts > 10


def test_a_server_that_is_gone_behind_a_broken_connection_is_unavailable_at_once(here: Here) -> None:
    with through(here, once()) as (pool, _):
        waiting = pool.call().wait.submit(20.0)
        assert here.worker.begun.wait(10)
    began = time.monotonic()
    with pytest.raises(ActorUnavailable):
        waiting.result(20)
    assert time.monotonic() - began < 3.0


def test_calls_of_many_threads_survive_any_cuts(here_4: Here) -> None:
    randomness = random.Random(7)
    lock = threading.Lock()
    counted = 0

    def plan() -> Plan:
        while True:
            at = int(10 ** randomness.uniform(1.8, 5.5))
            yield (at, None) if randomness.random() < 0.5 else (None, at)

    def count() -> int:
        nonlocal counted
        with lock:
            counted += 1
        return counted

    here_4.worker.count_one = count  # type: ignore[attr-defined]
    until = time.monotonic() + 3.0
    made = itertools.count(1)
    made_in_all = 0
    failures: list[BaseException] = []

    def work(pool: ActorPool[Any], number: int) -> None:
        nonlocal made_in_all
        try:
            each = 0
            while time.monotonic() < until:
                each += 1
                worker = pool.call(20.0)
                assert worker.same((number, each)) == (number, each)
                worker.count_one()
                futures = [worker.same.submit((number, each, n)) for n in range(20)]
                counts = [worker.count_one.submit() for _ in range(5)]
                assert worker.seed_of(block_of(each, 40_000)) == each % 256
                assert [future.result(20) for future in futures] == [(number, each, n) for n in range(20)]
                wait(counts, 20)
                if each % 5 == 0:
                    assert list(worker.count_to.stream(30)) == list(range(30))
                made_in_all = max(made_in_all, *(next(made) for _ in range(6)))
        except BaseException as error:
            failures.append(error)

    with through(here_4, plan()) as (pool, cutter):
        threads = [threading.Thread(target=work, args=(pool, number)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
            assert not thread.is_alive()
        assert not failures, failures
        assert counted == next(made) - 1
        assert cutter.cuts > 10
