"""Who waits for a change: handlers of long polls are woken by the loop, after the commit."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fluster.cluster.ids import JobId, WorkerId

K = TypeVar("K", bound=Hashable)

_TOGETHER_S = 0.25
"""Polls end, and so are asked again, together with those of the same quarter of a second: alone, each one would find
the process asleep and its caches cold, which costs half as much again."""
_LONG_S = 1.0


class Waiting(Generic[K]):
    """Futures of those who wait, by what they wait for."""

    def __init__(self) -> None:
        self._futures: defaultdict[K, set[asyncio.Future[None]]] = defaultdict(set)

    @contextmanager
    def for_any(self, keys: Iterable[K]) -> Iterator[asyncio.Future[None]]:
        """A future that is done once one of the keys is woken."""
        waker = asyncio.get_running_loop().create_future()
        keys = list(keys)
        for key in keys:
            self._futures[key].add(waker)
        try:
            yield waker
        finally:
            for key in keys:
                waiting = self._futures.get(key, set())
                waiting.discard(waker)
                if not waiting:
                    self._futures.pop(key, None)
            waker.cancel()

    def wake(self, key: K) -> None:
        """Wakes all who wait for it."""
        for waker in self._futures.get(key, ()):
            _finish(waker)

    def __len__(self) -> int:
        return len(self._futures)


@dataclass(slots=True)
class Wakers:
    """What can be waited for.

    Attributes:
        workers: A worker's desired set differs.
        jobs: A job has finished.
        journal: The journal has grown; there is one, its key is `None`.
    """

    workers: Waiting[WorkerId] = field(default_factory=Waiting)
    jobs: Waiting[JobId] = field(default_factory=Waiting)
    journal: Waiting[None] = field(default_factory=Waiting)


async def woken(waker: asyncio.Future[None], within_s: float) -> None:
    """Returns when the waker is done, or after so many seconds: a moment earlier, so that many are let go together."""
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    if within_s >= _LONG_S:
        until -= until % _TOGETHER_S
    timer = loop.call_at(until, _finish, waker)
    try:
        await waker
    finally:
        timer.cancel()


def _finish(waker: asyncio.Future[None]) -> None:
    if not waker.done():
        waker.set_result(None)
