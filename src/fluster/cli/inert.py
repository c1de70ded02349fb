"""Text of others made harmless for a terminal: nothing in it moves the cursor, sets titles or rewrites lines."""

from __future__ import annotations

import re

_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
# C0, DEL, C1, and what changes the direction of text; tab and newline stay.
_ACTIVE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_RESET = "\x1b[0m"


def inert(text: str) -> str:
    """The text with every control character but tab and newline as its visible escape."""
    return _ACTIVE.sub(_visible, text)


def inert_line(text: str) -> str:
    """One line a job printed, for a terminal: colours stay and end with it, a rewritten line shows its last state."""
    # Progress bars rewrite their line; what a terminal would show at the end is what follows the last return.
    text = text.rstrip("\r").rpartition("\r")[2]
    colours = _COLOUR.findall(text)
    if not colours:
        return inert(text)
    pieces = [inert(piece) for piece in _COLOUR.split(text)]
    return "".join(a + b for a, b in zip(pieces, [*colours, _RESET], strict=True))


def _visible(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
