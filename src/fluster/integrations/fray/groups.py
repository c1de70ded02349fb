"""Groups of actors: the tasks of one job, found as they come."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from fluster.cluster.ids import JobId
from fluster.errors import JobNotFound
from fluster.integrations.fray.actors import FlusterActorHandle, actor_name, group_prefix, index_of
from fluster.integrations.fray.connection import find_connection

if TYPE_CHECKING:
    from fluster.cluster.client import Cluster
    from fluster.integrations.fray.connection import Connection

READY_S: Final = 300.0
"""How long `wait_ready` waits when nobody says; fray's own default."""
_END_S: Final = 15.0
"""A job that was told to end is killed 10 s later."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 1.0
_LOOK_S: Final = 0.5


class FlusterActorGroup:
    """N actors of one class, each a task of a job. Any threads may use it; it pickles to a locator.

    Args:
        name: The group's.
        count: How many actors.
        job_id: Their job.
        connection: `None`: this process's.
        address: Of the cluster, for processes that know several.
    """

    def __init__(
        self, name: str, count: int, job_id: str, connection: Connection | None = None, address: str = ""
    ) -> None:
        self._name = name
        self._count = count
        self._job_id = JobId(job_id)
        self._connection = connection
        self._address = connection.cluster.address if connection is not None else address
        self._lock = threading.Lock()
        self._seen: dict[int, FlusterActorHandle] = {}
        self._yielded: set[int] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return FlusterActorGroup, (self._name, self._count, str(self._job_id), None, self._address)

    def __repr__(self) -> str:
        return f"FlusterActorGroup({self._name!r}, {self._count} actors, job {self._job_id})"

    @property
    def ready_count(self) -> int:
        """How many can be called now."""
        return len(self._look())

    def wait_ready(self, count: int | None = None, timeout: float = READY_S) -> list[FlusterActorHandle]:
        """Handles of the first actors that were there, once there are so many.

        Args:
            count: `None`: all of the group.
            timeout: Seconds.

        Raises:
            TimeoutError: There were fewer; the text says what the others wait for.
            RuntimeError: Their job ended before.
        """
        wanted = self._count if count is None else count
        until, pause = time.monotonic() + timeout, _FIRST_PAUSE_S
        look_at_job = 0.0
        while len(found := self._discover(wanted)) < wanted:
            now = time.monotonic()
            if now >= look_at_job:
                look_at_job = now + _LOOK_S
                self._raise_if_ended(wanted)
            if now >= until:
                raise TimeoutError(
                    f"{len(found)} of {wanted} actors of {self._name!r} were there after {timeout:g} s;"
                    f" {self._cluster.why(self._job_id)}"
                )
            time.sleep(min(pause, max(0.0, until - now)))
            pause = min(1.5 * pause, _LONGEST_PAUSE_S)
        return found

    def discover_new(self) -> list[FlusterActorHandle]:
        """Handles of actors that are there and were not given yet, by this or `wait_ready`."""
        self._remember()
        with self._lock:
            new = [index for index in self._seen if index not in self._yielded]
            self._yielded.update(new)
            return [self._seen[index] for index in new]

    def is_done(self) -> bool:
        """Whether the job has ended, so that no actor will come any more."""
        try:
            return self._cluster.poll(self._job_id).status.finished()
        except JobNotFound:
            return True

    def handle(self, index: int) -> FlusterActorHandle:
        """Of one actor, whether or not it is there yet."""
        return FlusterActorHandle(actor_name(self._job_id, index), self._job_id, self._connection, self._address)

    def terminate(self) -> None:
        """Tells all actors to end, and returns at once. Repeating it is harmless."""
        try:
            self._cluster.terminate(self._job_id)
        except JobNotFound:
            pass

    def shutdown(self) -> None:
        """Ends all actors, and returns once they are gone, after 15 s at the latest. Repeating it is harmless."""
        self.terminate()
        try:
            self._cluster.wait(self._job_id, timeout=_END_S)
        except (JobNotFound, TimeoutError):
            pass

    @property
    def _cluster(self) -> Cluster:
        if self._connection is None:
            self._connection = find_connection(self._address)
        return self._connection.cluster

    def _look(self) -> list[int]:
        endpoints = self._cluster.list_endpoints(group_prefix(self._job_id))
        return list(dict.fromkeys(index_of(each.name) for each in endpoints))

    def _remember(self) -> None:
        indices = self._look()
        with self._lock:
            for index in indices:
                if index not in self._seen:
                    self._seen[index] = self.handle(index)

    def _discover(self, wanted: int) -> list[FlusterActorHandle]:
        self._remember()
        with self._lock:
            first = list(self._seen)[:wanted]
            if len(first) == wanted:
                self._yielded.update(first)
            return [self._seen[index] for index in first]

    def _raise_if_ended(self, wanted: int) -> None:
        try:
            info = self._cluster.poll(self._job_id)
        except JobNotFound:
            raise RuntimeError(f"the actors of {self._name!r} will not come: their job is gone") from None
        if info.status.finished() and len(self._discover(wanted)) < wanted:
            raise RuntimeError(
                f"the actors of {self._name!r} will not come: job {info.job_id} is {info.status}"
                f" ({len(self._seen)} of {wanted} were there): {info.error_message or 'they ended by themselves'}"
            )
