"""Sizes, durations and times as people read them, and durations as people write them."""

from __future__ import annotations

import math
import re
import time

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|min|s|m|h|d)\s*")


def format_bytes(count: float) -> str:
    """`2.1 GB`: powers of 1000, as `--memory 2GB` means them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} TB" if count < 999.5 else f"{count:.0f} TB"


def format_count(number: float) -> str:
    """Cores: `2`, `0.5`."""
    return f"{number:.3f}".rstrip("0").rstrip(".")


def format_duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 m 20 s`, `1 h 05 m`, `2 d 03 h`."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86_400} d {whole % 86_400 // 3600:02d} h"


def format_age(timestamp: float | None, now: float) -> str:
    """How long ago: `5 s`, `3 m`, `2 h`, `4 d`; empty for `None`."""
    if timestamp is None:
        return ""
    seconds = max(0, math.floor(now - timestamp))
    for limit, unit, size in ((60, "s", 1), (3600, "m", 60), (86_400, "h", 3600)):
        if seconds < limit:
            return f"{seconds // size} {unit}"
    return f"{seconds // 86_400} d"


def format_time(timestamp: float | None) -> str:
    """Local time to the second; empty for `None`."""
    return "" if timestamp is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(timestamp))


def parse_duration(text: str) -> float:
    """Seconds of `90`, `1.5s`, `10m`, `1h30m`.

    Raises:
        ValueError: It is none; the message says what one looks like.
    """
    try:
        return float(text)
    except ValueError:
        pass
    parts = _PART.findall(text.strip().lower())
    if not parts or _PART.sub("", text.strip().lower()):
        raise ValueError(f"a duration is seconds or like 30s, 10m, 1h30m, got {text[:80]!r}")
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)
