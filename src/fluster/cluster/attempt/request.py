"""What the worker tells a zygote about one attempt: one JSON object behind its length and its number."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluster.cluster.attempt import files
from fluster.cluster.attempt.cgroup import Bounds, Hierarchy

LENGTH_BYTES = 4
HEAD_BYTES = 2 * LENGTH_BYTES
"""Before a request on the way to the zygote, which passes on what follows without a look at it."""


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
        user: Whose process it becomes; `None`: the worker's own user's.
        groups: That its user is in besides its own.
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
    user: int | None = None
    groups: tuple[int, ...] = ()

    @property
    def own_directory(self) -> Path:
        """Where the attempt finds what it calls, and leaves what came of it."""
        return self.directory if self.user is None else self.directory / files.BOX

    def to_frame(self) -> bytes:
        """The request as it goes to the zygote."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["environment"] = dict(self.environment)
        fields["bounds"] = [self.bounds.cpu, self.bounds.cpu_quota, self.bounds.memory_bytes, self.bounds.pids]
        content = json.dumps(fields, default=str).encode()
        return b"".join(each.to_bytes(LENGTH_BYTES, "big") for each in (len(content), self.number)) + content

    @classmethod
    def from_json(cls, content: bytes) -> StartRequest:
        """The request without its head."""
        fields: dict[str, Any] = json.loads(content)
        fields["directory"] = Path(fields["directory"])
        fields["working_directory"] = Path(fields["working_directory"])
        fields["argv"] = tuple(fields["argv"]) if fields["argv"] is not None else None
        fields["import_path"] = tuple(fields["import_path"])
        fields["groups"] = tuple(fields["groups"])
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


def read_head(descriptor: int) -> tuple[int, int] | None:
    """Length and number of the next request on a zygote's pipe; `None`: there is none any more."""
    head = _read_exactly(descriptor, HEAD_BYTES)
    if head is None:
        return None
    return int.from_bytes(head[:LENGTH_BYTES], "big"), int.from_bytes(head[LENGTH_BYTES:], "big")


def pass_frame(source: int, length: int, target: int | None) -> bool:
    """Moves a request from pipe to pipe, as a frame; without a target, or a reader of it, the request is passed over.

    Inside the kernel: what a zygote had in its memory, the attempts that it forks later could look for there.

    Returns:
        Whether all of it was moved.
    """
    left = length
    if target is not None:
        with contextlib.suppress(BrokenPipeError):
            os.write(target, length.to_bytes(LENGTH_BYTES, "big"))
            while left and (moved := os.splice(source, target, left)):
                left -= moved
            return left == 0
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    while left and (moved := os.splice(source, nowhere, left)):
        left -= moved
    os.close(nowhere)
    return False
