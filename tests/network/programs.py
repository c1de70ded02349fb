"""What jobs of these tests do."""

from __future__ import annotations

import os
import time
from pathlib import Path


def beat(directory: Path) -> int:
    """Writes down when it began and, without pause, when it was last alive; prints numbered lines; ends at a gate."""
    began, lines = time.monotonic_ns(), 0
    descriptor = os.open(directory / f"{began}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    while not (directory / "gate").exists():
        os.pwrite(descriptor, f"{time.monotonic_ns():020d}".encode(), 0)
        print(lines)
        lines += 1
        time.sleep(0.002)
    return lines


def beat_as(directory: Path, name: str) -> int:
    """The same, with an endpoint that says which process it is."""
    from fluster import current_cluster
    from fluster.cluster.context import TaskContext

    task = TaskContext.from_environment()
    assert task is not None
    with current_cluster() as cluster:
        cluster.register_endpoint(name, f"{task.advertise_host}:1", metadata={"pid": str(os.getpid())})
        return beat(directory)


class Teller:
    """An actor that says one thing."""

    def __init__(self, said: str) -> None:
        self._said = said

    def say(self) -> str:
        """What it was made with."""
        return self._said


def tell(name: str, port: int, said: str) -> None:
    """Serves a `Teller` at a port of its worker's address until it is stopped."""
    from fluster import ActorServer, current_cluster

    with current_cluster() as cluster, ActorServer(cluster, port=port) as server:
        server.register(name, Teller(said))
        server.serve()


def count(lines: int) -> int:
    """Prints that many lines of a hundred characters."""
    for number in range(lines):
        print(f"{number:<99}")
    return lines
