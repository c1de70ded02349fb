"""Images of a machine's Docker Engine: fetched once, shown by digest, asked for their Python."""

from __future__ import annotations

import asyncio
import logging
import os

from fluster.cluster.docker import labels
from fluster.cluster.docker.engine import Engine, EngineError
from fluster.cluster.worker.container_config import container_user
from fluster.cluster.worker.runtime import ImageFailed
from fluster.errors import FlusterError

_log = logging.getLogger(__name__)

_NEVER_THERE = ("not found", "No such image", "access denied", "invalid reference", "manifest unknown", "not exist")
"""What registries say of images that are not there; anything else may be otherwise in a moment."""


class DockerImages:
    """As one worker uses them.

    Args:
        engine: Has them.
        worker: Marks the containers that look into them.
        image: Of attempts that ask for none.

    Attributes:
        image: The same.
    """

    def __init__(self, engine: Engine, worker: str, image: str) -> None:
        self.image = image
        self._engine = engine
        self._worker = worker
        self._pulling: dict[str, asyncio.Lock] = {}
        self._versions: dict[tuple[str, str], str] = {}

    async def provide_image(self, image: str) -> str:
        """Fetches an image unless it is here; its digest.

        Raises:
            ImageFailed: It cannot be had.
        """
        async with self._pulling.setdefault(image, asyncio.Lock()):
            try:
                found = await self._engine.image(image)
                if found is None:
                    _log.info("pulling %s", image)
                    await self._engine.pull(image)
                    found = await self._engine.image(image)
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

    async def _ask_version(self, image: str, python: str) -> str:
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        config = {
            "Image": image,
            "Entrypoint": [python, "-c", code],
            "User": f"{container_user()}:{container_user()}",
            "Labels": {labels.WORKER: self._worker},
            "HostConfig": {"NetworkMode": "none", "CapDrop": ["ALL"], "SecurityOpt": ["no-new-privileges"]},
        }
        name = f"fluster-{self._worker}-version-{os.urandom(4).hex()}"
        try:
            await self._engine.create(name, config)
            await self._engine.start(name)
            await self._engine.wait(name)
            said = await self._engine.last_lines(name, 1)
        except FlusterError as error:
            raise ImageFailed(f"image {image!r} has no interpreter {python!r}: {error}") from error
        finally:
            await self._engine.remove(name)
        if not said.replace(".", "").isdigit():
            raise ImageFailed(f"the interpreter {python!r} of image {image!r} does not run: {said}")
        return said
