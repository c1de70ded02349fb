"""How a broken rule is told: what was asked, what was found, what was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_SHOWN = 80


def shown(value: object) -> str:
    """The value for an error message: one line, ASCII, at most 80 characters."""
    try:
        text = ascii(value)
    except Exception:  # a __repr__ of the user's, or an int too long to print
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def refuse(what: str, rule: str, value: object) -> ValueError:
    """The error for a broken rule: ``what`` must be ``rule``, got ``value``."""
    return ValueError(f"{what} must be {rule}, got {shown(value)}")


def nearest(value: object, known: Iterable[str]) -> str:
    """The end of an error message: which of the known names were probably meant."""
    names = list(known)
    by_lower = {name.lower(): name for name in names}
    asked = value[:_SHOWN] if isinstance(value, str) else ""
    close = get_close_matches(asked.lower(), by_lower, n=3, cutoff=0.5)
    if close:
        return f"; the nearest are {', '.join(by_lower[name] for name in close)}"
    return f"; known are {', '.join(names[:40])}"
