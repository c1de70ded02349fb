"""What a controller's handlers do with the RPCs of workers: as `controller.sync`, with values for messages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fluster.cluster.controller import sync as real
from fluster.cluster.controller.core.desired import desired, world_of
from fluster.cluster.controller.core.events import WorkerRegistered, WorkerSynced
from fluster.cluster.controller.core.rows import AllocationStatus, AttemptRow, WorkerRow
from fluster.cluster.controller.core.state import State
from fluster.cluster.controller.turns import Answer
from fluster.cluster.ids import WorkerId
from fluster.cluster.worker.decide import Answer as Head
from fluster.errors import FailedPrecondition, FlusterError, NotPermitted, ResourceExhausted
from fluster.testing.sim.clock import Timer
from fluster.testing.sim.messages import (
    AttemptSpec,
    DesiredAttempt,
    RegisterAnswer,
    RegisterRequest,
    SyncAnswer,
    SyncRequest,
)
from fluster.testing.sim.network import Call

if TYPE_CHECKING:
    from fluster.testing.sim.controller import Controller

SPECS_AT_ONCE = 4
"""Specs in one answer; the real bound is one of bytes."""
_RETRY_S = 1.0


@dataclass(slots=True, eq=False)
class _Poll:
    """A SyncWorker request that waits."""

    request: SyncRequest
    call: Call
    timer: Timer | None = None


class WorkerRpcs:
    """RegisterWorker and SyncWorker.

    Attributes:
        newest: Incarnation and seq of each worker's newest request.
    """

    def __init__(self, controller: Controller) -> None:
        self.newest: dict[WorkerId, tuple[str, int]] = {}
        self._c = controller
        self._held: dict[WorkerId, _Poll] = {}
        self._heads: dict[tuple[bool, bool, bool, int], Head] = {}

    def wake(self, worker_ids: Iterable[WorkerId]) -> None:
        """Something else is desired of these workers: whoever of them waits is answered."""
        for worker_id in worker_ids:
            if (poll := self._held.get(worker_id)) is not None:
                self._answer_poll(poll)

    @property
    def incarnation(self) -> str:
        """Of the controller."""
        return self._c.incarnation

    def known(self, worker_id: WorkerId) -> WorkerRow | None:
        """The worker, if there is one."""
        return self._c.state.workers.get(worker_id)

    def register(self, request: RegisterRequest, call: Call) -> None:
        """RegisterWorker: with the credential where it is known, else with a join token."""
        worker_id = WorkerId(request.worker_id)
        known = self.known(worker_id)
        by_credential = known is not None and known.credential_sha256 == request.credential
        joined_by = "" if by_credential else f"a:{request.allocation_id}" if request.allocation_id else "by-hand"
        if not by_credential and request.allocation_id:
            row = self._c.state.allocations.get(request.allocation_id)
            if row is None or row.status not in (AllocationStatus.REQUESTED, AllocationStatus.READY):
                self._c.answer(call, NotPermitted("the allocation is not wanted any more"))
                return
        event = WorkerRegistered(
            worker_id=worker_id,
            credential_sha256=request.credential,
            incarnation=request.incarnation,
            address="",
            advertise_host=worker_id,
            host_id=worker_id,
            allocation_id=request.allocation_id,
            resources=request.resources,
            cgroup="v2",
            joined_by=joined_by,
        )
        granted = RegisterAnswer(self._c.epoch, self._c.incarnation, self._c.sim.settings.worker_lease_s)
        self._c.submit(
            event, lambda answer: self._c.answer(call, answer if isinstance(answer, FlusterError) else granted)
        )

    def sync(self, request: SyncRequest, call: Call) -> None:
        """SyncWorker."""
        state = self._c.state
        worker = state.workers.get(WorkerId(request.worker_id))
        if worker is None or worker.credential_sha256 != request.credential:
            self._c.answer(call, NotPermitted("unknown worker"))
            return
        if (refusal := self.fence(request)) is not None:
            self._c.answer(call, refusal)
            return
        if worker.incarnation != request.incarnation:
            self._c.answer(call, self._head(reregister=True))
            return
        newest = self.newest.get(worker.worker_id)
        if newest is not None and newest[0] == request.incarnation and request.seq <= newest[1]:
            self._c.answer(call, self._head(superseded=True))
            return
        self.newest[worker.worker_id] = request.incarnation, request.seq
        if (older := self._held.pop(worker.worker_id, None)) is not None:
            self._supersede(older)
        if real.is_news(state, worker, request.incarnation, request.observed, None):
            event = WorkerSynced(worker.worker_id, request.incarnation, request.observed)
            self._c.submit(event, lambda answer: self._folded(worker.worker_id, request, call, answer))
        else:
            self._c.sim.watch_old_news(state, worker.worker_id, request)
            state.last_seen[worker.worker_id] = self._c.sim.clock.now
            self._hold(worker.worker_id, request, call, request.wait_s)

    def fence(self, request: SyncRequest) -> object | None:
        """What is said to a worker that heeds another epoch; `None`: go on."""
        if request.known_epoch > self._c.epoch:
            return FailedPrecondition(f"this worker obeys epoch {request.known_epoch}")
        if request.known_epoch == self._c.epoch and request.known_controller != self._c.incarnation:
            return FailedPrecondition("this worker obeys another controller of this epoch")
        return self._head(reregister=True) if request.known_epoch < self._c.epoch else None

    def _folded(self, worker_id: WorkerId, request: SyncRequest, call: Call, answer: Answer) -> None:
        hold_s = request.wait_s
        if isinstance(answer, ResourceExhausted):
            if worker_id in self._c.state.workers:
                self._c.state.last_seen[worker_id] = self._c.sim.clock.now
            hold_s = min(hold_s, _RETRY_S)
        elif isinstance(answer, FlusterError):
            self._c.answer(call, answer)
            return
        self._hold(worker_id, request, call, hold_s)

    def _hold(self, worker_id: WorkerId, request: SyncRequest, call: Call, hold_s: float) -> None:
        poll = _Poll(request, call)
        if self.newest.get(worker_id) != (request.incarnation, request.seq):
            self._supersede(poll)
        elif self._c.turns.versions.of(self._c.state, worker_id) != request.desired_version:
            self._answer_poll(poll)
        else:
            self._held[worker_id] = poll
            poll.timer = self._c.later(hold_s, lambda: self._answer_poll(poll))

    def _supersede(self, poll: _Poll) -> None:
        if poll.timer is not None:
            poll.timer.cancel()
        self._c.answer(poll.call, self._head(superseded=True))

    def _answer_poll(self, poll: _Poll) -> None:
        worker_id, request = WorkerId(poll.request.worker_id), poll.request
        if poll.timer is not None:
            poll.timer.cancel()
        if self._held.get(worker_id) is poll:
            del self._held[worker_id]
        state = self._c.state
        version = self._c.turns.versions.of(state, worker_id)
        known = {each.uid for each in request.observed}
        wanted = []
        room = SPECS_AT_ONCE
        for each in desired(state, worker_id):
            spec = None
            if each.attempt.uid not in known:
                if room > 0:
                    room -= 1
                    spec = self._spec(state, each.attempt)
                else:
                    version = 0
            wanted.append(DesiredAttempt(each.attempt.uid, each.stop, spec))
        worker = state.workers.get(worker_id)
        leave = worker is not None and state.leaving(worker)
        self._c.answer(poll.call, SyncAnswer(self._says(leave=leave, version=version), tuple(wanted)))

    def _head(self, *, superseded: bool = False, reregister: bool = False) -> SyncAnswer:
        return SyncAnswer(self._says(superseded=superseded, reregister=reregister))

    def _says(
        self, *, superseded: bool = False, reregister: bool = False, leave: bool = False, version: int = 0
    ) -> Head:
        key = superseded, reregister, leave, version
        head = self._heads.get(key)
        if head is None:
            lease_s = self._c.sim.settings.worker_lease_s
            head = self._heads[key] = Head(self._c.epoch, self._c.incarnation, lease_s, *key)
        return head

    def _spec(self, state: State, attempt: AttemptRow) -> AttemptSpec:
        job = state.jobs[attempt.job_id]
        world = world_of(state, attempt)
        leads = world.size > 1 and world.master_port == 0
        program = self._c.sim.programs[job.name]
        return AttemptSpec(job.job_id, attempt.task, attempt.number, program, chooses_port=leads)
