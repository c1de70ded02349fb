"""Versions of what each worker should run: a long poll is held for as long as its worker knows the newest one."""

from __future__ import annotations

from fluster.cluster.controller.core.desired import desired
from fluster.cluster.controller.core.state import State
from fluster.cluster.controller.wakers import Wakers
from fluster.cluster.ids import WorkerId

_Key = tuple[tuple[str, bool], ...]


class Versions:
    """Counts the changes of each worker's desired set, and wakes who waits for one.

    Args:
        epoch: Of the controller: no version is the same under two epochs.
        wakers: Of the workers' long polls.
    """

    def __init__(self, epoch: int, wakers: Wakers) -> None:
        self._first = (epoch << 32) + 1
        self._wakers = wakers
        self._versions: dict[WorkerId, int] = {}
        self._wanted: dict[WorkerId, _Key] = {}

    def of(self, state: State, worker_id: WorkerId) -> int:
        """The version of what is desired now."""
        version = self._versions.get(worker_id)
        if version is None:
            version = self._versions[worker_id] = self._first
            self._wanted[worker_id] = _key(state, worker_id)
        return version

    def refresh(self, state: State, worker_id: WorkerId) -> None:
        """Looks whether something else is desired now."""
        version = self._versions.get(worker_id)
        if version is None:
            return  # nobody has asked yet
        wanted = _key(state, worker_id)
        if self._wanted[worker_id] != wanted:
            self._versions[worker_id] = version + 1
            self._wanted[worker_id] = wanted
            self._wakers.workers.wake(worker_id)

    def refresh_all(self, state: State) -> None:
        """Looks at every worker."""
        for worker_id in self._versions:
            self.refresh(state, worker_id)


def _key(state: State, worker_id: WorkerId) -> _Key:
    worker = state.workers.get(worker_id)
    leaving = worker is not None and state.leaving(worker)
    wanted = [(each.attempt.uid, each.stop) for each in desired(state, worker_id)]
    return (*wanted, ("", leaving))
