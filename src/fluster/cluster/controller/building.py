"""What workers say of the environments they build. In memory only: they say it again with each report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fluster.cluster.controller.core.rows import AttemptRow, AttemptState
from fluster.cluster.ids import AttemptUid, WorkerId

_MAX_CHARS = 300


class Building:
    """The phase of each attempt that is being built, by worker, and since when it is known."""

    def __init__(self) -> None:
        self._phases: dict[WorkerId, dict[AttemptUid, tuple[str, float]]] = {}

    def heard(self, worker_id: WorkerId, phases: Mapping[AttemptUid, str], now: float) -> None:
        """All that a worker builds now, in place of what it said before."""
        before = self._phases.pop(worker_id, {})
        found = {}
        for uid, text in phases.items():
            phase, since = before.get(uid, ("", now))
            found[uid] = (text[:_MAX_CHARS], since if phase == text[:_MAX_CHARS] else now)
        if found:
            self._phases[worker_id] = found

    def told(self, attempts: Iterable[AttemptRow], now: float) -> list[str]:
        """What is being done for those of these attempts that are being built, each said once, with its seconds."""
        longest: dict[str, float] = {}
        for attempt in attempts:
            phase, since = self._phases.get(attempt.worker_id, {}).get(attempt.uid, ("", now))
            if phase and attempt.state is AttemptState.BUILDING:
                longest[phase] = max(longest.get(phase, 0.0), now - since)
        return [f"{phase} ({seconds:.0f} s)" for phase, seconds in longest.items()]
