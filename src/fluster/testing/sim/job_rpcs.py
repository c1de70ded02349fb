"""What a controller's handlers do with the RPCs of users and attempts: as `controller.jobs` and `endpoints`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluster.cluster.controller.core.events import EndpointRegistered, JobsSubmitted, NewJob, TerminationRequested
from fluster.cluster.controller.core.rows import EndpointRow, JobRow, RequestRow
from fluster.cluster.controller.core.state import has_process
from fluster.cluster.ids import AttemptUid, EndpointId, JobId, Namespace
from fluster.errors import NotPermitted
from fluster.testing.sim.network import Call
from fluster.testing.sim.programs import Program

if TYPE_CHECKING:
    from fluster.testing.sim.controller import Controller


class JobRpcs:
    """LaunchJob, TerminateJob and RegisterEndpoint."""

    def __init__(self, controller: Controller) -> None:
        self._c = controller

    def launch(self, program: Program, request_id: str, caller: AttemptUid | None, call: Call) -> None:
        """LaunchJob, by a user or by an attempt."""
        parent = None
        if caller is not None and (parent := self._parent(caller)) is None:
            self._c.answer(call, NotPermitted("the calling attempt has ended"))
            return
        row = JobRow(
            job_id=JobId(self._c.sim.new_id("j")),
            name=program.name,
            namespace=Namespace("default"),
            owner=_caller(program.user) if parent is None else f"job:{parent.job_id}",
            user=program.user if parent is None else parent.user,
            parent=None if parent is None else parent.job_id,
            depth=0 if parent is None else parent.depth + 1,
            priority=program.priority,
            num_tasks=program.tasks,
            gang=program.gang,
            resources=program.resources,
            slice_hosts=0,
            retry=program.retry,
            timeout_s=program.timeout_s,
            scheduling_timeout_s=program.scheduling_timeout_s,
            ports=(),
            submitted_at=self._c.sim.clock.now,
        )
        note = RequestRow(row.owner, request_id, "LaunchJob", program.name, row.job_id, row.submitted_at)
        self._c.submit(JobsSubmitted((NewJob(row, b""),), note), lambda answer: self._c.answer(call, answer))

    def _parent(self, caller: AttemptUid) -> JobRow | None:
        attempt = self._c.state.attempts.get(caller)
        return self._c.state.jobs[attempt.job_id] if attempt is not None and has_process(attempt) else None

    def terminate(self, job_id: str, call: Call) -> None:
        """TerminateJob."""
        self._c.submit(TerminationRequested(JobId(job_id), "admin"), lambda answer: self._c.answer(call, answer))

    def register_endpoint(self, name: str, request_id: str, caller: AttemptUid, call: Call) -> None:
        """RegisterEndpoint, by an attempt."""
        parent = self._parent(caller)
        if parent is None:
            self._c.answer(call, NotPermitted("the calling attempt has ended"))
            return
        now = self._c.sim.clock.now
        row = EndpointRow(
            endpoint_id=EndpointId(self._c.sim.new_id("ep")),
            name=name,
            namespace=Namespace("default"),
            address="worker:1234",
            owner=f"job:{parent.job_id}",
            job_id=parent.job_id,
            attempt_uid=caller,
            registered_at=now,
        )
        note = RequestRow(row.owner, request_id, "RegisterEndpoint", name, row.endpoint_id, now)
        self._c.submit(EndpointRegistered(row, note), lambda answer: self._c.answer(call, answer))


def _caller(user: str) -> str:
    return f"user:{user}" if user else "admin"
