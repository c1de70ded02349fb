"""Known secrets are replaced by asterisks, as many as they have bytes, in what leaves the worker as text."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from fluster.cluster.attempt.files import write_atomically
from fluster.cluster.worker import logfile
from fluster.cluster.worker.outcome import open_result

SHORTEST_BYTES = 6
"""Shorter values are left alone: asterisks for each `1` or `true` would hide nothing and spoil the log."""


_MAX_REWRITTEN_BYTES = 64 << 20


class Veil:
    """Hides the secrets of one attempt.

    A value is found as it is, line by line where it has several, and as JSON, URLs and base64 write the whole of it.
    Anything else a program makes of it is not recognized.

    Args:
        secrets: The values.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets for form in _forms(secret) if len(form) >= SHORTEST_BYTES}
        self._forms = sorted(forms, key=lambda form: (-len(form), form))
        self._longest = len(self._forms[0]) if forms else 0
        self._pattern = re.compile(b"|".join(map(re.escape, self._forms))) if forms else None

    def text(self, text: str) -> str:
        """A text without them."""
        if self._pattern is None:
            return text
        return self._mask(text.encode(errors="surrogateescape")).decode(errors="surrogateescape")

    def read(self, path: Path, start: int, length: int, *, final: bool) -> bytes:
        """What a log has from `start` on, without them; every byte keeps its place.

        It ends before what may become a secret once more is written, unless it is `final`.
        """
        if self._pattern is None:
            return logfile.read(path, start, length)
        around = self._longest - 1
        before = min(start, around)
        window = logfile.read(path, start - before, before + length + around)
        end = min(len(window), before + length)
        if not final and len(window) < before + length + around:
            end = min(end, len(window) - self._begun(window))
        return self._mask(window)[before:end]

    def rewrite(self, path: Path) -> None:
        """Takes them out of a pickled exception: what is put in their place has the same length, so it stays one.

        Raises:
            OSError: The file cannot be read or written.
        """
        if self._pattern is None:
            return
        with open_result(path) as file:
            content = file.read(_MAX_REWRITTEN_BYTES + 1)
        if len(content) > _MAX_REWRITTEN_BYTES:
            raise OSError(f"an exception of more than {_MAX_REWRITTEN_BYTES:,} bytes is not looked through for secrets")
        if (masked := self._mask(content)) != content:
            write_atomically(path, masked)

    def _mask(self, data: bytes) -> bytes:
        assert self._pattern is not None
        return self._pattern.sub(lambda found: b"*" * len(found[0]), data)

    def _begun(self, data: bytes) -> int:
        """Length of the longest end of `data` with which a secret begins."""
        for length in range(min(self._longest - 1, len(data)), 0, -1):
            end = data[-length:]
            if any(len(form) > length and form.startswith(end) for form in self._forms):
                return length
        return 0


def _forms(secret: str) -> Iterator[bytes]:
    yield secret.encode()
    for line in secret.splitlines():
        yield line.strip().encode()
    yield json.dumps(secret)[1:-1].encode()
    yield json.dumps(secret, ensure_ascii=False)[1:-1].encode()
    yield quote(secret, safe="").encode()
    yield base64.b64encode(secret.encode())
