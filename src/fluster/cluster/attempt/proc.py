"""Facts about processes from /proc, and the three process attributes Python has no call for."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

MARKER = "FLUSTER_ATTEMPT_UID"
"""Every process of an attempt carries it in its environment, unless it took pains to remove it."""
MARKER_ROOM = 128
"""Longest uid; the zygote is started with a value of this length, which its forks overwrite in place."""

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_ENV_START, _ENV_END = 50, 51  # proc_pid_stat(5), counted from 1

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def become_subreaper(*, on: bool = True) -> None:
    """Makes orphans among this process's descendants its own children, whatever session they made for themselves."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(on))


def die_with_parent(signal_number: int) -> None:
    """Has the kernel send this process `signal_number` when the thread that forked it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def give_up_privileges() -> None:
    """From now on nothing that this process or its children execute has more rights than they have."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def open_to_itself() -> None:
    """Gives this process the files of its own below /proc, which the kernel closes when a process changes its user."""
    _prctl(_PR_SET_DUMPABLE, 1)


def name_this_process(name: str) -> None:
    """What `ps` and `top` show, of at most 15 characters."""
    with open("/proc/self/comm", "w") as file:
        file.write(name)


def reap(pid: int) -> None:
    """Collects an ended process if it is, or by its parent's death became, a child of this one."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass


def boot_id() -> str:
    """Changes with every start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int | str) -> list[str] | None:
    """Fields 3 and on of /proc/<pid>/stat (the second, a name, may hold anything); `None`: no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            content = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return content[content.rindex(b")") + 2 :].decode().split()


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot: with the pid, and within a boot, its identity."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def is_running(pid: int, started: int) -> bool:
    """Whether that very process exists and is more than a zombie."""
    fields = _stat(pid)
    return fields is not None and int(fields[19]) == started and fields[0] not in "ZX"


def has_ended(pid: int) -> bool:
    """Whether the process is a zombie: nothing of it is left but what its parent has not asked for."""
    fields = _stat(pid)
    return fields is not None and fields[0] in "ZX"


def all_pids() -> list[int]:
    """Every process this one can see."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children(pid: int) -> list[int]:
    """Direct children, zombies included. A child may be missed while others come and go: ask again."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def _children_by_scan() -> dict[int, list[int]]:
    """The same for all processes at once, where the kernel was built without CONFIG_PROC_CHILDREN."""
    table: dict[int, list[int]] = {}
    for pid in all_pids():
        if fields := _stat(pid):
            table.setdefault(int(fields[1]), []).append(pid)
    return table


_HAS_CHILDREN_FILE = os.path.exists("/proc/thread-self/children")


def descendants(root: int) -> list[int]:
    """Children of `root`, their children and so on, without `root`."""
    table = None if _HAS_CHILDREN_FILE else _children_by_scan()
    found: list[int] = []
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        below = children(pid) if table is None else table.get(pid, [])
        found += below
        waiting += below
    return found


def of_user(user: int) -> list[int]:
    """Processes of a user, zombies excluded."""
    return [pid for pid in all_pids() if user in users_of(pid) and not has_ended(pid)]


def users_of(pid: int) -> set[int]:
    """Whose it is: who owns its files, and who it really is, also while it hides them; empty when it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        real = next(int(line.split()[1]) for line in file if line.startswith("Uid:"))
        return {os.stat(f"/proc/{pid}").st_uid, real}
    return set()


def memory_bytes(pids: list[int], limit: int | None) -> int:
    """Memory that these processes hold together; shared pages are counted once if the cheap sum passes `limit`."""
    resident = sum(_resident_bytes(pid) for pid in pids)
    if limit is None or resident <= limit:
        return resident
    return sum(_proportional_bytes(pid) for pid in pids)


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _proportional_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            lines = file.read().splitlines()
    except OSError:  # gone, or changed its user: the cheap figure is the best there is
        return _resident_bytes(pid)
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def marked(uid: str) -> Iterator[int]:
    """Processes that carry the attempt's marker. Reads every environment it may: for when no shim is left to ask."""
    wanted = f"{MARKER}={uid}".encode()
    for pid in all_pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                variables = file.read().split(b"\0")
        except OSError:
            continue
        if wanted in variables and pid != os.getpid():
            yield pid


def in_session(leader: int, leader_started: int) -> Iterator[int]:
    """Processes of the session that this leader made; none if its pid now belongs to somebody else."""
    if start_time(leader) not in (None, leader_started):
        return
    for pid in all_pids():
        if (fields := _stat(pid)) and int(fields[3]) == leader and fields[0] not in "ZX":
            yield pid


def mark_this_process(uid: str) -> None:
    """Writes the marker where /proc/<pid>/environ shows it, for this process and what it forks.

    A fork without an exec shows the environment that its ancestor was started with, whatever `os.environ` says: the
    zygote was started with a placeholder, which is overwritten here.
    """
    fields = _stat("self")
    assert fields is not None
    start, end = int(fields[_ENV_START - 3]), int(fields[_ENV_END - 3])
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        name = f"{MARKER}=".encode()
        position = memory.read(end - start).find(name)
        if position >= 0:
            memory.seek(start + position + len(name))
            memory.write(uid.encode().ljust(MARKER_ROOM, b"\0"))
