"""What jobs of these tests do. Imports next to nothing: each attempt imports this module anew."""

from __future__ import annotations

import os
import time
from pathlib import Path


def testify(directory: Path) -> int:
    """Notes that it runs, prints numbered lines until there is a gate, and returns how many it printed."""
    with (directory / "runs").open("a") as file:
        file.write(f"{os.getpid()}\n")
    lines = 0
    while not (directory / "gate").exists():
        print(lines)
        lines += 1
        time.sleep(0.002)
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
