"""The runtime of a worker that runs both: containers for attempts that ask for an image, processes for the others."""

from __future__ import annotations

from pathlib import Path

from fluster.cluster.docker.shim import SPEC
from fluster.cluster.worker.docker_images import DockerImages
from fluster.cluster.worker.docker_runtime import DockerRuntime
from fluster.cluster.worker.process_runtime import ProcessRuntime
from fluster.cluster.worker.runtime import AttemptStart, ExitRecord, Gone, LogFiles, Observation, Runtime


class EitherRuntime:
    """Both, each with its own attempts.

    Attributes:
        processes, containers: Those.
    """

    def __init__(self, processes: ProcessRuntime, containers: DockerRuntime) -> None:
        self.processes = processes
        self.containers = containers
        self._contained: set[str] = set()

    @property
    def name(self) -> str:
        """`process`: what an attempt is that does not ask for an image."""
        return self.processes.name

    @property
    def images(self) -> DockerImages:
        """What it knows of images."""
        return self.containers.images

    @property
    def enforcement(self) -> str:
        """What holds the limits of processes."""
        return self.processes.enforcement

    async def prepare(self) -> None:
        """Warms the zygote; looks for containers of earlier attempts where there is an engine."""
        await self.processes.prepare()
        if self.containers.engine.socket.exists() and not await self.containers.engine.why_not():
            await self.containers.prepare()

    async def start(self, attempt: AttemptStart) -> Observation:
        """Starts it where it belongs."""
        if attempt.image is None:
            return await self.processes.start(attempt)
        self._contained.add(attempt.uid)
        return await self.containers.start(attempt)

    async def adopt(self, uid: str, directory: Path) -> Observation:
        """Finds it where it belongs."""
        if (directory / SPEC).exists():
            self._contained.add(uid)
        return await self._of(uid).adopt(uid, directory)

    async def observe(self, uid: str) -> Observation:
        """The present state."""
        return await self._of(uid).observe(uid)

    async def wait(self, uid: str) -> ExitRecord | Gone:
        """Returns when it has ended."""
        return await self._of(uid).wait(uid)

    async def stop(self, uid: str, grace_s: float = 10.0) -> None:
        """SIGTERM now, SIGKILL after the grace."""
        await self._of(uid).stop(uid, grace_s)

    def logs(self, uid: str) -> LogFiles:
        """Where its output goes."""
        return self._of(uid).logs(uid)

    async def forget(self, uid: str) -> None:
        """Drops what is kept of it once it has ended."""
        await self._of(uid).forget(uid)
        self._contained.discard(uid)

    async def close(self) -> None:
        """Lets go of the attempts of both."""
        await self.processes.close()
        await self.containers.close()

    def _of(self, uid: str) -> Runtime:
        return self.containers if uid in self._contained else self.processes
