"""Handles of jobs, and the rule that an unfinished job's name is taken."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from fray.client import JobFailed
from fray.types import JobStatus

from fluster.cluster.states import JobStatus as ClusterStatus
from fluster.errors import JobFailed as ClusterJobFailed

if TYPE_CHECKING:
    from fluster.cluster.client import Cluster
    from fluster.cluster.ids import JobId
    from fluster.cluster.observed import JobInfo

_STATUS = {
    ClusterStatus.PENDING: JobStatus.PENDING,
    ClusterStatus.RUNNING: JobStatus.RUNNING,
    ClusterStatus.SUCCEEDED: JobStatus.SUCCEEDED,
    ClusterStatus.FAILED: JobStatus.FAILED,
    ClusterStatus.STOPPED: JobStatus.STOPPED,
}
_TAIL = 10_000


class FlusterJobHandle:
    """A job as fray sees it."""

    def __init__(self, cluster: Cluster, name: str, job_id: JobId) -> None:
        self._cluster = cluster
        self._name = name
        self._id = job_id
        self._terminated = False

    def __repr__(self) -> str:
        return f"FlusterJobHandle({self.job_id!r})"

    @property
    def job_id(self) -> str:
        """``name/id``: the part behind the slash is the id Fluster's own commands take."""
        return f"{self._name}/{self._id}"

    def status(self) -> Any:
        """As last committed; a job that was told to end by this handle is STOPPED, which it will be."""
        status = self._cluster.poll(self._id).status
        if self._terminated and not status.finished():
            return JobStatus.STOPPED
        return _STATUS[status]

    def wait(self, timeout: float | None = None, *, raise_on_failure: bool = True) -> Any:
        """Waits for the end.

        Raises:
            TimeoutError: It had not ended in time.
            BaseException: With `raise_on_failure`: what the entrypoint raised.
            JobFailed: With `raise_on_failure`: it did not succeed for another reason, which is its note.
        """
        info = self._cluster.wait(self._id, timeout=timeout)
        if raise_on_failure and info.status is not ClusterStatus.SUCCEEDED:
            self._raise(info)
        return _STATUS[info.status]

    def logs(self, max_lines: int = 0) -> tuple[str, ...]:
        """The last lines it printed, of all tasks; 0: at most 10,000."""
        return tuple(line.data for line in self._cluster.logs(self._id, tail=max_lines or _TAIL))

    def terminate(self) -> None:
        """Ends it, with all jobs that it launched."""
        self._cluster.terminate(self._id)
        self._terminated = True

    def _raise(self, info: JobInfo) -> None:
        failed = next((task.index for task in info.tasks if task.cause is not None and task.cause == info.cause), 0)
        try:
            self._cluster.result(self._id, task=failed)
        except ClusterJobFailed as error:
            plain = JobFailed(self.job_id, _STATUS[info.status])
            plain.add_note(str(error))
            raise plain from None
        raise JobFailed(self.job_id, _STATUS[info.status])


def unfinished(cluster: Cluster, name: str) -> tuple[JobInfo | None, str]:
    """The unfinished job of a name, if there is one, and the request id under which the next may be launched.

    The id is made of the last job of that name: of two that submit at the same time one launches, and the other, whose
    body differs, learns that the id is taken.
    """
    jobs = [job for job in cluster.list_jobs(name_prefix=name) if job.name == name]
    live = next((job for job in jobs if not job.status.finished()), None)
    last = jobs[0].job_id if jobs else ""
    digest = hashlib.sha256(f"{cluster.namespace}\0{name}\0{last}".encode()).hexdigest()
    return live, f"fray-{digest[:40]}"
