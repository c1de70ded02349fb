"""The delivery of a worker that has joined a controller."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from fluster.cluster.worker.decide import pause_s
from fluster.cluster.worker.delivery import wheel_path
from fluster.cluster.worker.link import ControllerLink
from fluster.cluster.worker.logs import LogShipper
from fluster.cluster.worker.messages import blob_payload
from fluster.cluster.worker.runtime import LogFiles
from fluster.errors import NotPermitted, RemoteFault, Unreachable
from fluster.rpc.gen.fluster.cluster.v1.types_pb import Payload

_log = logging.getLogger(__name__)

_AWAY = (Unreachable, TimeoutError, RemoteFault)
_HASH_TRIES = 3
_REFUSALS = 10
"""In a row, some 12 s in all."""

T = TypeVar("T")


class ToController:
    """Logs are pushed, large results become blobs, large callables are fetched. An absent controller is waited for."""

    def __init__(self, link: ControllerLink, shipper: LogShipper) -> None:
        self._link = link
        self._shipper = shipper

    def follow_logs(self, uid: str, files: LogFiles, *, adopted: bool) -> None:
        """Ships what the attempt prints from now on."""
        self._shipper.follow(uid, files, adopted=adopted)

    async def finish_logs(self, uid: str) -> None:
        """Returns when everything the ended attempt printed has arrived."""
        await self._shipper.finish(uid)

    async def store_result(self, path: Path) -> Payload:
        """Sends the result as a blob."""
        return blob_payload(await _until_there(lambda: self._link.put_blob(path)))

    async def fetch(self, sha256: str, path: Path) -> None:
        """Writes the content to `path`; damaged content is asked for again, three times in all."""
        for tries_left in reversed(range(_HASH_TRIES)):
            try:
                await _until_there(lambda: self._link.get_blob(sha256, path))
                return
            except ValueError as error:
                if not tries_left:
                    raise
                _log.warning("%s; asking again", error)

    async def own_wheel(self, directory: Path) -> Path:
        """The controller's."""
        name, sha256 = await _until_there(self._link.get_wheel)
        path = wheel_path(directory, sha256, name)
        if not path.exists():
            arriving = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            try:
                await self.fetch(sha256, arriving)
                os.replace(arriving, path)
            finally:
                arriving.unlink(missing_ok=True)
        return path

    def forget(self, uid: str) -> None:
        """Nobody wants to hear of the attempt any more."""
        self._shipper.forget(uid)


async def _until_there(call: Callable[[], Awaitable[T]]) -> T:
    failures = 0
    while True:
        try:
            return await call()
        except _AWAY as error:
            failures += 1
            _log.info("waiting for the controller: %s", error)
            await asyncio.sleep(pause_s(failures))
        except NotPermitted as error:
            # This worker may be about to register, with another token than the one that was sent.
            failures += 1
            if failures >= _REFUSALS:
                raise
            _log.info("waiting to be registered: %s", error)
            await asyncio.sleep(pause_s(failures))
