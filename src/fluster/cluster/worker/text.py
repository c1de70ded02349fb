"""Text that a person reads, made from bytes that a job wrote."""

from __future__ import annotations

import os
from pathlib import Path

LAST_LINES = 10
LAST_BYTES = 4096
# Up to four bytes of a character may lie before the cut.
_CUT = 3


def printable(text: str, limit: int = LAST_BYTES) -> str:
    """The text without control characters but newline and tab, at most `limit` characters long."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def last_lines(path: Path, *, lines: int = LAST_LINES, limit: int = LAST_BYTES) -> str:
    """The last lines of a file, at most `limit` bytes of it; empty if there are none or no such file."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = max(0, size - limit - _CUT)
            file.seek(start)
            content = file.read(limit + _CUT)
    except OSError:
        return ""
    if start:
        content = content[_CUT:]
        while content and 0x80 <= content[0] < 0xC0:  # the rest of a character that was cut
            content = content[1:]
    text = content.decode(errors="replace").replace("\r\n", "\n").rstrip()
    return printable("\n".join(text.split("\n")[-lines:]))


def said_last(stdout: Path, stderr: Path) -> str:
    """What the job printed last, with a heading that names the stream; empty if it printed nothing."""
    for name, path in (("stderr", stderr), ("stdout", stdout)):
        if lines := last_lines(path):
            return f"last lines of {name}:\n{lines}"
    return ""
