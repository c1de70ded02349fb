"""Runs attempts as containers of this machine. Each has a shim beside it that outlives the worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from fluster.cluster.attempt import files, proc, record
from fluster.cluster.docker import labels
from fluster.cluster.docker.engine import Engine, EngineError
from fluster.cluster.docker.shim import STARTED, ContainerSpec
from fluster.cluster.worker.container_config import container_config, container_user, lay_out
from fluster.cluster.worker.pidfd import end_of_process
from fluster.cluster.worker.process_runtime import TIME_LIMIT_GRACE_S, order
from fluster.cluster.worker.remains import find_shim, read_exit, take_lock_of_ended, write_fault
from fluster.cluster.worker.runtime import (
    AttemptStart,
    ExitRecord,
    Gone,
    ImageFailed,
    LogFiles,
    Observation,
    Running,
)
from fluster.errors import FlusterError

_log = logging.getLogger(__name__)

_BEGIN_S = 60.0
_POLL_S = 0.01
_NEVER_THERE = ("not found", "No such image", "access denied", "invalid reference", "manifest unknown", "not exist")
"""What registries say of images that are not there; anything else may be otherwise in a moment."""


@dataclass(slots=True, eq=False)
class _Attempt:
    directory: Path
    end: asyncio.Future[ExitRecord | Gone]
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    running: Running | None = None


class DockerRuntime:
    """The runtime whose attempts are containers: as nobody, without privileges, on this machine's network.

    Attributes:
        image: Of attempts that ask for none.
        engine: What runs them.

    Args:
        name: Tells this worker's containers from another's; a restarted worker has the same.
        image: Of attempts that ask for none; default: a public Python image of this interpreter's version.
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
        cpu_quota: bool = False,
        time_limit_grace_s: float = TIME_LIMIT_GRACE_S,
        lease: Path | None = None,
        lifeline_fd: int | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.image = image or f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
        self._name = name
        self._cpu_quota = cpu_quota
        self._time_limit_grace_s = time_limit_grace_s
        self._lease = lease
        self._lifeline = () if lifeline_fd is None else (lifeline_fd,)
        self.engine = engine or Engine()
        self._attempts: dict[str, _Attempt] = {}
        self._lives: set[asyncio.Task[None]] = set()
        self._pulling: dict[str, asyncio.Lock] = {}
        self._versions: dict[tuple[str, str], str] = {}

    @property
    def name(self) -> str:
        """`docker`."""
        return "docker"

    @property
    def images(self) -> DockerRuntime:
        """What it knows of images."""
        return self

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

    async def provide_image(self, image: str) -> str:
        """Fetches an image unless it is here; its digest.

        Raises:
            ImageFailed: It cannot be had.
        """
        async with self._pulling.setdefault(image, asyncio.Lock()):
            try:
                found = await self.engine.image(image)
                if found is None:
                    _log.info("pulling %s", image)
                    await self.engine.pull(image)
                    found = await self.engine.image(image)
            except FlusterError as error:
                never = isinstance(error, EngineError) and any(each in str(error) for each in _NEVER_THERE)
                raise ImageFailed(str(error), fluster_fault=not never) from error
        if found is None:
            raise ImageFailed(f"image {image!r} was pulled, and yet is not here", fluster_fault=True)
        return str((found.get("RepoDigests") or [found["Id"]])[0])

    async def python_version(self, image: str, python: str) -> str:
        """`3.11` of an interpreter in an image.

        Raises:
            ImageFailed: It has none that runs.
        """
        key = (await self.provide_image(image), python)
        if key not in self._versions:
            self._versions[key] = await self._ask_version(image, python)
        return self._versions[key]

    async def start(self, attempt: AttemptStart) -> Observation:
        """Starts the attempt, or gives what this uid has become already."""
        followed = self._attempts.get(attempt.uid) or self._follow(attempt.uid, attempt.directory, attempt)
        return await self._observed(followed)

    async def adopt(self, uid: str, directory: Path) -> Observation:
        """Finds an attempt by what its shim wrote; the container of one without a shim is removed first."""
        return await self._observed(self._attempts.get(uid) or self._follow(uid, directory, None))

    async def observe(self, uid: str) -> Observation:
        """The present state."""
        return await self._observed(self._known(uid))

    async def wait(self, uid: str) -> ExitRecord | Gone:
        """Returns within milliseconds of the attempt's end; any number of callers."""
        return await asyncio.shield(self._known(uid).end)

    async def stop(self, uid: str, grace_s: float = 10.0) -> None:
        """SIGTERM now, SIGKILL to all of the container after `grace_s`; returns at once."""
        attempt = self._known(uid)
        if not order(attempt.directory, record.stop_order(grace_s)):
            await attempt.begun.wait()
            order(attempt.directory, record.stop_order(grace_s))

    def logs(self, uid: str) -> LogFiles:
        """Where the attempt's output goes."""
        directory = self._known(uid).directory
        return LogFiles(directory / files.STDOUT, directory / files.STDERR)

    async def forget(self, uid: str) -> None:
        """Drops what is kept of an ended attempt; one that has not ended is kept."""
        attempt = self._attempts.get(uid)
        if attempt is not None and attempt.end.done():
            del self._attempts[uid]

    async def close(self) -> None:
        """Lets go of the attempts, which go on."""
        for life in self._lives:
            life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)
        self._attempts.clear()

    def _known(self, uid: str) -> _Attempt:
        try:
            return self._attempts[uid]
        except KeyError:
            raise LookupError(f"no attempt {uid!r} here: it was never started or adopted, or is forgotten") from None

    async def _observed(self, attempt: _Attempt) -> Observation:
        await attempt.begun.wait()
        if attempt.running is not None and not attempt.end.done():
            return attempt.running
        return await asyncio.shield(attempt.end)

    def _follow(self, uid: str, directory: Path, start: AttemptStart | None) -> _Attempt:
        attempt = self._attempts[uid] = _Attempt(directory, asyncio.get_running_loop().create_future())
        life = asyncio.create_task(self._live(attempt, start))
        self._lives.add(life)
        life.add_done_callback(self._lives.discard)
        return attempt

    async def _live(self, attempt: _Attempt, start: AttemptStart | None) -> None:
        shim: subprocess.Popen[bytes] | None = None
        try:
            if start is not None and not (attempt.directory / files.RUNNING).exists():
                shim = await self._spawn(start)
                await self._begun(attempt.directory, shim)
            if not (attempt.directory / files.EXIT).exists() and (found := await find_shim(attempt.directory)):
                ended = asyncio.ensure_future(end_of_process(found.shim, found.shim_started))
                while not (attempt.directory / STARTED).exists() and not ended.done():
                    await asyncio.wait([ended], timeout=_POLL_S)
                attempt.running = found.running()
                attempt.begun.set()
                await ended
                proc.reap(found.shim)
            attempt.end.set_result(read_exit(attempt.directory) or await self._end_remains(attempt.directory))
        except (OSError, ImageFailed) as error:
            why = f"the attempt's container could not be started: {error}"
            attempt.end.set_result(write_fault(attempt.directory, why, now=time.time()))
        except Exception as error:
            attempt.end.set_exception(error)
        finally:
            attempt.end.cancel()
            attempt.begun.set()
            if shim is not None and shim.poll() is None:
                shim.returncode = 0  # it goes on without this worker; nobody here waits for its end

    async def _spawn(self, start: AttemptStart) -> subprocess.Popen[bytes]:
        image = start.image or self.image
        await self.provide_image(image)
        await asyncio.to_thread(lay_out, start.directory)
        for name in (files.STDOUT, files.STDERR):
            (start.directory / name).touch()
        spec = ContainerSpec(
            name=f"fluster-{self._name}-{start.uid}",
            socket=str(self.engine.socket),
            config=container_config(start, image, self._name, self._cpu_quota),
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
            return Gone()
        lock = await take_lock_of_ended(directory)
        try:
            if (end := read_exit(directory)) is not None:
                return end
            (directory / files.ABANDONED).touch()
            if (spec := ContainerSpec.read(directory)) is not None:
                await self.engine.remove(spec.name)
            return Gone()
        finally:
            os.close(lock)

    async def _ask_version(self, image: str, python: str) -> str:
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        config = {
            "Image": image,
            "Entrypoint": [python, "-c", code],
            "User": f"{container_user()}:{container_user()}",
            "Labels": {labels.WORKER: self._name},
            "HostConfig": {"NetworkMode": "none", "CapDrop": ["ALL"], "SecurityOpt": ["no-new-privileges"]},
        }
        name = f"fluster-{self._name}-version-{os.urandom(4).hex()}"
        try:
            await self.engine.create(name, config)
            await self.engine.start(name)
            await self.engine.wait(name)
            said = await self.engine.last_lines(name, 1)
        except FlusterError as error:
            raise ImageFailed(f"image {image!r} has no interpreter {python!r} for a callable: {error}") from error
        finally:
            await self.engine.remove(name)
        if not said.replace(".", "").isdigit():
            raise ImageFailed(f"the interpreter {python!r} of image {image!r} does not run: {said}")
        return said


def _tell(shim: IO[bytes], content: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), shim:  # it ended: that is seen by who waits for it to begin
        shim.write(content)
