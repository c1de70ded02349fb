"""Runs attempts as containers of this machine. Each has a shim beside it that outlives the worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from fluster.cluster.attempt import files, proc
from fluster.cluster.docker import labels
from fluster.cluster.docker.engine import Engine
from fluster.cluster.docker.mounts import Mount
from fluster.cluster.docker.shim import STARTED, ContainerSpec
from fluster.cluster.worker.container_config import container_config, lay_out
from fluster.cluster.worker.docker_images import DockerImages
from fluster.cluster.worker.followed import Followed, FollowedAttempts, NotStarted
from fluster.cluster.worker.pidfd import end_of_process
from fluster.cluster.worker.remains import REMOVED, find_shim, gone, read_exit, take_lock_of_ended
from fluster.cluster.worker.runtime import (
    TIME_LIMIT_GRACE_S,
    AttemptStart,
    ExitRecord,
    Gone,
    ImageFailed,
    LogFiles,
    Observation,
)

_log = logging.getLogger(__name__)

_BEGIN_S = 60.0
_POLL_S = 0.01


class DockerRuntime:
    """The runtime whose attempts are containers: as nobody, without privileges, on this machine's network.

    Attributes:
        engine: What runs them.

    Args:
        name: Tells this worker's containers from another's; a restarted worker has the same.
        image: Of attempts that ask for none; default: a public Python image of this interpreter's version.
        mounts: Directories of this machine that all attempts see.
        cpu_quota: Attempts get no more than their cpu, even when cores are idle.
        time_limit_grace_s: Between SIGTERM and SIGKILL when an attempt's time is over.
        lease: File that says until when attempts may run; `None`: for as long as they like.
        lifeline_fd: Once it reads end of file, attempts end at once.
        engine: Default: this machine's.
    """

    def __init__(
        self,
        name: str = "worker",
        *,
        image: str | None = None,
        mounts: Sequence[Mount] = (),
        cpu_quota: bool = False,
        time_limit_grace_s: float = TIME_LIMIT_GRACE_S,
        lease: Path | None = None,
        lifeline_fd: int | None = None,
        engine: Engine | None = None,
    ) -> None:
        self._name = name
        self._mounts = tuple(mounts)
        self._cpu_quota = cpu_quota
        self._time_limit_grace_s = time_limit_grace_s
        self._lease = lease
        self._lifeline = () if lifeline_fd is None else (lifeline_fd,)
        self.engine = engine or Engine()
        image = image or f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
        self._images = DockerImages(self.engine, name, image)
        self._attempts = FollowedAttempts()

    @property
    def name(self) -> str:
        """`docker`."""
        return "docker"

    @property
    def images(self) -> DockerImages:
        """What it knows of images."""
        return self._images

    @property
    def enforcement(self) -> str:
        """The engine holds the limits, by the control groups it has."""
        return "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"

    async def prepare(self) -> None:
        """Removes containers of attempts whose directory is gone.

        Raises:
            Unreachable: No engine answers.
        """
        for each in await self.engine.containers({labels.WORKER: self._name}):
            if not Path(each["Labels"].get(labels.DIRECTORY, "")).is_dir():
                _log.warning("container %s belongs to no attempt; it is removed", each["Names"])
                await self.engine.remove(each["Id"])

    async def start(self, attempt: AttemptStart) -> Observation:
        """Starts the attempt, or gives what this uid has become already."""
        followed = self._attempts.follow(attempt.uid, attempt.directory, lambda each: self._live(each, attempt))
        return await followed.observed()

    async def adopt(self, uid: str, directory: Path) -> Observation:
        """Finds an attempt by what its shim wrote; the container of one without a shim is removed first."""
        return await self._attempts.follow(uid, directory, lambda each: self._live(each, None)).observed()

    async def observe(self, uid: str) -> Observation:
        """The present state."""
        return await self._attempts.known(uid).observed()

    async def wait(self, uid: str) -> ExitRecord | Gone:
        """Returns within milliseconds of the attempt's end; any number of callers."""
        return await self._attempts.wait(uid)

    async def stop(self, uid: str, grace_s: float = 10.0) -> None:
        """SIGTERM now, SIGKILL to all of the container after `grace_s`; returns at once."""
        await self._attempts.stop(uid, grace_s)

    def logs(self, uid: str) -> LogFiles:
        """Where the attempt's output goes."""
        return self._attempts.logs(uid)

    async def forget(self, uid: str) -> None:
        """Drops what is kept of an ended attempt; one that has not ended is kept."""
        self._attempts.forget(uid)

    async def close(self) -> None:
        """Lets go of the attempts, which go on."""
        await self._attempts.close()

    async def _live(self, attempt: Followed, start: AttemptStart | None) -> ExitRecord | Gone:
        """One attempt from its start, or from being found, to its end."""
        directory = attempt.directory
        shim: subprocess.Popen[bytes] | None = None
        try:
            if start is not None and not (directory / files.RUNNING).exists():
                shim = await self._spawn(start)
                await self._begun(directory, shim)
            if not (directory / files.EXIT).exists() and (found := await find_shim(directory)):
                ended = asyncio.ensure_future(end_of_process(found.shim, found.shim_started))
                while not (directory / STARTED).exists() and not ended.done():
                    await asyncio.wait([ended], timeout=_POLL_S)
                attempt.begin(found.running())
                await ended
                proc.reap(found.shim)
            return read_exit(directory) or await self._end_remains(directory)
        except (OSError, ImageFailed) as error:
            raise NotStarted(f"the attempt's container could not be started: {error}") from error
        finally:
            if shim is not None and shim.poll() is None:
                shim.returncode = 0  # it goes on without this worker; nobody here waits for its end

    async def _spawn(self, start: AttemptStart) -> subprocess.Popen[bytes]:
        image = start.image or self._images.image
        await self._images.provide_image(image)
        await asyncio.to_thread(lay_out, start.directory)
        for name in (files.STDOUT, files.STDERR):
            (start.directory / name).touch()
        spec = ContainerSpec(
            name=f"fluster-{self._name}-{start.uid}",
            socket=str(self.engine.socket),
            config=container_config(start, image, self._name, self._cpu_quota, self._mounts),
            interpreter="" if start.command is not None else start.python or "python3",
            memory_bytes=start.limits.memory_bytes,
            time_s=start.limits.time_s,
            lease=str(self._lease or ""),
            grace_s=self._time_limit_grace_s,
        )
        spec.write(start.directory)
        arguments = [str(start.directory), *map(str, self._lifeline)]
        shim = subprocess.Popen(
            [sys.executable, "-P", "-m", "fluster.cluster.docker.shim", *arguments],
            pass_fds=self._lifeline,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        assert shim.stdin is not None
        await asyncio.to_thread(_tell, shim.stdin, spec.to_json())
        return shim

    async def _begun(self, directory: Path, shim: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + _BEGIN_S
        while not (directory / files.RUNNING).exists() and shim.poll() is None and time.monotonic() < until:
            await asyncio.sleep(_POLL_S)

    async def _end_remains(self, directory: Path) -> ExitRecord | Gone:
        """Removes the container of an attempt whose shim is gone, and forbids a late one."""
        if not directory.is_dir():
            return REMOVED
        lock = await take_lock_of_ended(directory)
        try:
            if (end := read_exit(directory)) is not None:
                return end
            (directory / files.ABANDONED).touch()
            if (spec := ContainerSpec.read(directory)) is not None:
                await self.engine.remove(spec.name)
            return gone(directory)
        finally:
            os.close(lock)


def _tell(shim: IO[bytes], content: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), shim:  # it ended: that is seen by who waits for it to begin
        shim.write(content)
