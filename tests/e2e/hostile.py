"""What a job that means harm tries on the machine it runs on; told by value, because the machine has no tests."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

_TRACE_ATTACH = 16


def attack(state: str, cache: str, victim: str, processes: list[int]) -> list[str]:
    """What of it worked.

    Args:
        state: The worker's directory.
        cache: The worker's other one.
        victim: Uid of another job's attempt.
        processes: Of the worker, and of that attempt.
    """
    own = os.path.dirname(os.environ["FLUSTER_TOKEN_FILE"])
    tries: dict[str, Callable[[], object]] = {}
    of_worker = ("identity.json", "secrets.key", "worker.token", "service.json", "lock")
    of_attempts = ("token", "entrypoint", "secrets", "spec", "stdout", "control", "running.json", "work", "tmp", "box")
    closed = [f"{state}/{name}" for name in of_worker]
    closed += [f"{state}/attempts/{victim}/{name}" for name in of_attempts]
    closed += [f"{own}/{name}" for name in ("running.json", "spec", "secrets", "control", "lock", ".exit.json")]
    for path in closed:
        tries[f"read {path}"] = lambda path=path: os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # type: ignore[misc]
        tries[f"write {path}"] = lambda path=path: os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # type: ignore[misc]
        tries[f"link {path}"] = lambda path=path: os.link(path, f"{own}/work/linked")  # type: ignore[misc]
    for path in (
        state,
        f"{state}/attempts",
        f"{state}/attempts/{victim}",
        f"{state}/trash",
        cache,
        f"{cache}/workspaces",
    ):
        tries[f"list {path}"] = lambda path=path: os.listdir(path)  # type: ignore[misc]
        tries[f"make in {path}"] = lambda path=path: os.mkdir(f"{path}/made")  # type: ignore[misc]
    for name in ("exit.json", "result", "made"):
        tries[f"make own {name}"] = lambda name=name: os.mkdir(f"{own}/{name}")  # type: ignore[misc]
    tries["lose its token"] = lambda: os.rename(f"{own}/token", f"{own}/work/token")
    libc = ctypes.CDLL(None, use_errno=True)
    for pid in (os.getppid(), *processes):
        for name in ("environ", "mem", "fd/0", "cwd/x", "root/etc/hostname"):
            tries[f"{name} of {pid}"] = lambda pid=pid, name=name: os.open(f"/proc/{pid}/{name}", os.O_RDONLY)  # type: ignore[misc]
        tries[f"signal to {pid}"] = lambda pid=pid: os.kill(pid, 0)  # type: ignore[misc]
        tries[f"trace of {pid}"] = lambda pid=pid: _check(libc.ptrace(_TRACE_ATTACH, pid, 0, 0))  # type: ignore[misc]
        tries[f"user of {pid}"] = lambda pid=pid: os.setuid(os.stat(f"/proc/{pid}").st_uid)  # type: ignore[misc]
    for command in (("su", "-c", "true"), ("sudo", "-n", "true"), ("mount", "-t", "tmpfs", "none", f"{own}/work")):
        tries[command[0]] = lambda command=command: subprocess.run(command, capture_output=True, stdin=-3, check=True)  # type: ignore[misc]
    for directory in _cgroups():
        tries[f"leave for {directory}"] = lambda directory=directory: os.open(f"{directory}/cgroup.procs", os.O_WRONLY)  # type: ignore[misc]
    return [*_worked(tries), *_left_in_memory()]


def _worked(tries: dict[str, Callable[[], object]]) -> Iterator[str]:
    for name, act in tries.items():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            yield f"{name}: {act()!r}"[:300]


def _check(answer: int) -> None:
    if answer < 0:
        raise OSError(ctypes.get_errno(), "refused")


def _cgroups() -> list[str]:
    """Where the control groups of its processes, and those above them, may be mounted."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for top in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", f"/sys/fs/cgroup/{controllers}"):
            found += [f"{top}{path}", os.path.dirname(f"{top}{path}"), top]
    return found


def _left_in_memory() -> list[str]:
    """Secrets of other jobs that its parents had in memory when they forked it. What it searches for, it is not."""
    pattern, found = re.compile(rb"cana[r]y-[0-9a-f]{8}"), []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, *_, name = line.split()
        start, end = (int(each, 16) for each in span.split("-"))
        if rights.startswith("rw"):
            with contextlib.suppress(OSError, OverflowError), open("/proc/self/mem", "rb", buffering=0) as memory:
                memory.seek(start)
                if (seen := pattern.search(memory.read(end - start))) is not None:
                    found.append(f"memory {name}: {seen[0]!r}")
    return found
