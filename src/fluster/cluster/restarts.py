"""How long a process that died is left alone before it is started again: pure, time is a parameter."""

from __future__ import annotations

from collections import deque

_REMEMBERED_S = 60.0
_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


class Restarts:
    """Of one process: killed now and then it is back at once; one that cannot live does not keep the machine busy."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()

    def pause_s(self, now: float) -> float:
        """Notes a death at `now`; how long to wait: the longer, the more there were within the last minute."""
        while self._deaths and now - self._deaths[0] > _REMEMBERED_S:
            self._deaths.popleft()
        pause = min(_PAUSE_S * len(self._deaths), _LONGEST_PAUSE_S)
        self._deaths.append(now)
        return pause
