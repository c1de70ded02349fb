"""Finds what a piece of code left behind in and around this process: threads, child processes, open descriptors.

before = Footprint.now()
...
assert not before.growth()
"""

import contextlib
import gc
import os
import secrets
import signal
import socket
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_PROC = Path("/proc")
# A process started from here carries this variable, whatever session it moved to and whoever adopted it.
_TAG_NAME = "LEAK_CHECK_TAG"
_POLL_S = 0.02
# A test runner exchanges what these lead to while tests run, and puts its own back at the end.
_STANDARD_STREAMS = ("0", "1", "2")


@dataclass(frozen=True, slots=True)
class Leak:
    """One thing that was not there before: `kind` is "thread", "process" or "descriptor"; `pid` only for a process."""

    kind: str
    text: str
    pid: int | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.text}"


@dataclass(frozen=True, slots=True)
class Footprint:
    """The threads, processes and descriptors there are at one moment.

    Processes and descriptors are found on Linux only. Processes are those started by this one since its first
    footprint, their descendants and what of them was adopted by others.
    """

    threads: frozenset[threading.Thread]
    pids: frozenset[int]
    descriptors: frozenset[str]

    @classmethod
    def now(cls) -> Self:
        """The footprint of this moment."""
        _tag()
        return cls(frozenset(threading.enumerate()), frozenset(_pids()), frozenset(_descriptors()))

    def growth(self, *, within_s: float = 2.0) -> list[Leak]:
        """What is there beyond this footprint, after at most `within_s` seconds for it to go; empty when nothing is.

        A process started by one that this footprint holds (a pool's, a cluster's of wider scope) belongs to that one.
        """
        deadline = time.monotonic() + within_s
        if not (leaks := self._leaks()):
            return []
        gc.collect()
        while (leaks := self._leaks()) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return leaks

    def _leaks(self) -> list[Leak]:
        threads = [Leak("thread", repr(t)) for t in threading.enumerate() if t not in self.threads]
        processes = [_process_leak(pid) for pid in sorted(_pids() - self.pids) if self._is_ours(pid)]
        found = _descriptors()
        descriptors = [Leak("descriptor", found[key]) for key in sorted(found.keys() - self.descriptors)]
        return threads + processes + descriptors

    def _is_ours(self, pid: int) -> bool:
        ancestor = _parent(pid)
        while ancestor not in (None, 0, 1):
            if ancestor == os.getpid():
                return True
            if ancestor in self.pids and _is_tagged(ancestor):
                return False
            ancestor = _parent(ancestor)
        return _is_tagged(pid)


def end_processes(leaks: list[Leak]) -> None:
    """Kills the processes among `leaks`, and reaps those that are children of this one."""
    for leak in leaks:
        if leak.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(leak.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # adopted by another: theirs to reap
                os.waitpid(leak.pid, 0)


def _tag() -> str:
    """This process's own tag: one inherited from a parent that checks too names the parent's."""
    found = os.environ.get(_TAG_NAME, "")
    if not found.startswith(f"{os.getpid()}-"):
        found = os.environ[_TAG_NAME] = f"{os.getpid()}-{secrets.token_hex(8)}"
    return found


def _is_tagged(pid: int) -> bool:
    return f"{_TAG_NAME}={_tag()}".encode() in _read(pid, "environ").split(b"\0")


def _pids() -> set[int]:
    return {int(name) for name in os.listdir(_PROC) if name.isdigit()} if _PROC.is_dir() else set()


def _read(pid: int, name: str) -> bytes:
    """A file of the process's directory; empty when the process is gone or another user's."""
    try:
        return (_PROC / str(pid) / name).read_bytes()
    except OSError:
        return b""


def _parent(pid: int | None) -> int | None:
    # The second field is the name in parentheses and may hold anything; the fourth is the parent.
    fields = _read(pid, "stat").rpartition(b")")[2].split() if pid else []
    return int(fields[1]) if fields else None


def _process_leak(pid: int) -> Leak:
    command = _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    return Leak("process", f"{pid} {command or '(ended, never waited for)'}", pid)


def _descriptors() -> dict[str, str]:
    """Open descriptors by what tells them apart, with a text for people; devices and standard streams are left out."""
    if not (_PROC / "self/fd").is_dir():
        return {}
    found = {}
    for name in os.listdir(_PROC / "self/fd"):
        try:
            target, mode = os.readlink(_PROC / "self/fd" / name), os.fstat(int(name)).st_mode
        except OSError:
            continue  # the descriptor of the listing itself
        if name not in _STANDARD_STREAMS and not stat.S_ISCHR(mode):
            found[f"{name} {target}"] = f"{name} {target}{_socket_name(int(name)) if stat.S_ISSOCK(mode) else ''}"
    return found


def _socket_name(descriptor: int) -> str:
    try:
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            listening = copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            return f" {copy.getsockname()}{' listening' if listening else ''}"
    except OSError:
        return ""
