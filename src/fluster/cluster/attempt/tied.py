"""Runs a program that must not outlive whoever started it, nor leave anything of its own behind.

Run as `python -m fluster.cluster.attempt.tied PARENT PROGRAM ARGUMENTS…`, with the program's environment as JSON on
stdin. Ends as the program does; at SIGTERM, or when the parent is gone, it kills the program's whole tree first.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from fluster.cluster.attempt import proc
from fluster.cluster.attempt.tree import send

_HEEDED = (signal.SIGTERM, signal.SIGCHLD)


def main(arguments: list[str]) -> int:
    """The program's exit code; 128 and the number of a signal."""
    environment = json.load(sys.stdin)
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    proc.become_subreaper()
    proc.die_with_parent(signal.SIGTERM)
    if os.getppid() != int(arguments[0]):  # it ended before the kernel knew of that wish
        return 1
    first = os.posix_spawn(
        arguments[1],
        arguments[1:],
        environment,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
        setsigmask=(),
        setsigdef=_HEEDED,
    )
    status = None
    while status is None and signal.sigwait(_HEEDED) is not signal.SIGTERM:
        status = _reap(first)
    _kill_all()
    return 1 if status is None else abs(os.waitstatus_to_exitcode(status))


def _reap(first: int) -> int | None:
    """The wait status of the program, once it has ended."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found = status if pid == first else found


def _kill_all() -> None:
    while True:
        send(proc.descendants(os.getpid()), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
