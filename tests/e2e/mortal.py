"""A controller that dies on purpose: at the n-th boundary of what it does, and is there again at once.

As a program: forks one controller after the other, from a process that has imported everything, until it is killed.

A boundary is the moment before or after a commit, or before or after something is done to the world: a piece of a log
or a blob is kept, a worker is answered, a machine is asked for or given back.
"""

from __future__ import annotations

import functools
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.e2e.lab import WITHIN_S, in_thread
from tests.e2e.outside import PATH

from fluster import Cluster
from fluster.cluster.attempt import proc
from fluster.cluster.context import read_token_file
from fluster.cluster.worker import network


class Fuse:
    """Counts boundaries down over all controllers of one directory; shared memory, so that it outlives them.

    It holds how many boundaries are left (0: they are not counted), how many the next controller will have, and how
    often a controller has died.
    """

    _NUMBERS = struct.Struct("3q")

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(self._NUMBERS.size)
            self._memory = mmap.mmap(file.fileno(), self._NUMBERS.size)
        self._lock = threading.Lock()

    def arm(self, boundary: int, *, after_that: int = 0) -> None:
        """The controller dies at that boundary from now, and the next one at its `after_that`-th."""
        self._write(boundary, after_that, 0)

    def disarm(self) -> int:
        """No more of it; returns how often a controller has died."""
        deaths = self._read()[2]
        self._write(0, 0, deaths)
        return deaths

    def burn(self) -> None:
        """A boundary: this process may end here."""
        with self._lock:
            left, following, deaths = self._read()
            if left == 1:
                self._write(following, 0, deaths + 1)
                os.kill(os.getpid(), signal.SIGKILL)
            if left:
                self._write(left - 1, following, deaths)

    def close(self) -> None:
        """Lets go of the memory."""
        self._memory.close()

    def _read(self) -> tuple[int, ...]:
        return self._NUMBERS.unpack(self._memory[:])

    def _write(self, *numbers: int) -> None:
        self._memory[:] = self._NUMBERS.pack(*numbers)


class MortalServer:
    """`controller serve` on a state directory, started again whenever it dies; a context manager.

    Args:
        state_dir: Its own.
        options: Further words of its command line.
    """

    def __init__(self, state_dir: Path, *options: str) -> None:
        state_dir.mkdir(exist_ok=True)
        self.state_dir = state_dir
        self.fuse = Fuse(state_dir / "fuse")
        self.port = network.free_port("127.0.0.1")
        self._words = [
            str(state_dir / "fuse"),
            "serve",
            "--state-dir",
            str(state_dir),
            "--port",
            str(self.port),
            *options,
        ]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        with (self.state_dir / "stderr").open("a") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, *self._words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, "PYTHONPATH": PATH},
            )
        assert self._process.stdout is not None
        assert in_thread(self._process.stdout.readline).result(WITHIN_S), (self.state_dir / "stderr").read_text()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self.fuse.close()

    def client(self) -> Cluster:
        """One of the administrator's."""
        return Cluster(f"http://127.0.0.1:{self.port}", token=read_token_file(self.state_dir / "admin.token"))


def _watched(fuse: Fuse, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def watched(*args: Any, **kwargs: Any) -> Any:
        fuse.burn()
        answer = call(*args, **kwargs)
        fuse.burn()
        return answer

    return watched


def _watched_async(fuse: Fuse, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    async def watched(*args: Any, **kwargs: Any) -> Any:
        fuse.burn()
        answer = await call(*args, **kwargs)
        fuse.burn()
        return answer

    return watched


def _watch_everything(fuse: Fuse) -> None:
    from fluster.cluster.backend.local import LocalBackend
    from fluster.cluster.controller.blobs import BlobStore
    from fluster.cluster.controller.logstore import LogStore
    from fluster.cluster.controller.store import Store
    from fluster.cluster.controller.sync import Workers

    for owner, name in ((Store, "commit"), (LogStore, "append"), (BlobStore, "put"), (Workers, "_answer")):
        setattr(owner, name, _watched(fuse, getattr(owner, name)))
    for name in ("allocate", "wait_ready", "release"):
        setattr(LocalBackend, name, _watched_async(fuse, getattr(LocalBackend, name)))


def main(fuse_file: str, *words: str) -> None:
    """Serves until it is killed, however often a controller dies."""
    from fluster.cluster.controller import main as controller

    _watch_everything(Fuse(Path(fuse_file)))
    while True:
        if (pid := os.fork()) == 0:
            proc.die_with_parent(signal.SIGKILL)
            os._exit(controller.main(words))
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
