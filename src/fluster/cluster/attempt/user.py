"""Attempts of a worker that runs as root, as users of their own: what each is given, and how its process becomes it."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from fluster.cluster.attempt import files, proc
from fluster.cluster.attempt.tree import send

_PAUSE_S = 0.005
READ = ("token", "ca.pem", "certificate.pem")
"""What an attempt reads in its directory, besides what it calls."""


def hand_over(directory: Path, user: int) -> None:
    """Gives an attempt's user what it needs of the attempt's directory. Nothing of the attempt may run yet.

    The directory itself stays root's: orders, records and the names of the logs are between worker and shim. What the
    attempt writes to Fluster, it writes into `files.BOX`.
    """
    box = directory / files.BOX
    box.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(FileNotFoundError, FileExistsError):
        os.link(directory / files.ENTRYPOINT, box / files.ENTRYPOINT)
    for name in READ:
        with contextlib.suppress(FileNotFoundError):
            os.chown(directory / name, user, user, follow_symlinks=False)
    for name in (files.BOX, "work", "tmp"):
        with contextlib.suppress(FileNotFoundError):
            give(directory / name, user)
    os.chown(directory, -1, user)
    os.chmod(directory, 0o710)


def give(root: Path, user: int) -> None:
    """Makes a directory this user's and closes it, with all that is below it; links are not followed."""
    for _, folders, names, descriptor in os.fwalk(root):
        os.fchown(descriptor, user, user)
        for name in (*folders, *names):
            os.chown(name, user, user, dir_fd=descriptor, follow_symlinks=False)
    os.chmod(root, 0o700)


def end_all(user: int) -> None:
    """SIGKILL to every process of the user's, until there is none."""
    while pids := proc.of_user(user):
        send(pids, signal.SIGKILL)
        time.sleep(_PAUSE_S)


def take_result(directory: Path, user: int) -> None:
    """Moves what the attempt, of which nothing runs, gave to where its worker looks, if it is a file of its own."""
    with contextlib.suppress(OSError):
        path = directory / files.BOX / files.RESULT
        found = os.lstat(path)
        # A second name of somebody else's file would be read with the worker's rights.
        if stat.S_ISREG(found.st_mode) and found.st_uid == user:
            os.chown(path, 0, 0, follow_symlinks=False)
            os.replace(path, directory / files.RESULT)


def become(user: int, groups: Iterable[int], parent: int) -> None:
    """Makes this process the user's for good, with what is root's left behind: no program can give it back.

    Raises:
        OSError: This process may not do that, or `parent`, whose end is its own, is gone.
    """
    os.setgroups(sorted(groups))
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    proc.give_up_privileges()
    # The kernel has dropped this wish with the user, and has closed /proc/self to it.
    proc.die_with_parent(signal.SIGKILL)
    proc.open_to_itself()
    if os.getppid() != parent:
        raise ProcessLookupError("the attempt's shim is gone")
