"""What the worker tells a zygote about one attempt: one JSON object behind its length."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluster.cluster.attempt.cgroup import Bounds, Hierarchy

LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class StartRequest:
    """One attempt to start.

    Attributes:
        number: Names the reply.
        uid: The attempt's.
        directory: The attempt's own.
        argv: What to execute; `None` calls the entrypoint in the fork itself.
        interpreter: `argv` is an interpreter that runs the job runtime.
        environment: The whole of it.
        working_directory: Where the attempt starts.
        import_path: First on `sys.path` of a callable.
        bounds: Cpu, memory and processes.
        time_s: Longest time from the start.
        grace_s: Between SIGTERM and SIGKILL when that time, or the lease, is over.
        lease: File that says until when the worker's attempts may run; `None`: for as long as they like.
    """

    number: int
    uid: str
    directory: Path
    argv: tuple[str, ...] | None
    interpreter: bool
    environment: Mapping[str, str]
    working_directory: Path
    import_path: tuple[str, ...]
    bounds: Bounds
    time_s: float | None
    grace_s: float
    lease: Path | None = None

    def to_frame(self) -> bytes:
        """The request as it goes down the pipe."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["environment"] = dict(self.environment)
        fields["bounds"] = [self.bounds.cpu, self.bounds.cpu_quota, self.bounds.memory_bytes, self.bounds.pids]
        content = json.dumps(fields, default=str).encode()
        return len(content).to_bytes(LENGTH_BYTES, "big") + content

    @classmethod
    def from_json(cls, content: bytes) -> StartRequest:
        """The request out of a frame without its length."""
        fields: dict[str, Any] = json.loads(content)
        fields["directory"] = Path(fields["directory"])
        fields["working_directory"] = Path(fields["working_directory"])
        fields["argv"] = tuple(fields["argv"]) if fields["argv"] is not None else None
        fields["import_path"] = tuple(fields["import_path"])
        fields["bounds"] = Bounds(*fields["bounds"])
        fields["lease"] = Path(fields["lease"]) if fields["lease"] is not None else None
        return cls(**fields)


def hierarchies_to_json(hierarchies: tuple[Hierarchy, ...]) -> list[tuple[str, int, tuple[str, ...]]]:
    """Control groups as a zygote's command line and running records hold them."""
    return [(str(each.path), each.version, each.controllers) for each in hierarchies]


def hierarchies_from_json(rows: list[tuple[str, int, list[str]]]) -> tuple[Hierarchy, ...]:
    """The other way round."""
    return tuple(Hierarchy(Path(path), version, tuple(controllers)) for path, version, controllers in rows)


def write_frame(descriptor: int, content: bytes) -> None:
    """Writes one frame to a blocking pipe."""
    frame = memoryview(len(content).to_bytes(LENGTH_BYTES, "big") + content)
    while frame:
        frame = frame[os.write(descriptor, frame) :]


def read_frame(descriptor: int) -> bytes | None:
    """The content of one frame from a blocking pipe; `None` when the other side is gone."""
    length = _read_exactly(descriptor, LENGTH_BYTES)
    return None if length is None else _read_exactly(descriptor, int.from_bytes(length, "big"))


def _read_exactly(descriptor: int, count: int) -> bytes | None:
    received = bytearray()
    while len(received) < count:
        if not (chunk := os.read(descriptor, count - len(received))):
            return None
        received += chunk
    return bytes(received)


def take_frame(received: bytearray) -> bytes | None:
    """Removes one whole frame from what was received and gives its content; `None` if there is none yet."""
    end = LENGTH_BYTES + int.from_bytes(received[:LENGTH_BYTES], "big")
    if len(received) < LENGTH_BYTES or len(received) < end:
        return None
    content = bytes(received[LENGTH_BYTES:end])
    del received[:end]
    return content


def request_number(content: bytes) -> int:
    """The number of the request in a frame."""
    number: int = json.loads(content)["number"]
    return number
