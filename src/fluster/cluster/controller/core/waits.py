"""Why jobs wait, put into words when somebody asks: a pass over ten thousand that wait asks nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from fluster.cluster.ids import JobId


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a gang waits.

    Attributes:
        would_fit: It could run here if nothing else did.
        position: In the queue of gangs that wait for room, from 1; `None` while it waits for time or for its user's
            other tasks to end.
    """

    reason: str
    would_fit: bool
    position: int | None


Why = Callable[[], Waiting]
"""Says the same whenever it is asked, whatever has changed since the pass."""


class Waits(Mapping[JobId, Waiting]):
    """Of each job with a waiting gang, why its first one waits, as one pass found."""

    def __init__(self, why: dict[JobId, Why] | None = None) -> None:
        self._why = {} if why is None else why

    def forget(self, job_id: JobId) -> None:
        """The job waits no more."""
        self._why.pop(job_id, None)

    def __getitem__(self, job_id: JobId) -> Waiting:
        return self._why[job_id]()

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._why

    def __iter__(self) -> Iterator[JobId]:
        return iter(self._why)

    def __len__(self) -> int:
        return len(self._why)

    def __repr__(self) -> str:
        return repr(dict(self))
