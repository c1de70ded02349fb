"""Looks for a message again and again for a moment before a thread sleeps: being woken is what takes long."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

SPIN_S = 200e-6
"""What a small call takes on a slow machine, encrypted. Each look yields: whoever has work on this core goes first."""
_SKIPPED = 32
"""So many waits sleep at once after one look in vain: where messages come rarely, looking costs a few microseconds."""


class Spin:
    """The moment before a wait. One thread at a time.

    A core that idles has to be woken from outside, which on a virtual machine also costs it what it knew of the program
    it ran: a call between two processes that sleep takes 1.7 times as long as one between two that look.

    Args:
        poll: Gives what has come within so many milliseconds; called with 0.
    """

    __slots__ = ("_poll", "_skip")

    def __init__(self, poll: Callable[[int], list[Any]]) -> None:
        self._poll = poll
        self._skip = 0

    def wait(self) -> list[Any]:
        """What has come, if it came soon."""
        if self._skip:
            self._skip -= 1
            return []
        until = time.perf_counter() + SPIN_S
        while not (found := self._poll(0)):
            if time.perf_counter() > until:
                self._skip = _SKIPPED
                break
            os.sched_yield()
        return found
