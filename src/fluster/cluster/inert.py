"""Text of others made harmless for a terminal: nothing in it moves the cursor, sets titles or rewrites lines."""

from __future__ import annotations

import re

# C0, DEL, C1, and what changes the direction of text; tab and newline stay.
_ACTIVE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def inert(text: str) -> str:
    """The text with every control character but tab and newline as its visible escape."""
    return _ACTIVE.sub(_visible, text)


def _visible(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
