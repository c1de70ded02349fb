"""The warm parents of one worker's attempts: that of its own interpreter, and those of others used lately."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fluster.cluster.worker.cgroup import WorkerCgroups
from fluster.cluster.worker.zygote import Zygote

MAX_OTHERS = 4
"""Other interpreters kept warm at a time: each takes some 20 MB. The one used longest ago gives way."""
_MAX_UNFIT = 100


class NoZygote(Exception):
    """Attempts of this interpreter must be started fresh."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """One interpreter as it was found. `state` tells it from what comes to be at the same path."""

    python: str
    venv: Path | None = None
    state: tuple[int, ...] = ()


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
        self._unfit: dict[_Kind, str] = {}

    @property
    def own(self) -> Zygote | None:
        """That of the worker's interpreter, once it was started."""
        return self._warm.get(self._own)

    async def get(self, python: str | None = None, venv: Path | None = None) -> Zygote:
        """That of an interpreter.

        Args:
            python: `None`: the worker's own.
            venv: The environment it is of, if nothing may lead it to the daemon's packages.

        Raises:
            ZygoteDied: It cannot run the job runtime.
            NoZygote: A fork of it would differ from a fresh process.
        """
        kind = self._own if python is None or python == self._own.python else _Kind(python, venv, _state(python))
        async with self._locks.setdefault(kind, asyncio.Lock()):
            zygote = self._warm.pop(kind, None)
            if zygote is not None and not zygote.alive:
                await zygote.close()
                zygote = None
            if zygote is None:
                zygote = await self._start(kind)
            self._warm[kind] = zygote
        await self._make_room(kind)
        return zygote

    async def close(self) -> None:
        """Ends them all; their shims go on."""
        zygotes = [*self._warm.values()]
        self._warm.clear()
        await asyncio.gather(*(zygote.close() for zygote in zygotes))

    async def _start(self, kind: _Kind) -> Zygote:
        if kind == self._own:
            return await Zygote.start(kind.python, self._cgroups, self._lifeline_fd)
        if why := self._unfit.get(kind):
            raise NoZygote(why)
        if not _is_program(kind.python):
            raise self._refuse(kind, "is a script: what it sets up for its interpreter is lost in a fork")
        zygote = await Zygote.start(kind.python, self._cgroups, self._lifeline_fd, venv=kind.venv)
        if zygote.threads != 1:
            await zygote.close()
            raise self._refuse(kind, "runs threads once it has started, which a fork would lack")
        return zygote

    def _refuse(self, kind: _Kind, why: str) -> NoZygote:
        if len(self._unfit) >= _MAX_UNFIT:
            self._unfit.clear()
        self._unfit[kind] = f"{kind.python} {why}"
        return NoZygote(self._unfit[kind])

    async def _make_room(self, kept: _Kind) -> None:
        others = [kind for kind in self._warm if kind not in (self._own, kept)]
        outdated = [kind for kind in others if (kind.python, kind.venv) == (kept.python, kept.venv)]
        for kind in outdated or others[: max(0, len(others) + (kept != self._own) - MAX_OTHERS)]:
            self._locks.pop(kind, None)
            await self._warm.pop(kind).close()


def _is_program(python: str) -> bool:
    with open(python, "rb") as file:
        return file.read(4) == b"\x7fELF"


def _state(python: str) -> tuple[int, ...]:
    """What changes when another interpreter, or another environment, takes its place, or packages come or go."""
    return tuple(number for path in (Path(python), *_places(python)) for number in _stamp(path))


def _places(python: str) -> Iterator[Path]:
    prefix = Path(python).parents[1]
    yield prefix / "pyvenv.cfg"
    yield from sorted(prefix.glob("lib*/python3*/*-packages"))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns
