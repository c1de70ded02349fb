"""The steps that make one environment: its interpreter, what is installed into it, and the record of it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import re
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fluster.cluster.attempt.files import write_json
from fluster.cluster.attempt.user import end_all, give
from fluster.cluster.worker.jobusers import variables_of
from fluster.cluster.worker.recipe import PROJECT, REQUIREMENTS_LOCK, UV_LOCK, Recipe
from fluster.cluster.worker.uv import Fault, UvFailed, run_uv

_log = logging.getLogger(__name__)

RECORD = "fluster-environment.json"
"""In the environment: what it took and takes."""
_OURS = "fluster-cluster"
_RESOLVED = re.compile(r"Resolved (\d+) package")
_PREPARED = re.compile(r"Prepared (\d+) package")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Order:
    """One environment to be built.

    Attributes:
        wheel: Fluster's own.
        workspace: Where the recipe's project is.
        user: Who builds it: packages may bring programs that build them. `None`: this process's user.
    """

    recipe: Recipe
    wheel: Path
    workspace: Path | None
    user: int | None = None


class _Phases:
    """Says what is going on, and remembers how long each phase took."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._began = time.monotonic()
        self._name = ""
        self.took: dict[str, float] = {}

    def enter(self, name: str, what: str) -> None:
        """The next phase."""
        self.leave()
        self._name = name
        self._say(f"building: {name} {what}")

    def leave(self) -> None:
        """The phase is over."""
        now = time.monotonic()
        if self._name:
            self.took[self._name] = self.took.get(self._name, 0.0) + now - self._began
        self._began = now

    def heed(self, line: str) -> None:
        """A line of uv's."""
        if found := _RESOLVED.search(line):
            self.enter("fetching", _packages(int(found[1])))
        elif found := _PREPARED.search(line):
            self.enter("installing", _packages(int(found[1])))


def _packages(count: int) -> str:
    return f"{count} package{'' if count == 1 else 's'}"


async def build_venv(uv: str, order: Order, making: Path, environment: Mapping[str, str], say: Say) -> Path:
    """Builds the environment below `making`, a directory to be made; where it is, ready to be renamed.

    Raises:
        UvFailed: It cannot be built. What arrived damaged has been asked for again without any cache.
        OSError: No room for it.
    """
    phases = _Phases(say)
    phases.enter("resolving", _packages(order.recipe.count + 1))
    try:
        return await _attempt(uv, order, making, environment, phases, ())
    except UvFailed as failure:
        if failure.fault is not Fault.DAMAGE:
            raise
        _log.warning("something arrived damaged, or was kept so; building again without a cache: %s", failure)
    await asyncio.to_thread(shutil.rmtree, making)
    phases.enter("resolving", f"{_packages(order.recipe.count + 1)} again without a cache: something arrived damaged")
    return await _attempt(uv, order, making, environment, phases, ("--no-cache",))


async def _attempt(
    uv: str, order: Order, making: Path, environment: Mapping[str, str], phases: _Phases, options: Sequence[str]
) -> Path:
    recipe, venv, project = order.recipe, making / "venv", making / "project"
    await asyncio.to_thread(_lay_out, order, project)
    if order.user is not None:
        environment = await asyncio.to_thread(_move_in, making, order.user, environment)

    async def run(*arguments: str) -> None:
        await run_uv(
            uv,
            (*arguments, *options),
            directory=project,
            environment=environment,
            heard=phases.heed,
            user=order.user,
        )

    await run("venv", "--quiet", "--relocatable", "--no-project", "--python", recipe.python, str(venv))
    sources = await _sources(order, run)
    install = ["pip", "install", "--python", str(venv / "bin" / "python"), *sources]
    await run(*install, "-r", "../packages.txt", "--overrides", "../own.txt")
    phases.leave()
    if order.user is not None:
        await asyncio.to_thread(_take_over, venv, order.user)
    await asyncio.to_thread(_complete, venv, phases.took)
    return venv


def _lay_out(order: Order, project: Path) -> None:
    """What uv reads: copies, because the workspace belongs to an attempt that may end before."""
    files = order.recipe.project
    if files is not None and files.needs_files and order.workspace is not None:
        shutil.copytree(order.workspace, project, symlinks=True)
    else:
        project.mkdir(parents=True)
        for name in (PROJECT, files.lock) if files is not None and order.workspace is not None else ():
            if name:
                shutil.copyfile(order.workspace / name, project / name)  # type: ignore[operator]
    wheel = order.wheel.absolute()
    if order.user is not None:  # who cannot read the worker's cache
        wheel = Path(shutil.copyfile(wheel, project.parent / wheel.name)).absolute()
    own = f"{_OURS} @ {wheel.as_uri()}\n"
    (project.parent / "own.txt").write_text(own)
    (project.parent / "packages.txt").write_text("".join(f"{each}\n" for each in order.recipe.packages) + own)
    if files is not None and files.lock == REQUIREMENTS_LOCK:
        (project.parent / "lock.txt").write_text(_without_ours((project / files.lock).read_text(encoding="utf-8")))


def _without_ours(lock: str) -> str:
    """A requirements lock without Fluster, which is this cluster's."""
    entries = re.split(r"(?m)^(?=[A-Za-z0-9])", lock)
    return "".join(each for each in entries if not re.match(rf"{_OURS}\b(?!-)", each.replace("_", "-").lower()))


async def _sources(order: Order, run: Callable[..., Awaitable[None]]) -> list[str]:
    """Where the project's dependencies are told to the installer."""
    files, extras = order.recipe.project, [option for each in order.recipe.extras for option in ("--extra", each)]
    if files is None:
        return []
    if files.lock == UV_LOCK:
        options = ("--quiet", "--frozen", "--no-header", "--no-emit-project", "--no-emit-local")
        await run("export", *options, "--no-dev", "--no-emit-package", _OURS, *extras, "-o", "../lock.txt")
        return ["-r", "../lock.txt"]
    pinned = ["-c", "../lock.txt"] if files.lock == REQUIREMENTS_LOCK else []
    return ["-r", PROJECT, *extras, *pinned]


def _move_in(making: Path, user: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Gives the user the place where it builds; its variables. What it downloads it shares with nobody."""
    give(making, user)
    return {**variables_of(user, making, environment), "UV_CACHE_DIR": str(making / "cache"), "TMPDIR": str(making)}


def _take_over(venv: Path, user: int) -> None:
    """Makes what the user has built this process's own, once nothing of the user runs that could still change it."""
    end_all(user)
    give(venv, os.geteuid())
    os.chmod(venv, 0o755)


def _complete(venv: Path, took: dict[str, float]) -> None:
    """Closes it against changes, and has all of it on disk before anybody is told that it is there."""
    size = 0
    for folder, folders, names in os.walk(venv, topdown=False):
        size += sum(os.lstat(os.path.join(folder, name)).st_blocks * 512 for name in names)
        for name in folders:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                os.chmod(path, 0o555)
    write_json(venv / RECORD, {"bytes": size, "phases": took})
    descriptor = os.open(venv, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(AttributeError):  # a C library without it
            ctypes.CDLL(None).syncfs(descriptor)
    finally:
        os.close(descriptor)
