"""Calls that are being answered: long polls and streams of a token end with the token."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from fluster.cluster.controller.auth import Authenticator, Identity
from fluster.cluster.tokens import TokenKind

LOOK_S = 1.0
"""A call outlives its token by this at most."""
_LOOKED_AT = (TokenKind.USER, TokenKind.ATTEMPT)
"""Others end otherwise: a worker's older poll is superseded, the administrator's token is as old as the controller."""


class TokenEnded(Exception):
    """The token of a call that was being answered is no longer valid."""


class _Call:
    """One call. A class, not a generator: each call of a user or a job pays for it."""

    __slots__ = ("_calls", "_ended", "_task", "_who")

    def __init__(self, calls: dict[asyncio.Task[Any], Identity], ended: set[asyncio.Task[Any]], who: Identity) -> None:
        self._calls, self._ended, self._who = calls, ended, who
        task = asyncio.current_task()
        assert task is not None
        self._task = task

    def __enter__(self) -> None:
        self._calls[self._task] = self._who

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._calls.pop(self._task, None)
        if self._task in self._ended:
            self._ended.discard(self._task)
            if kind is asyncio.CancelledError:
                self._task.uncancel()
                raise TokenEnded from None


_NOT_LOOKED_AT = nullcontext()


class OpenCalls:
    """The calls of users and jobs, each by the task that answers it."""

    def __init__(self, auth: Authenticator) -> None:
        self._auth = auth
        self._calls: dict[asyncio.Task[Any], Identity] = {}
        self._ended: set[asyncio.Task[Any]] = set()

    def call(self, who: Identity) -> AbstractContextManager[None]:
        """While the block runs, it ends when the token does: by `TokenEnded`."""
        return _Call(self._calls, self._ended, who) if who.kind in _LOOKED_AT else _NOT_LOOKED_AT

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            for task, who in list(self._calls.items()):
                if task not in self._ended and not self._auth.still_valid(who):
                    self._ended.add(task)
                    task.cancel()
