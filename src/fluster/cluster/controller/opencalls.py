"""Calls that are being answered: long polls and streams of a token end with the token."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fluster.cluster.controller.auth import Authenticator, Identity
from fluster.cluster.tokens import TokenKind

LOOK_S = 1.0
"""A call outlives its token by this at most."""
_LOOKED_AT = (TokenKind.USER, TokenKind.ATTEMPT)
"""Others end otherwise: a worker's older poll is superseded, the administrator's token is as old as the controller."""


class TokenEnded(Exception):
    """The token of a call that was being answered is no longer valid."""


class OpenCalls:
    """The calls of users and jobs, each by the task that answers it."""

    def __init__(self, auth: Authenticator) -> None:
        self._auth = auth
        self._calls: dict[asyncio.Task[Any], Identity] = {}
        self._ended: set[asyncio.Task[Any]] = set()

    @contextmanager
    def call(self, who: Identity) -> Iterator[None]:
        """While the block runs, it ends when the token does.

        Raises:
            TokenEnded: It did.
        """
        if who.kind not in _LOOKED_AT:
            yield
            return
        task = asyncio.current_task()
        assert task is not None
        self._calls[task] = who
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._ended:
                raise
            task.uncancel()
            raise TokenEnded from None
        finally:
            self._calls.pop(task, None)
            self._ended.discard(task)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            for task, who in list(self._calls.items()):
                if task not in self._ended and not self._auth.still_valid(who):
                    self._ended.add(task)
                    task.cancel()
