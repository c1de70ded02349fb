"""The process tree below a shim: whom a signal must reach, and how to end all of it, whatever it tries."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterable, Iterator

from fluster.cluster.attempt import proc
from fluster.cluster.attempt.cgroup import AttemptCgroup


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Sends one signal to each; those that are gone, or belong to another user by now, are none of our business.

    A pid could only name somebody else if its process ended, was reaped and the number came round again between the
    look into /proc and here.
    """
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass


class Tree:
    """Everything that descends from this process, which must be a subreaper.

    What leaves its session, its parents or its cgroup stays a descendant, so that "no children" means "nothing left".

    Attributes:
        status: Wait status of the child `first`, once it was reaped.
        largest_bytes: Highest memory of any single process that was reaped.
    """

    def __init__(self, cgroup: AttemptCgroup, first: int | None = None) -> None:
        self._cgroup = cgroup
        self._first = first
        self.status: int | None = None
        self.largest_bytes = 0

    def pids(self) -> list[int]:
        """Processes of the tree, as far as one look shows them, each before its children."""
        return list(dict.fromkeys((*proc.descendants(os.getpid()), *self._cgroup.pids())))

    def reap(self) -> bool:
        """Collects the children that ended; says whether there are others."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            self._note(pid, status, usage)

    def _note(self, pid: int, status: int, usage: resource.struct_rusage) -> None:
        if pid == self._first:
            self.status = status
        self.largest_bytes = max(self.largest_bytes, usage.ru_maxrss * 1024)

    def terminate(self) -> None:
        """SIGTERM for every process; stopped ones are continued, so that they can heed it.

        Parents hear of it first: a shell whose child had ended before would go on with its next command.
        """
        pids = self.pids()
        send(pids, signal.SIGTERM)
        send(pids, signal.SIGCONT)

    def kill(self, pause: Callable[[], None]) -> None:
        """SIGKILL until nothing is left; `pause` waits for the next child to end, or a moment.

        Without a bound: a process that the kernel holds in an uninterruptible wait still runs, and the attempt must
        not be taken for ended meanwhile.
        """
        while self.reap() | bool(self._cgroup.pids()):
            self._cgroup.kill()
            send(list(_stopping(os.getpid())), signal.SIGKILL)
            pause()


def _stopping(root: int) -> Iterator[int]:
    """All descendants, each stopped as it is found: what is stopped neither forks nor hides behind its child."""
    waiting = [root]
    while waiting:
        for pid in proc.children(waiting.pop()):
            send((pid,), signal.SIGSTOP)
            yield pid
            waiting.append(pid)
