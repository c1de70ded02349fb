"""Finds out at a worker's start whether job users can do what every attempt does."""

from __future__ import annotations

import grp
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from fluster.cluster.worker.cache import default_cache_dir
from fluster.cluster.worker.config import WorkerConfig
from fluster.cluster.worker.jobusers import UserRange, as_user, open_ways

_TRIAL = "import cloudpickle, fluster.cluster.attempt.main, fluster.rpc.gen.fluster.cluster.v1.types_pb"
_TRIAL_S = 60.0


def usable_users(config: WorkerConfig) -> UserRange:
    """The users of a worker's configuration, once it was tried out that they can do what every attempt does.

    Raises:
        ValueError: They cannot, or the option breaks its rule.
    """
    if config.runtime == "docker":
        raise ValueError("job users are for processes; containers have users of their own")
    users = UserRange.parse(config.job_users or "", map(_group, config.job_groups))
    if config.max_jobs is not None and config.max_jobs > users.max_jobs:
        raise ValueError(
            f"{config.max_jobs} jobs at a time need at least {2 * config.max_jobs} users (building an environment takes"
            f" one too), and job users {config.job_users} are {users.count}"
        )
    if os.geteuid() != 0:
        raise ValueError("job users need a worker that runs as root: only root may start processes of other users")
    cache = config.cache_dir or default_cache_dir(config.state_dir)
    _check(users, config.python or sys.executable, (config.state_dir / "attempts", cache / "environments"))
    return users


def _group(name: str) -> int:
    try:
        return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {name!r} here for job users to be in") from None


def _check(users: UserRange, python: str, directories: Sequence[Path]) -> None:
    for directory in directories:
        open_ways((directory.parent, directory))
    for path in (Path(python), *directories):
        if (closed := closed_to_others(path)) is not None:
            raise ValueError(
                f"job users cannot reach {path}: {closed} is closed to others. Have Fluster, the state directory and"
                " the cache where all users may go: below /opt and /var/lib, for example"
            )
    command = [python, "-P", "-c", _TRIAL]
    with tempfile.TemporaryFile() as said:
        try:
            status = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd="/",
                timeout=_TRIAL_S,
                **as_user(users.first),  # type: ignore[call-overload]
            ).returncode
            problem = "" if status == 0 else _last_line(_all_of(said))
        except (OSError, subprocess.SubprocessError) as error:
            problem = str(error)
    if problem:
        raise ValueError(f"job users cannot run {python} with Fluster in it: {problem}")


def closed_to_others(path: Path) -> Path | None:
    """The first directory on the way there that others may not pass; of what does not exist yet, among those there."""
    for directory in reversed(path.resolve().parents):
        if directory.exists() and not os.stat(directory).st_mode & stat.S_IXOTH:
            return directory
    return None


def _all_of(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
