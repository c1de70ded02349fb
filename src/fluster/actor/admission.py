"""How much one channel may have under way at a time: whoever would exceed it waits before its call is sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Sized

from fluster.actor.pending import Pending, too_late

MAX_IN_FLIGHT = 4_096
MAX_IN_FLIGHT_BYTES = 256 << 20
"""Calls without a reply, and their arguments: more make callers wait. A larger one goes alone."""
LARGE_BYTES = MAX_IN_FLIGHT_BYTES // MAX_IN_FLIGHT
"""Arguments below are bounded by the number of calls."""


class Admission:
    """Admits calls; what is `large` counts with its bytes until it leaves.

    Args:
        in_flight: The calls without a reply.

    Attributes:
        blocked: How many wait.
        large_bytes: Of those admitted.
    """

    def __init__(self, in_flight: Sized) -> None:
        self.blocked = 0
        self.large_bytes = 0
        self._in_flight = in_flight
        self._changed = threading.Condition()
        self._stopped = False

    def enter(self, pending: Pending, *, waits: bool) -> None:
        """Returns when there is room for it; at once unless it `waits`.

        Raises:
            ActorCallTimeout: Its deadline passed before.
        """
        with self._changed:
            self.blocked += 1
            try:
                while waits and self._is_full(pending.size):
                    left_s = None if pending.deadline is None else pending.deadline - time.monotonic()
                    if left_s is not None and left_s <= 0:
                        raise too_late()
                    self._changed.wait(left_s)
                self.large_bytes += pending.size
                pending.admitted = True
            finally:
                self.blocked -= 1

    def leave(self, pending: Pending) -> None:
        """Its room is free, if it had any; the number of calls in flight may have changed."""
        if pending.admitted or self.blocked:
            with self._changed:
                if pending.admitted:
                    pending.admitted = False
                    self.large_bytes -= pending.size
                self._changed.notify_all()

    def stop(self) -> None:
        """Nobody waits any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _is_full(self, size: int) -> bool:
        if self._stopped:
            return False
        if len(self._in_flight) >= MAX_IN_FLIGHT:
            return True
        return bool(size and self.large_bytes and self.large_bytes + size > MAX_IN_FLIGHT_BYTES)
