"""Finds out what the kernel lets this worker limit: control groups v2, v1, a mixture of both, or none."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fluster.cluster.attempt.cgroup import (
    AttemptCgroup,
    Bounds,
    Hierarchy,
    enable_controllers,
    remove_if_empty,
    remove_tree,
)

_PREFIX = "fluster-"
_WANTED = ("memory", "pids", "cpu")
_NEEDED = {"memory", "pids"}
_TRIAL = Bounds(cpu=1.0, cpu_quota=False, memory_bytes=1 << 28, pids=64)
_TRIAL_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class WorkerCgroups:
    """Where this worker makes the control groups of its attempts.

    Attributes:
        parents: The worker's own directories; attempts get one below each.
    """

    parents: tuple[Hierarchy, ...] = ()

    @property
    def enforcement(self) -> str:
        """`v2` or `v1`: the kernel holds memory limits; `none`: they are sampled."""
        versions = [each.version for each in self.parents if "memory" in each.controllers]
        return f"v{versions[0]}" if versions else "none"

    def remove_leftovers(self) -> None:
        """Removes empty directories: of attempts whose shim was killed (others remove their own), and the worker's."""
        for parent in self.parents:
            with contextlib.suppress(FileNotFoundError):
                for directory in [entry.path for entry in os.scandir(parent.path) if entry.is_dir()]:
                    remove_tree(Path(directory))
        remove_if_empty(parent.path for parent in self.parents)


def find_cgroups(name: str, *, enforcement: str = "auto") -> WorkerCgroups:
    """What works here, tried out with a process. `name` tells this worker's directories from another's.

    Args:
        name: The same for a restarted worker.
        enforcement: `auto` takes the best there is; `v2` and `v1` take that or nothing, `none` nothing.
    """
    mounts = list(_mounts())
    directory = f"{_PREFIX}{name}"
    if enforcement in ("auto", "v2") and (found := _find_v2(mounts, directory)):
        return WorkerCgroups((found,))
    if enforcement in ("auto", "v1"):
        return WorkerCgroups(tuple(_find_v1(mounts, directory)))
    return WorkerCgroups()


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted cgroup tree, and this process's place in it."""

    version: int
    controllers: tuple[str, ...]
    top: Path
    own: Path


def _mounts() -> Iterator[_Mount]:
    places = dict(_places())
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        root, top = left.split()[3:5]
        kind, _, options = right.split()[:3]
        if kind == "cgroup2":
            yield _Mount(2, (), Path(top), _place(top, root, places.get("", "/")))
        elif kind == "cgroup":
            controllers = tuple(name for name in options.split(",") if name in places)
            if controllers:
                yield _Mount(1, controllers, Path(top), _place(top, root, places[controllers[0]]))


def _places() -> Iterator[tuple[str, str]]:
    """This process's path for each v1 controller; for v2 under the empty name."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            yield name, path


def _place(top: str, root: str, path: str) -> Path:
    """Where a path of /proc/self/cgroup lies below a mount that shows the tree from `root` on."""
    relative = os.path.relpath(path, root)
    return Path(top) if relative.startswith("..") else Path(top, relative)


def _find_v2(mounts: list[_Mount], directory: str) -> Hierarchy | None:
    """The nearest cgroup, from this process's upwards, below which memory and processes can be limited."""
    for mount in mounts:
        if mount.version != 2:
            continue
        for candidate in _upwards(mount):
            controllers = _delegated(candidate)
            if set(controllers) >= _NEEDED:
                parent = Hierarchy(candidate / directory, 2, controllers)
                if _works(parent):
                    return parent
    return None


def _upwards(mount: _Mount) -> Iterator[Path]:
    yield mount.own
    for parent in mount.own.parents:
        # Not above an attempt's own cgroup: a worker inside a job must not escape that job's limits.
        if not parent.is_relative_to(mount.top) or parent.name.startswith(_PREFIX):
            return
        yield parent


def _delegated(candidate: Path) -> tuple[str, ...]:
    """Controllers that children of `candidate` have, after trying to give them what it has itself."""
    if not os.access(candidate / "cgroup.procs", os.W_OK):
        return ()
    there = _words(candidate / "cgroup.controllers")
    enabled = _words(candidate / "cgroup.subtree_control")
    if not enabled >= _NEEDED and there >= _NEEDED:
        _make_room(candidate)
        for name in sorted(there.intersection(_WANTED)):
            with contextlib.suppress(OSError):
                enable_controllers(candidate, (name,))
        enabled = _words(candidate / "cgroup.subtree_control")
    return tuple(name for name in _WANTED if name in enabled)


def _make_room(candidate: Path) -> None:
    """Moves this process one level down if it is alone: a v2 cgroup with processes in it cannot limit children."""
    with contextlib.suppress(OSError):
        if (candidate / "cgroup.procs").read_text().split() == [str(os.getpid())]:
            (candidate / "fluster-daemon").mkdir(exist_ok=True)
            (candidate / "fluster-daemon" / "cgroup.procs").write_text("0")


def _words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError:
        return set()


def _find_v1(mounts: list[_Mount], directory: str) -> Iterator[Hierarchy]:
    """Every controller that can be used, each in the tree it is mounted in."""
    held: set[str] = set()
    for wanted in _WANTED:
        if wanted not in held and (found := _find_v1_controller(mounts, directory, (wanted,))):
            held.update(found.controllers)
            yield found
    if "pids" not in held and (found := _find_killer(mounts, directory)):
        yield found


def _find_v1_controller(mounts: list[_Mount], directory: str, wanted: tuple[str, ...]) -> Hierarchy | None:
    for mount in mounts:
        if mount.version == 1 and set(wanted) <= set(mount.controllers):
            usable = tuple(name for name in (*_WANTED, "freezer") if name in mount.controllers)
            for place in (mount.own, mount.top):
                parent = Hierarchy(place / directory, 1, usable)
                if _works(parent):
                    return parent
    return None


def _find_killer(mounts: list[_Mount], directory: str) -> Hierarchy | None:
    """Without the pids controller forks cannot be forbidden: something else that a fork does not get out of."""
    for mount in mounts:
        if mount.version == 2:
            for candidate in (mount.own, mount.top):
                parent = Hierarchy(candidate / directory, 2, ())
                if _works(parent, needs="cgroup.kill"):
                    return parent
    return _find_v1_controller(mounts, directory, ("freezer",))


def _works(parent: Hierarchy, *, needs: str = "cgroup.procs") -> bool:
    """Whether an attempt could be limited below `parent`: makes one, puts a process in, removes it again."""
    trial = AttemptCgroup(())
    try:
        trial = AttemptCgroup.below((parent,))
        trial.limit(_TRIAL)
        place = trial.hierarchies[0].path
        joined = subprocess.run(
            ["/bin/sh", "-c", 'echo 0 > "$0"', str(place / "cgroup.procs")],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TRIAL_TIMEOUT_S,
        )
        return joined.returncode == 0 and (place / needs).exists()
    except (OSError, subprocess.TimeoutExpired):
        return False
    finally:
        trial.remove()
        remove_if_empty((parent.path,))
