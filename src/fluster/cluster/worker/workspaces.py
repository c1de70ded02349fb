"""Workspaces on a worker: fetched once, unpacked into each attempt's own directory."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from fluster.cluster.archive import unpack
from fluster.cluster.worker.cache import Shelf
from fluster.cluster.worker.delivery import Delivery

CAP_BYTES = 2 * 1024**3
"""Of archives kept: what is unpacked belongs to the attempts."""


class Archives:
    """Archives of workspaces, kept for the attempts that will ask for them again."""

    def __init__(self, directory: Path, delivery: Delivery) -> None:
        self._shelf = Shelf(directory)
        self._delivery = delivery

    async def unpack(self, sha256: str, directory: Path) -> None:
        """Writes a workspace's files into an empty directory.

        Raises:
            BadArchive: It must not be unpacked.
            ValueError: What came has another hash, again and again.
            FlusterError: The controller refuses to send it.
            OSError: A file cannot be written.
        """
        async with self._shelf.locked(sha256):
            if not self._shelf.path(sha256).exists():
                await self._fetch(sha256)
            file = await asyncio.to_thread(open, self._shelf.path(sha256), "rb")
        with file:
            stopped = threading.Event()
            work = asyncio.create_task(asyncio.to_thread(unpack, file, directory, go_on=lambda: not stopped.is_set()))
            try:
                await asyncio.shield(work)
            finally:
                # Whoever deletes the directory next must be alone in it.
                stopped.set()
                await asyncio.wait([work])

    async def _fetch(self, sha256: str) -> None:
        made = self._shelf.new(sha256)
        try:
            await self._delivery.fetch(sha256, made)
            self._shelf.put(sha256, made)
        finally:
            await asyncio.to_thread(self._shelf.clear, sha256)
        await asyncio.to_thread(self._shelf.evict, CAP_BYTES, lambda path: path.stat().st_size)
