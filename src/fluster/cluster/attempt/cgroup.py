"""The control groups of one attempt: made, joined, read, killed and removed by its shim. v2, v1, or a mixture."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_MAKE_TRIES = 5
_REMOVE_EVERY_S = 0.02
CPU_PERIOD_US = 100_000
V1_SHARES_PER_CORE = 1024
V2_WEIGHT_PER_CORE = 100


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One attempt's directory in one cgroup tree.

    Attributes:
        path: Made for this attempt alone.
        version: 1 or 2.
        controllers: What can be limited there, of cpu, memory, pids and (v1) freezer. Empty on a v2 tree whose
            controllers belong to v1: it can still kill.
    """

    path: Path
    version: int
    controllers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the kernel is asked to hold; `None` means unlimited."""

    cpu: float
    cpu_quota: bool
    memory_bytes: int | None
    pids: int


def enable_controllers(parent: Path, controllers: tuple[str, ...]) -> None:
    """Lets the children of a v2 cgroup be limited."""
    if controllers:
        (parent / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))


class AttemptCgroup:
    """All hierarchies of one attempt taken together; with none of them every question has an empty answer."""

    def __init__(self, hierarchies: tuple[Hierarchy, ...]) -> None:
        self.hierarchies = hierarchies

    def holds(self, controller: str) -> bool:
        """Whether the kernel enforces it here."""
        return self._of(controller) is not None

    @classmethod
    def below(cls, parents: tuple[Hierarchy, ...]) -> AttemptCgroup:
        """New directories, of a name nobody has, below the worker's."""
        name = os.urandom(8).hex()
        cgroup = cls(tuple(Hierarchy(each.path / name, each.version, each.controllers) for each in parents))
        for hierarchy in cgroup.hierarchies:
            _make(hierarchy)
        return cgroup

    def limit(self, bounds: Bounds) -> None:
        """Sets the limits."""
        for hierarchy in self.hierarchies:
            for controller in hierarchy.controllers:
                _SETTERS[controller, hierarchy.version](hierarchy.path, bounds)

    def join(self) -> None:
        """Moves the calling process in.

        The first one for a while takes 5-15 ms: the kernel waits until every CPU has passed through the scheduler.
        """
        for hierarchy in self.hierarchies:
            try:
                _write(hierarchy.path / "cgroup.procs", "0")
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise
                _make(hierarchy)  # a worker of the same name took it for a leftover
                _write(hierarchy.path / "cgroup.procs", "0")

    def pids(self) -> set[int]:
        """Processes inside, zombies excluded."""
        found: set[int] = set()
        for hierarchy in self.hierarchies:
            # Descendants too: a job may divide its own cgroup.
            for directory, _, _ in os.walk(hierarchy.path):
                with contextlib.suppress(OSError):  # removed meanwhile, or threaded
                    found.update(map(int, Path(directory, "cgroup.procs").read_text().split()))
        return found - {0}  # 0: a process of another pid namespace

    def kill(self) -> None:
        """SIGKILL for everything inside, such that nothing forks away from it. Repeat until `pids` is empty."""
        if (pids := self._of("pids")) is not None:
            with contextlib.suppress(OSError):
                _write(pids.path / "pids.max", "0")
        for hierarchy in self.hierarchies:
            if hierarchy.version == 2:
                with contextlib.suppress(OSError):  # before Linux 5.14 there is no such file
                    _write(hierarchy.path / "cgroup.kill", "1")
        self._freeze("FROZEN")
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._freeze("THAWED")

    def oom_kills(self) -> int:
        """How many processes the kernel killed for this attempt's memory limit."""
        if (memory := self._of("memory")) is None:
            return 0
        name = "memory.events" if memory.version == 2 else "memory.oom_control"
        return _field(memory.path / name, "oom_kill")

    def peak_memory_bytes(self) -> int:
        """Highest memory of the whole tree; 0 where the kernel does not say."""
        if (memory := self._of("memory")) is None:
            return 0
        name = "memory.peak" if memory.version == 2 else "memory.max_usage_in_bytes"
        try:
            return int((memory.path / name).read_text())
        except OSError:  # memory.peak came with Linux 5.19
            return 0

    def remove(self, *, tries: int = 10) -> bool:
        """Removes the directories; says whether all are gone. More `tries` wait for processes that are just ending."""
        for left in reversed(range(tries)):
            removed = [remove_tree(hierarchy.path) for hierarchy in self.hierarchies]
            if all(removed):
                return True
            if left:
                time.sleep(_REMOVE_EVERY_S)
        return False

    def _of(self, controller: str) -> Hierarchy | None:
        return next((each for each in self.hierarchies if controller in each.controllers), None)

    def _freeze(self, state: str) -> None:
        if (freezer := self._of("freezer")) is not None:
            with contextlib.suppress(OSError):
                _write(freezer.path / "freezer.state", state)


def remove_if_empty(directories: Iterable[Path]) -> None:
    """Removes the worker's own directories if no attempt is left in them."""
    for directory in directories:
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def remove_tree(path: Path) -> bool:
    """Removes an empty cgroup and the cgroups below it; says whether it is gone."""
    try:
        os.rmdir(path)
        return True
    except FileNotFoundError:
        return True
    except OSError:
        pass  # busy, or divided by the job
    for directory, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(directory)
    return not path.exists()


def _make(hierarchy: Hierarchy) -> None:
    """Makes the attempt's directory, and the worker's above it, which its last shim may just have removed."""
    for _ in range(_MAKE_TRIES):
        with contextlib.suppress(FileExistsError):
            hierarchy.path.parent.mkdir()
        with contextlib.suppress(FileNotFoundError):
            if hierarchy.version == 2:
                enable_controllers(hierarchy.path.parent, hierarchy.controllers)
            hierarchy.path.mkdir()
            return
    raise FileNotFoundError(f"{hierarchy.path.parent} was removed again and again")


def _write(path: Path, text: str) -> None:
    # Unbuffered: the kernel answers each write, and an error must not come again at close.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _write_if_there(path: Path, text: str) -> None:
    """For what depends on the kernel's configuration: swap accounting, and quotas inside a quota."""
    with contextlib.suppress(OSError):
        _write(path, text)


def _field(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)


def _set_memory_v1(path: Path, bounds: Bounds) -> None:
    if bounds.memory_bytes is not None:
        _write(path / "memory.limit_in_bytes", str(bounds.memory_bytes))
        _write_if_there(path / "memory.memsw.limit_in_bytes", str(bounds.memory_bytes))


def _set_memory_v2(path: Path, bounds: Bounds) -> None:
    if bounds.memory_bytes is not None:
        _write(path / "memory.max", str(bounds.memory_bytes))
        _write_if_there(path / "memory.swap.max", "0")


def _set_cpu_v1(path: Path, bounds: Bounds) -> None:
    _write(path / "cpu.shares", str(max(2, round(bounds.cpu * V1_SHARES_PER_CORE))))
    if bounds.cpu_quota:
        _write_if_there(path / "cpu.cfs_period_us", str(CPU_PERIOD_US))
        _write_if_there(path / "cpu.cfs_quota_us", str(max(1000, round(bounds.cpu * CPU_PERIOD_US))))


def _set_cpu_v2(path: Path, bounds: Bounds) -> None:
    _write(path / "cpu.weight", str(min(10_000, max(1, round(bounds.cpu * V2_WEIGHT_PER_CORE)))))
    if bounds.cpu_quota:
        _write_if_there(path / "cpu.max", f"{max(1000, round(bounds.cpu * CPU_PERIOD_US))} {CPU_PERIOD_US}")


def _set_pids(path: Path, bounds: Bounds) -> None:
    _write(path / "pids.max", str(bounds.pids))


def _set_nothing(path: Path, bounds: Bounds) -> None:
    del path, bounds


_SETTERS: dict[tuple[str, int], Callable[[Path, Bounds], None]] = {
    ("memory", 1): _set_memory_v1,
    ("memory", 2): _set_memory_v2,
    ("cpu", 1): _set_cpu_v1,
    ("cpu", 2): _set_cpu_v2,
    ("pids", 1): _set_pids,
    ("pids", 2): _set_pids,
    ("freezer", 1): _set_nothing,
}
