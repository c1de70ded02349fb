"""A clock that tells the date and does not jump when somebody sets the machine's."""

from __future__ import annotations

import time
from collections.abc import Callable


def unix_clock(not_before: float = 0.0) -> Callable[[], float]:
    """Unix seconds that never jump: the monotonic clock, anchored once.

    Args:
        not_before: What it shows now at least: where a clock of an earlier process stood.
    """
    anchor = max(time.time(), not_before) - time.monotonic()
    return lambda: anchor + time.monotonic()
