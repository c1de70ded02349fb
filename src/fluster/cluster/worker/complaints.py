"""Says in the log that the controller does not answer, now and then, and when it does again."""

from __future__ import annotations

import logging

from fluster.cluster.worker.state import Clock

_log = logging.getLogger(__name__)

_REPEAT_S = 60.0


class Complaints:
    """A line when it begins, when it changes and once a minute: a log neither fills nor leaves anybody guessing.

    Args:
        clock: Steady.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: float | None = None
        self._last = ""
        self._repeat_at = 0.0

    def failed(self, error: Exception) -> None:
        """A request was not answered as it should; it will be tried again."""
        now, text = self._clock(), str(error)
        if self._since is None:
            self._since = now
        elif text == self._last and now < self._repeat_at:
            return
        lasting = f", for {now - self._since:.0f} s now" if now - self._since >= 1.0 else ""
        _log.warning("the controller does not answer as it should: %s; trying again%s", text, lasting)
        self._last, self._repeat_at = text, now + _REPEAT_S

    def succeeded(self) -> None:
        """It answers."""
        if self._since is not None:
            _log.info("the controller answers again, after %.0f s", self._clock() - self._since)
        self._since = None
