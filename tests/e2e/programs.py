"""What jobs of these tests do. Imports next to nothing: each attempt imports this module anew."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def testify(directory: Path) -> int:
    """Notes that it runs, prints numbered lines until there is a gate, and returns how many it printed."""
    return _testify(directory, 0.002)


def linger(directory: Path) -> int:
    """The same for a long time: it prints less."""
    return _testify(directory, 0.05)


def _testify(directory: Path, pause_s: float) -> int:
    with (directory / "runs").open("a") as file:
        file.write(f"{os.getpid()}\n")
    lines = 0
    while not (directory / "gate").exists():
        print(lines)
        lines += 1
        time.sleep(pause_s)
    return lines


def have_testified(directory: Path) -> int:
    """The same, by a job of its own."""
    from fluster import current_cluster

    with current_cluster() as cluster:
        lines: int = cluster.submit(testify, directory).result()
        return lines


def note_run(directory: Path, name: str) -> str:
    """Leaves one file for each time it is called, takes a moment, and returns its name."""
    (directory / f"{name}.{os.getpid()}.{time.monotonic_ns()}").touch()
    print(f"{name} begins")
    time.sleep(0.05)
    print(f"{name} ends")
    return name


def fail_once(directory: Path, name: str) -> str:
    """As `note_run`, but its first run ends with an exception."""
    first = not list(directory.glob(f"{name}.*"))
    note_run(directory, name)
    if first:
        raise ValueError("not yet")
    return name


def print_lines(lines: int) -> int:
    """Prints so many numbered lines, a little at a time."""
    for number in range(lines):
        print(f"{number:06d} " + "x" * 40)
        if number % 500 == 0:
            time.sleep(0.005)
    return lines


def give_back(content: bytes) -> bytes:
    """Its argument."""
    return content


def tell_time() -> float:
    """What the machine's clock shows."""
    return time.time()


def print_and_die(lines: int, way: str) -> None:
    """Prints numbered lines, the last of them a moment before it ends as it is told to."""
    for number in range(lines):
        print(f"{number:05d}")
    sys.stdout.flush()
    if way == "exit":
        os._exit(3)
    if way == "exception":
        raise ValueError("it had to be")
    if way == "out of memory":
        hoard = []
        while True:
            hoard.append(bytearray(os.urandom(1 << 20)))
    os.kill(os.getpid(), getattr(signal, way))


class Adder:
    """An actor."""

    def add(self, a: int, b: int) -> int:
        """Their sum."""
        return a + b


def serve_adder() -> None:
    """Has an `Adder` for everybody, until it is stopped."""
    from fluster import ActorServer, current_cluster

    server = ActorServer(current_cluster())
    server.register("adder", Adder())
    server.serve()


def ask_adder() -> tuple[int, str]:
    """What the `Adder` of another job makes of 2 and 3, and where it is."""
    from fluster import ClusterResolver, current_cluster

    pool = ClusterResolver(current_cluster()).lookup("adder")
    pool.wait_for_size(1, timeout=60.0)
    return pool.call().add(2, 3), pool.endpoints[0].address
