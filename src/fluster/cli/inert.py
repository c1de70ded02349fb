"""What a job printed, made harmless for a terminal; see `fluster.cluster.inert` for texts in general."""

from __future__ import annotations

import re

from fluster.cluster.inert import inert

__all__ = ["inert", "inert_line"]

_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
_RESET = "\x1b[0m"


def inert_line(text: str) -> str:
    """One line a job printed, for a terminal: colours stay and end with it, a rewritten line shows its last state."""
    # Progress bars rewrite their line; what a terminal would show at the end is what follows the last return.
    text = text.rstrip("\r").rpartition("\r")[2]
    colours = _COLOUR.findall(text)
    if not colours:
        return inert(text)
    pieces = [inert(piece) for piece in _COLOUR.split(text)]
    return "".join(a + b for a, b in zip(pieces, [*colours, _RESET], strict=True))
