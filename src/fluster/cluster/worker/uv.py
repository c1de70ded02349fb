"""Runs uv, which builds environments: what it says meanwhile, and what its failures mean."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from fluster.cluster.attempt import tied
from fluster.cluster.worker.jobusers import as_user
from fluster.cluster.worker.variables import OF_ANOTHER_ENVIRONMENT, base_variables

_SAID_CHARS = 6_000
_LONGEST_LINE = 1 << 20


class Fault(StrEnum):
    """What a failure of uv comes from."""

    REQUEST = "request"
    """What was asked for: it fails again."""
    DOWNLOAD = "download"
    """The network or an index: later it may work."""
    DAMAGE = "damage"
    """Something arrived, or was kept, damaged."""


class UvFailed(Exception):
    """uv did not do it. `text`: what it said."""

    def __init__(self, text: str, fault: Fault) -> None:
        super().__init__(text)
        self.text = text
        self.fault = fault


def find_uv() -> str | None:
    """The program: what is installed beside this interpreter, else what is on the PATH."""
    with contextlib.suppress(ImportError, FileNotFoundError):
        return str(importlib.import_module("uv").find_uv_bin())
    return shutil.which("uv")


def uv_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """A daemon's environment as uv may see it: without the daemon's secrets."""
    kept = {name: value for name, value in base_variables(environment).items() if name not in OF_ANOTHER_ENVIRONMENT}
    # They are closed once they are there: what is not compiled then is compiled by each process that imports it.
    defaults = {"UV_COMPILE_BYTECODE": "1"}
    return {**defaults, **kept, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}


async def run_uv(
    uv: str,
    arguments: Sequence[str],
    *,
    directory: Path,
    environment: Mapping[str, str],
    heard: Callable[[str], None] = lambda _line: None,
    user: int | None = None,
) -> None:
    """Runs it to its end. If this is cancelled uv and what it started are killed first.

    Args:
        uv: The program.
        arguments: Of it.
        directory: Where it runs.
        environment: The whole of it.
        heard: Called with each line it says.
        user: Whose it is; `None`: this process's.

    Raises:
        UvFailed: It failed.
        OSError: The disk is full.
    """
    process = await asyncio.create_subprocess_exec(
        # uv ends with the daemon, however that ends: nobody would look after what it builds.
        *(sys.executable, "-P", "-m", tied.__name__, str(os.getpid()), uv, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        cwd=directory,
        start_new_session=True,
        limit=_LONGEST_LINE,
        **as_user(user),  # type: ignore[arg-type]
    )
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(dict(environment)).encode())
        process.stdin.write_eof()
        said = await _listen(process, heard)
        status = await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        raise
    if status != 0:
        raise _failure(said, status)


async def _listen(process: asyncio.subprocess.Process, heard: Callable[[str], None]) -> str:
    """The end of what it says."""
    assert process.stderr is not None
    said = ""
    while content := await process.stderr.readline():
        line = content.decode(errors="replace")
        said = (said + line)[-_SAID_CHARS:]
        heard(line.rstrip())
    return said


_CHATTER = ("Using Python ", "Resolved ", "Prepared ", "Installed ")
_DISK = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_DAMAGE = re.compile(
    r"hash mismatch|corrupt|checksum|crc|invalid (gzip|zip|archive|header)|unexpected (eof|end of)|not a (zip|valid)"
    r"|failed to (extract|unzip|unpack|read (archive|from zip))",
    re.IGNORECASE,
)
_DOWNLOAD = re.compile(
    r"error sending request|connect error|dns error|timed out|timeout|connection (refused|reset|closed)"
    r"|status server error|too many requests|network is unreachable|failed to lookup address|request failed after"
    r"|incompletemessage|error decoding response body",
    re.IGNORECASE,
)


def _failure(said: str, status: int) -> Exception:
    if _DISK.search(said):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    lines = [line for line in said.splitlines() if not line.startswith(_CHATTER)]
    text = "\n".join(lines).strip() or f"uv ended with status {status} and said nothing"
    for pattern, fault in ((_DOWNLOAD, Fault.DOWNLOAD), (_DAMAGE, Fault.DAMAGE)):
        if pattern.search(said):
            return UvFailed(text, fault)
    return UvFailed(text, Fault.REQUEST)
