"""How many standalone jobs may use the machine at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


class Turns:
    """Turns for at most `limit` at a time, first come first served; those who run already only count."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @contextlib.asynccontextmanager
    async def __call__(self, *, at_once: bool = False) -> AsyncIterator[None]:
        """Waits for a turn, holds it while entered; `at_once` takes one beyond the limit if need be."""
        if not at_once and (self._taken >= self._limit or self._waiting):
            await self._wait()
        else:
            self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
            self._pass_on()

    async def _wait(self) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # given and not taken
                self._taken -= 1
                self._pass_on()
            elif mine in self._waiting:
                self._waiting.remove(mine)
            raise

    def _pass_on(self) -> None:
        while self._waiting and self._taken < self._limit:
            next_one = self._waiting.popleft()
            if not next_one.done():
                self._taken += 1
                next_one.set_result(None)


class NoTurns(Turns):
    """For attempts whose controller has counted what the machine can bear."""

    def __init__(self) -> None:
        super().__init__(limit=2**31)
