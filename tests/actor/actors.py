"""Actors that the tests of this folder host, and what travels to them and back."""

from __future__ import annotations

import array
import asyncio
import itertools
import os
import pickle
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from fluster import ActorContext, ActorServer, FixedResolver, current_actor


class Block:
    """An array in the eyes of pickle: memory that travels beside the pickle, and is writable where it arrives."""

    def __init__(self, memory: Any) -> None:
        self.memory = memoryview(memory).cast("B")

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Block, (pickle.PickleBuffer(self.memory),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Block) and self.memory == other.memory

    def __hash__(self) -> int:
        return id(self)

    @property
    def seed(self) -> int | None:
        """What it was made of; `None` if its bytes are not all the same."""
        value: int = self.memory[0]
        return value if self.memory == memoryview(bytes([value]) * len(self.memory)) else None


def block_of(seed: int, size: int) -> Block:
    """So many times the same byte."""
    return Block(bytearray([seed % 256]) * size)


def doubles(count: int) -> Block:
    """Not bytes: 0.0, 1.0, ..."""
    return Block(array.array("d", range(count)))


class Refusing(Exception):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Picky(Exception):
    """An exception that pickles, and cannot be rebuilt."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@dataclass(frozen=True)
class Frozen(Exception):
    """An exception that lets nobody set an attribute."""

    code: int


class Sulking:
    """A value whose pickling raises what it is told to."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        raise self.error


class Landmine:
    """A value that raises where it is loaded."""

    def __init__(self, kind: type[BaseException], *args: Any) -> None:
        self.kind, self.args = kind, args

    def __reduce__(self) -> tuple[Any, ...]:
        return _raise, (self.kind, self.args)


def _raise(kind: type[BaseException], args: tuple[Any, ...]) -> None:
    raise kind(*args)


class Worker:
    """An actor with a little of everything."""

    attribute = 5

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.count = 0
        self.log: list[Any] = []
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.running = self.most = 0
        self.produced = 0
        self.closed = threading.Event()
        self._lock = threading.Lock()

    @property
    def looks_like_a_method(self) -> Any:
        raise AssertionError("a property was run")

    def _hidden(self) -> None:
        raise AssertionError("a hidden method was run")

    def add(self, a: Any, b: Any = 1) -> Any:
        return a + b

    def echo(self, /, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    def same(self, value: Any) -> Any:
        return value

    def pid(self) -> int:
        return os.getpid()

    def thread(self) -> int:
        return threading.get_ident()

    def increment(self) -> int:
        """Not safe for several threads on purpose."""
        count = self.count
        self.count = count + 1
        return self.count

    def total(self) -> int:
        return self.count

    def note(self, value: Any) -> None:
        self.log.append(value)

    def notes(self) -> list[Any]:
        return self.log

    def fail(self, error: BaseException) -> None:
        raise error

    def fail_frozen(self) -> None:
        raise Frozen(7)

    def fail_refusing(self) -> None:
        raise Refusing("x")

    def fail_picky(self) -> None:
        raise Picky(1, 2)

    def fail_local(self) -> None:
        lock = threading.Lock()

        class Local(Exception):
            """Holds what cannot be pickled."""

            held = lock

        raise Local("of a class made here", lock)

    def give_lock(self) -> Any:
        return threading.Lock()

    def give_sulking(self, kind: str) -> Any:
        errors = {"refusing": Refusing("x"), "exit": SystemExit(3), "interrupt": KeyboardInterrupt()}
        return Sulking(errors[kind])

    def give_landmine(self) -> Any:
        return Landmine(ValueError, "boom")

    def keep(self, value: Any) -> int:
        self.kept.append(value)
        return len(self.kept)

    def kept_seeds(self) -> list[Any]:
        return [each.seed for each in self.kept]

    def forget(self) -> None:
        self.kept.clear()

    def seed_of(self, block: Block) -> int | None:
        return block.seed

    def make(self, seed: int, size: int) -> Block:
        return block_of(seed, size)

    def scribble(self, block: Block) -> Block:
        """Arrays that arrive may be written."""
        block.memory[:] = bytes(len(block.memory))
        return block

    def wait(self, seconds: float = 10.0) -> bool:
        """Until the gate is opened, by another thread or a concurrent call."""
        self.begun.set()
        return self.gate.wait(seconds)

    def has_begun(self, seconds: float = 10.0) -> bool:
        return self.begun.wait(seconds)

    def open_gate(self) -> None:
        self.gate.set()

    async def open_gate_async(self) -> None:
        self.gate.set()

    def nap(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def overlap(self, parties: int, seconds: float = 5.0) -> int:
        """How many run at a time, waiting for so many."""
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        until = time.monotonic() + seconds
        while self.most < parties and time.monotonic() < until:
            time.sleep(0.001)
        with self._lock:
            self.running -= 1
        return self.most

    def nap_and_note(self, seconds: float, value: Any) -> None:
        time.sleep(seconds)
        self.log.append(value)

    async def async_add(self, a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    async def async_overlap(self, parties: int, seconds: float = 5.0) -> tuple[int, int]:
        self.running += 1
        self.most = max(self.most, self.running)
        until = time.monotonic() + seconds
        while self.most < parties and time.monotonic() < until:
            await asyncio.sleep(0.001)
        self.running -= 1
        return self.most, threading.get_ident()

    async def async_wait(self) -> None:
        self.begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.closed.set()
            raise

    async def async_fail(self, error: BaseException) -> None:
        raise error

    async def async_has_begun(self) -> bool:
        return self.begun.is_set()

    def count_to(self, number: int) -> Iterator[int]:
        try:
            for each in range(number):
                self.produced += 1
                yield each
        finally:
            self.closed.set()

    def count_for_ever(self) -> Iterator[int]:
        try:
            for each in itertools.count():
                self.produced = each + 1
                yield each
        finally:
            self.closed.set()

    def how_many_produced(self) -> int:
        return self.produced

    def is_closed(self, seconds: float = 0.0) -> bool:
        return self.closed.wait(seconds)

    def count_and_fail(self, number: int) -> Iterator[int]:
        yield from range(number)
        raise ValueError("in the middle")

    def blocks(self, count: int, size: int) -> Iterator[Block]:
        """One memory, changed from item to item."""
        memory = bytearray(size)
        for each in range(count):
            memory[:] = bytes([each % 256]) * size
            yield Block(memory)

    async def async_count_to(self, number: int) -> AsyncIterator[int]:
        try:
            for each in range(number):
                self.produced += 1
                yield each
                await asyncio.sleep(0)
        finally:
            self.closed.set()

    async def async_count_and_fail(self, number: int) -> AsyncIterator[int]:
        for each in range(number):
            yield each
        raise ValueError("in the middle")

    def with_ctx(self, ctx: ActorContext, value: int) -> tuple[bool, int]:
        return ctx is current_actor(), value

    def with_annotation(self, surroundings: ActorContext, value: int) -> tuple[bool, int]:
        return surroundings is current_actor(), value

    async def async_with_ctx(self, ctx: ActorContext, value: int) -> tuple[bool, int]:
        await asyncio.sleep(0)
        return ctx is current_actor(), value

    def kwarg_ctx(self, value: int, ctx: int = 3) -> tuple[int, int]:
        """Not the first parameter: the caller's own."""
        return value, ctx

    def descriptors(self) -> int:
        return len(os.listdir("/proc/self/fd"))

    def resident_bytes(self) -> int:
        return resident_bytes()

    def call_other(self, address: str, access_key: str, method: str, *args: Any) -> Any:
        """Calls another actor, or itself, from inside of a call."""
        resolver = FixedResolver({"worker": address}, access_key=access_key)
        try:
            return getattr(resolver.lookup("worker").call(timeout=20.0), method)(*args)
        finally:
            resolver.close()


def resident_bytes() -> int:
    """Of this process, as the kernel counts them."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Serves a `Worker` in a process of its own: prints its address and key, and ends when its input does."""
    server = ActorServer(None, port=int(sys.argv[1]), max_concurrency=int(sys.argv[2]))
    server.register("worker", Worker())
    server.serve_background()
    print(server.address, server.access_key, flush=True)
    sys.stdin.read()
    server.shutdown(grace_period=1.0)


if __name__ == "__main__":
    main()
