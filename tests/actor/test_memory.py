"""Large buffers: shared between processes of one machine, never seen to change, and given back."""

from __future__ import annotations

import array
import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.actor.actors import Block, block_of, resident_bytes
from tests.actor.conftest import Here, There, eventually

from fluster.actor import link as links

LARGE = 1 << 20
MB = 1 << 20


@pytest.mark.parametrize("size", [1, 16 << 10, (256 << 10) - 1, 256 << 10, (256 << 10) + 1, 3 * LARGE + 17])
def test_buffers_of_all_sizes_come_back_as_they_went(there: There, way: str, size: int) -> None:
    memory = bytearray(os.urandom(size))
    back = there.call().same([Block(memory), size, Block(bytearray(memory[::-1])), Block(b"tiny")])
    assert [back[0], back[2], back[3]] == [Block(memory), Block(bytearray(memory[::-1])), Block(b"tiny")]
    assert back[1] == size


@pytest.mark.parametrize("size", [100, 100_000, LARGE])
def test_what_arrives_is_writable_and_a_copy(there: There, way: str, size: int) -> None:
    mine = block_of(7, size)
    back = there.call().scribble(mine)
    assert mine.seed == 7
    assert back.seed == 0
    back.memory[0] = 9
    assert back.memory[0] == 9


def test_arrays_within_one_process_are_copies_too(here: Here, way: str) -> None:
    mine = block_of(7, LARGE)
    here.call().keep(mine)
    mine.memory[:] = bytes(LARGE)
    assert here.call().kept_seeds() == [7]


def test_arrays_of_other_makes_travel(there: There, way: str) -> None:
    numbers = array.array("d", [1.5] * 100_000)
    structure = (ctypes.c_uint32 * 100_000)(*range(100_000))
    back = there.call().same((Block(numbers), Block(memoryview(structure)), Block(memoryview(bytes(LARGE)))))
    assert back == (Block(numbers), Block(memoryview(structure)), Block(bytes(LARGE)))


@pytest.mark.parametrize("size", [LARGE, 300_000])
def test_what_an_actor_keeps_does_not_change(there: There, way: str, size: int) -> None:
    worker = there.call()
    for seed in range(30):
        assert worker.keep(block_of(seed, size)) == seed + 1
        assert worker.seed_of(block_of(200 + seed, size)) == 200 + seed
    assert worker.kept_seeds() == list(range(30))
    worker.forget()
    for seed in range(10):
        assert worker.seed_of(block_of(seed, size)) == seed


def test_what_a_caller_keeps_does_not_change(there: There, way: str) -> None:
    worker = there.call()
    kept = []
    for seed in range(30):
        kept.append(worker.make(seed, LARGE))
        assert worker.make(200 + seed, LARGE).seed == 200 + seed
    assert [each.seed for each in kept] == list(range(30))


def test_what_is_kept_survives_the_connection_and_the_server(there: There, way: str) -> None:
    kept = [there.call().make(seed, LARGE) for seed in range(5)]
    there.kill()
    there.resolver.close()
    assert [each.seed for each in kept] == list(range(5))


def test_a_part_of_what_was_sent_is_kept(there: There, way: str) -> None:
    """A small piece of a large buffer holds on to all of it."""
    back = there.call().same([block_of(1, LARGE), block_of(2, LARGE)])
    part = back[1].memory[100:110]
    del back
    for seed in range(20):
        assert there.call().same([block_of(seed, LARGE), block_of(seed, LARGE)])[0].seed == seed
    assert bytes(part) == bytes([2]) * 10


def test_changing_arguments_after_submit_reaches_no_actor(there: There, way: str) -> None:
    worker = there.call()
    for _ in range(5):
        blocked = worker.nap.submit(0.05)
        memory = bytearray([5]) * (3 * LARGE)
        small = bytearray([5]) * 50_000
        future, other = worker.seed_of.submit(Block(memory)), worker.seed_of.submit(Block(small))
        memory[:] = bytes(len(memory))
        small[:] = bytes(len(small))
        assert (future.result(20), other.result(20)) == (5, 5)
        blocked.result(20)


def test_changing_arguments_after_submit_reaches_no_actor_over_a_connection_that_broke(
    there: There, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = there.call()
    assert worker.add(1) == 2
    real = links.Link.send

    def send(self: Any, *args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(links.Link, "send", real)
        raise ConnectionResetError("cut by the test")

    monkeypatch.setattr(links.Link, "send", send)
    memory = bytearray([5]) * LARGE
    blocked = there.pool.call().seed_of.submit(Block(memory))
    memory[:] = bytes(LARGE)
    assert blocked.result(20) == 5


def test_results_changed_by_the_actor_afterwards_stay_what_they_were(here: Here, way: str) -> None:
    """The reply may wait in the server: over TCP it does not fit into the socket."""
    state = bytearray([1]) * (12 * MB)

    def give(value: int) -> Block:
        state[:] = bytes([value]) * len(state)
        return Block(state)

    here.worker.give = give  # type: ignore[attr-defined]
    futures = [here.call().give.submit(value) for value in range(6)]
    assert [future.result(20).seed for future in futures] == list(range(6))


def test_memory_and_descriptors_stay_flat_over_many_large_calls(there: There, way: str) -> None:
    worker = there.call()

    def work(rounds: int) -> None:
        for each in range(rounds):
            assert worker.seed_of(block_of(each, 4 * MB)) == each % 256
            assert len(worker.make(each, 4 * MB).memory) == 4 * MB
            assert worker.seed_of.submit(block_of(each, 4 * MB)).result(20) == each % 256
            try:
                worker.fail(ValueError(block_of(each, MB)))
            except ValueError:
                pass

    work(6)
    before = resident_bytes(), worker.resident_bytes(), len(os.listdir("/proc/self/fd")), worker.descriptors()
    work(20)
    after = resident_bytes(), worker.resident_bytes(), len(os.listdir("/proc/self/fd")), worker.descriptors()
    assert after[0] - before[0] < 48 * MB
    assert after[1] - before[1] < 48 * MB
    assert after[2] <= before[2] + 1
    assert after[3] <= before[3] + 1


def test_shared_memory_is_used_again(there: There) -> None:
    worker = there.call()
    for seed in range(40):
        assert worker.seed_of(block_of(seed, 2 * MB)) == seed
        assert worker.make(seed, 2 * MB).seed == seed
        assert worker.seed_of.submit(block_of(seed, 2 * MB)).result(20) == seed
    (channel,) = there.resolver._channels._channels.values()
    link = channel._line.link
    assert link is not None
    assert link._slabs is not None
    assert len(link._slabs._slabs) <= 4
    assert len(link.reader.borrowed._mappings) <= 4


def test_more_than_may_be_shared_goes_through_the_stream(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept arrays use up the budget; nothing waits for it."""
    worker = here.call()
    assert worker.add(1) == 2
    (channel,) = here.resolver._channels._channels.values()
    link = channel._line.link
    assert link is not None
    assert link._slabs is not None
    monkeypatch.setattr(link._slabs, "_budget", 4 * MB)
    for seed in range(8):
        worker.keep(block_of(seed, MB))
        assert worker.seed_of(block_of(seed, 6 * MB)) == seed
    assert worker.kept_seeds() == list(range(8))


def test_many_threads_share_memory_without_mixing_it_up(there: There, way: str) -> None:
    failures: list[BaseException] = []
    until = time.monotonic() + 1.2

    def work(number: int) -> None:
        try:
            kept: list[tuple[int, Block]] = []
            seed = number
            while time.monotonic() < until:
                seed = (seed * 7 + 13) % 256
                size = 260_000 + 50_000 * (seed % 5)
                worker = there.call()
                if seed % 3 == 0:
                    assert worker.seed_of.submit(block_of(seed, size)).result(20) == seed
                back = worker.same(block_of(seed, size))
                assert back.seed == seed
                kept.append((seed, back))
                if len(kept) > 6:
                    expected, block = kept.pop(seed % 6)
                    assert block.seed == expected
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not failures


def test_nothing_shared_has_a_name_or_outlives_its_processes(tmp_path: Path) -> None:
    there = There()
    try:
        assert there.call().seed_of(block_of(3, 8 * MB)) == 3
        assert not [name for name in os.listdir("/dev/shm") if "fluster" in name]
    finally:
        there.close()


def test_a_failing_call_with_large_arguments_holds_on_to_nothing(there: There, way: str) -> None:
    """Exceptions refer to the frames they passed; large arguments in these must not wait for the garbage collector."""
    program = f"""
import gc
gc.disable()
from tests.actor.actors import Block, block_of, resident_bytes
from fluster import FixedResolver
from fluster.actor import line
line.SAME_HOST = {way == "unix"}
worker = FixedResolver({{"worker": {there.address!r}}}, access_key={there.access_key!r}).lookup("worker").call(20)
def fail():
    block = block_of(1, 4 << 20)
    for call in (worker.missing, lambda block: worker.add(block, 1)):
        try:
            call(block)
        except (AttributeError, TypeError):
            pass
        else:
            raise AssertionError
for _ in range(5):
    fail()
before = resident_bytes()
for _ in range(25):
    fail()
assert resident_bytes() - before < 40 << 20, resident_bytes() - before
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=Path(__file__).parents[2])
    eventually(lambda: there.call().add(1) == 2)


def test_an_actor_that_keeps_many_arrays_does_not_run_out_of_descriptors(there: There) -> None:
    worker = there.call()
    before = worker.descriptors()
    for seed in range(200):
        worker.keep(block_of(seed, 260_000))
    assert worker.kept_seeds() == list(range(200))
    assert worker.descriptors() < before + 100
