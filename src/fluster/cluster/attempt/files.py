"""What lies in an attempt's directory, and how it is written so that a crash leaves the old or the new file."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any

ENTRYPOINT = "entrypoint"
"""cloudpickle of `(fn, args, kwargs)`; absent for commands."""
RESULT = "result"
"""An `Outcome` message, written by the attempt's own process."""
STDOUT = "stdout"
STDERR = "stderr"
RUNNING = "running.json"
"""Who runs: the attempt's first process and its shim, each by pid and start time, and the boot they belong to."""
EXIT = "exit.json"
"""How it ended; written when nothing of the tree is left."""
CONTROL = "control"
"""A FIFO that the shim reads; having a reader means that the shim lives."""
LOCK = "lock"
"""Held (flock) by the shim for as long as it lives, so that an attempt has one shim or none."""
BOX = "box"
"""What an attempt of another user than the worker's, or in a container, sees as its own directory."""
ABANDONED = "abandoned"
"""The attempt was declared gone: a shim that comes late must not start it."""
LOADED = "loaded"
"""A fresh interpreter got as far as the job runtime."""


def write_atomically(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Replaces `path`; `durable` also survives a power cut with content and not as an empty file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    # Made here or not at all: whoever else writes in this directory must not lead it elsewhere.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_json(path: Path, fields: dict[str, Any], *, durable: bool = False) -> None:
    """Replaces `path` by one JSON object."""
    write_atomically(path, json.dumps(fields).encode(), durable=durable)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`; `None` if there is no such file."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    fields: dict[str, Any] = json.loads(content)
    return fields


def take_lock(directory: Path) -> int | None:
    """The descriptor that holds the attempt's lock until it is closed; `None` if somebody else holds it."""
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def last_lines(path: Path, *, lines: int = 5, limit_bytes: int = 2048) -> str:
    """The end of a text file, for a message; empty if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit_bytes))
            tail = file.read(limit_bytes)
    except OSError:
        return ""
    return "\n".join(tail.decode(errors="replace").strip().splitlines()[-lines:])
