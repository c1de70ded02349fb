"""Environments of a machine: each built once, whoever asks at once, then shared and read-only, by its recipe's key."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fluster.cluster.attempt.files import read_json
from fluster.cluster.worker.cache import DEFAULT_CAP_BYTES, Shelf
from fluster.cluster.worker.jobusers import JobUsers, open_ways
from fluster.cluster.worker.uv import find_uv, uv_variables
from fluster.cluster.worker.venv_build import RECORD, Order, build_venv

_log = logging.getLogger(__name__)

Say = Callable[[str], None]


class NoUv(Exception):
    """There is nothing here to build environments with."""

    def __init__(self) -> None:
        super().__init__(
            "this worker has no uv, which builds environments: install `fluster-cluster[server]`, or uv, where it runs"
        )


@dataclass(frozen=True, slots=True)
class Venv:
    """An environment that is there.

    Attributes:
        path: Its directory.
        told: What it took, for people.
    """

    path: Path
    told: str

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.path / "bin" / "python")


@dataclass(slots=True)
class _Build:
    """One that is being made. `listeners`: those who wait for it, by a number of their own."""

    task: asyncio.Task[None] | None = None
    phase: str = ""
    listeners: dict[int, Say] = field(default_factory=dict)

    def say(self, phase: str) -> None:
        """Tells all who wait."""
        self.phase = phase
        for listener in list(self.listeners.values()):
            listener(phase)


class Venvs:
    """The environments below one directory, which all workers of a user on a machine may share.

    Args:
        directory: Theirs.
        environment: Of the daemon.
        cap_bytes: What they may take in all; those in use are kept beyond it.
        users: Whose processes build them; default: this process's user's.
    """

    def __init__(
        self,
        directory: Path,
        environment: Mapping[str, str],
        *,
        cap_bytes: int = DEFAULT_CAP_BYTES,
        users: JobUsers | None = None,
    ) -> None:
        self._shelf = Shelf(directory)
        self._environment = uv_variables(environment)
        self._cap_bytes = cap_bytes
        self._users = users or JobUsers()
        self._builds: dict[str, _Build] = {}
        self._numbers = 0

    async def provide(self, order: Order, attempt: Path, say: Say) -> Venv:
        """The environment, built if it is not there, and marked as used by the attempt until `release`.

        Args:
            order: What it is to be.
            attempt: The attempt's directory.
            say: Called with each phase of building it.

        Raises:
            UvFailed: It cannot be built.
            NoUv: There is nothing here to build it with.
            OSError: No room for it.
        """
        key, began, built = order.recipe.key, time.monotonic(), False
        while True:
            if key not in self._builds:
                async with self._shelf.locked(key, lambda: say("building: another worker of this machine is at it")):
                    if self._shelf.path(key).is_dir():
                        self._shelf.use(key, attempt)
                        return Venv(self._shelf.path(key), self._tell(key, built, time.monotonic() - began))
            await self._join(key, order, say)
            built = True

    def release(self, attempt: str) -> None:
        """The attempt of that uid has ended."""
        self._shelf.release(attempt)

    def _tell(self, key: str, built: bool, seconds: float) -> str:
        if not built:
            return f"environment {key[:8]} was there, {seconds:.2f} s"
        record = read_json(self._shelf.path(key) / RECORD) or {}
        phases = ", ".join(f"{phase} {took:.1f} s" for phase, took in record.get("phases", {}).items())
        return f"environment {key[:8]} built in {seconds:.1f} s ({phases})"

    async def _join(self, key: str, order: Order, say: Say) -> None:
        """Waits for the build, which ends when nobody waits for it any more."""
        build = self._builds.get(key)
        if build is None:
            build = self._builds[key] = _Build()
            build.task = asyncio.create_task(self._make(key, order, build.say))
        self._numbers += 1
        number = self._numbers
        build.listeners[number] = say
        if build.phase:
            say(build.phase)
        assert build.task is not None
        try:
            await asyncio.shield(build.task)
        finally:
            del build.listeners[number]
            if not build.listeners:
                build.task.cancel()
                await asyncio.wait([build.task])
            if build.task.done() and self._builds.get(key) is build:
                del self._builds[key]

    async def _make(self, key: str, order: Order, say: Say) -> None:
        async with self._shelf.locked(key):
            if self._shelf.path(key).is_dir():
                return
            uv = find_uv()
            if uv is None:
                raise NoUv
            if self._users.there:
                open_ways((self._shelf.directory.parent, self._shelf.directory, self._shelf.directory / "making"))
            builder = f"build of {key}"
            try:
                order = replace(order, user=self._users.take(builder))
                made = await build_venv(uv, order, self._shelf.new(key), self._environment, say)
                self._shelf.put(key, made)
            finally:
                await asyncio.to_thread(self._shelf.clear, key)
                self._users.give_back(builder)
            await asyncio.to_thread(self._evict)

    def _evict(self) -> None:
        for gone in self._shelf.evict(self._cap_bytes, _size_of):
            _log.info("environment %s was not used for longest and gave way", gone)


def _size_of(venv: Path) -> int:
    """What it takes; nothing for what has no record, which somebody else put there."""
    return int((read_json(venv / RECORD) or {}).get("bytes", 0))
