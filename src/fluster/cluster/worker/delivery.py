"""Where logs, results and pickled callables go to and come from: a controller, or nowhere."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from pathlib import Path
from typing import BinaryIO, Protocol

from fluster.cluster.own_wheel import build_own_wheel
from fluster.cluster.worker import logfile
from fluster.cluster.worker.outcome import open_result
from fluster.cluster.worker.runtime import LogFiles
from fluster.rpc.gen.fluster.cluster.v1.types_pb import Payload

LOG_CAP_BYTES = 256 << 20
_BLOCK = 1 << 20


class Delivery(Protocol):
    """What attempts need of the world outside their worker. Waits out an absent controller."""

    def follow_logs(self, uid: str, files: LogFiles, *, adopted: bool) -> None:
        """Ships what the attempt prints from now on; `adopted`: an earlier daemon may have shipped some of it."""
        ...

    async def finish_logs(self, uid: str) -> None:
        """Returns when everything the ended attempt printed has arrived."""
        ...

    async def store_result(self, path: Path) -> Payload:
        """Sends a result that is too large to travel in a report.

        Raises:
            ResourceExhausted: There is no room for it.
            BadOutcome: It is no regular file.
        """
        ...

    async def fetch(self, sha256: str, path: Path) -> None:
        """Writes the content with this hash to `path`.

        Raises:
            ValueError: What came has another hash, again and again.
            FlusterError: The controller refuses to send it.
        """
        ...

    async def own_wheel(self, directory: Path) -> Path:
        """Fluster's own wheel, kept below `directory` by its hash: what jobs of the cluster run.

        Raises:
            ValueError: What came has another hash, again and again.
            FlusterError: It cannot be made, or the controller refuses to send it.
        """
        ...

    def forget(self, uid: str) -> None:
        """Nobody wants to hear of the attempt any more."""
        ...


class StaysHere:
    """The delivery of a standalone worker: logs and results are read from the attempt's directory.

    Args:
        cap_bytes: How much of each stream is kept; older bytes are cut off.
        look_s: How often files are looked at.
    """

    def __init__(self, *, cap_bytes: int = LOG_CAP_BYTES, look_s: float = 0.5) -> None:
        self._cap = cap_bytes
        self._look_s = look_s
        self._cutting: dict[str, asyncio.Task[None]] = {}
        self._wheel: Path | None = None

    def follow_logs(self, uid: str, files: LogFiles, *, adopted: bool) -> None:
        """Keeps the files from growing beyond the cap."""
        self._cutting[uid] = asyncio.create_task(self._keep_small(files))

    async def finish_logs(self, uid: str) -> None:
        """Nothing is cut off any more."""
        self.forget(uid)

    async def store_result(self, path: Path) -> Payload:
        """Names the result, whose bytes stay where they are."""
        with open_result(path) as file:
            return Payload(sha256=sha256_of(file))

    async def fetch(self, sha256: str, path: Path) -> None:
        """Refuses: there is nobody to fetch from."""
        raise ValueError("a standalone worker takes everything in place, nothing by its hash")

    async def own_wheel(self, directory: Path) -> Path:
        """Of the Fluster that runs here."""
        if self._wheel is None or not self._wheel.exists():
            self._wheel = await asyncio.to_thread(_build_wheel, directory)
        return self._wheel

    def forget(self, uid: str) -> None:
        """Lets its files be."""
        if (task := self._cutting.pop(uid, None)) is not None:
            task.cancel()

    async def _keep_small(self, files: LogFiles) -> None:
        while True:
            for path in (files.stdout, files.stderr):
                logfile.cut(path, logfile.size_of(path) - self._cap)
            await asyncio.sleep(self._look_s)


def _build_wheel(directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        made = build_own_wheel(Path(temporary))
        with open(made, "rb") as file:
            path = wheel_path(directory, sha256_of(file), made.name)
        os.replace(made, path)
        return path


def wheel_path(directory: Path, sha256: str, name: str) -> Path:
    """Where a wheel of that hash is kept; its directory is made."""
    if "/" in name or not name.endswith(".whl"):
        raise ValueError(f"{name!r} is no name of a wheel")
    (directory / sha256).mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory / sha256 / name


def sha256_of(file: BinaryIO) -> str:
    """Hex hash of a file from its beginning; the position is at the beginning again afterwards."""
    digest = hashlib.sha256()
    file.seek(0, os.SEEK_SET)
    while block := file.read(_BLOCK):
        digest.update(block)
    file.seek(0, os.SEEK_SET)
    return digest.hexdigest()
