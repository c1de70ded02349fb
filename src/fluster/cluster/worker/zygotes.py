"""The warm parents of one worker's attempts: that of its own interpreter, and those of environments used lately."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from fluster.cluster.worker.cgroup import WorkerCgroups
from fluster.cluster.worker.zygote import Zygote

MAX_SHARED = 4
"""Environments kept warm at a time: each takes some 20 MB. The one used longest ago gives way."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """One interpreter. `built_at` tells an environment from another one that took its place."""

    python: str
    built_at: int = 0


class Zygotes:
    """Starts zygotes when they are asked for, and again when they have died.

    Args:
        python: The worker's own interpreter, whose zygote stays.
        cgroups: Where attempts get control groups.
        lifeline_fd: Once it reads end of file zygotes end.
    """

    def __init__(self, python: str, cgroups: WorkerCgroups, lifeline_fd: int | None) -> None:
        self._own = _Kind(python)
        self._cgroups = cgroups
        self._lifeline_fd = lifeline_fd
        self._warm: OrderedDict[_Kind, Zygote] = OrderedDict()
        self._locks: dict[_Kind, asyncio.Lock] = {}

    @property
    def own(self) -> Zygote | None:
        """That of the worker's interpreter, once it was started."""
        return self._warm.get(self._own)

    async def get(self, python: str | None = None) -> Zygote:
        """That of an environment's interpreter, or the worker's own.

        Raises:
            ZygoteDied: The interpreter cannot run the job runtime.
        """
        kind = self._own if python is None else _Kind(python, _built_at(python))
        async with self._locks.setdefault(kind, asyncio.Lock()):
            zygote = self._warm.pop(kind, None)
            if zygote is not None and not zygote.alive:
                await zygote.close()
                zygote = None
            if zygote is None:
                venv = None if python is None else Path(python).parents[1]
                zygote = await Zygote.start(kind.python, self._cgroups, self._lifeline_fd, venv=venv)
            self._warm[kind] = zygote
        await self._make_room(kind)
        return zygote

    async def close(self) -> None:
        """Ends them all; their shims go on."""
        zygotes = [*self._warm.values()]
        self._warm.clear()
        await asyncio.gather(*(zygote.close() for zygote in zygotes))

    async def _make_room(self, kept: _Kind) -> None:
        shared = [kind for kind in self._warm if kind not in (self._own, kept)]
        for kind in shared[: max(0, len(shared) + 1 - MAX_SHARED)]:
            self._locks.pop(kind, None)
            await self._warm.pop(kind).close()


def _built_at(python: str) -> int:
    try:
        return os.stat(Path(python).parents[1] / "pyvenv.cfg").st_mtime_ns
    except OSError:
        return 0
