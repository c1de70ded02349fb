"""RPCs of workers: they register, and exchange whole observed and desired sets in a long poll."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from fluster.cluster.controller import convert
from fluster.cluster.controller.auth import Identity
from fluster.cluster.controller.context import Controller
from fluster.cluster.controller.core.desired import Desired, desired, world_of
from fluster.cluster.controller.core.events import Observed, WorkerRegistered, WorkerSynced
from fluster.cluster.controller.core.rows import Resources, WorkerRow
from fluster.cluster.controller.core.state import State, has_process
from fluster.cluster.controller.jobs import wait_s
from fluster.cluster.ids import AllocationId, JobId, WorkerId
from fluster.cluster.states import WorkerStatus
from fluster.cluster.tokens import TokenKind
from fluster.cluster.validation import check_id, check_name, refuse
from fluster.errors import AlreadyExists, FailedPrecondition, NotPermitted
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

_MAX_OBSERVED = 100_000
_MAX_SPECS = 256
"""Parsed specs kept: gangs ask for one spec once for each worker, shortly after one another."""


@dataclass(slots=True)
class _Poll:
    """The newest request of one incarnation."""

    incarnation: str
    seq: int
    superseded: asyncio.Future[None]


class Workers:
    """Handlers of the workers' RPCs."""

    def __init__(self, controller: Controller) -> None:
        self._c = controller
        self._polls: dict[WorkerId, _Poll] = {}
        self._specs: OrderedDict[JobId, types_pb.JobSpec] = OrderedDict()

    async def register(self, request: pb.RegisterWorkerRequest) -> pb.RegisterWorkerResponse:
        """Takes in a worker's daemon: with a join token, or with the credential of an earlier time."""
        who = self._c.caller()
        worker_id = WorkerId(check_name(request.worker_id, "worker_id"))
        check_id(request.incarnation, "incarnation")
        allocation_id = AllocationId(request.allocation_id)
        self._check_may_join(who, worker_id, allocation_id, request.credential_sha256)
        await self._c.loop.submit(
            WorkerRegistered(
                worker_id=worker_id,
                credential_sha256=convert.check_sha256(request.credential_sha256, "credential_sha256"),
                incarnation=request.incarnation,
                address=request.address[:256],
                advertise_host=request.advertise_host[:256],
                host_id=request.host_id[:128],
                allocation_id=allocation_id,
                resources=convert.worker_resources(request.resources),
                cgroup=request.resources.cgroup[:8] if request.resources is not None else "",
                joined_by=who.token_id,
            )
        )
        return pb.RegisterWorkerResponse(
            worker_id=worker_id,
            controller_epoch=self._c.loop.epoch,
            lease_s=self._c.state.settings.worker_lease_s,
        )

    def _check_may_join(self, who: Identity, worker_id: WorkerId, allocation_id: AllocationId, sha256: str) -> None:
        """A worker speaks for itself and its own allocation; a join token never for a worker that is here already.

        Whether the token is still good is decided where the worker is taken in: in the one order of all events.
        """
        known = self._c.state.workers.get(worker_id)
        own_allocation = who.allocation_id
        if who.kind is TokenKind.WORKER:
            if who.worker_id != worker_id:
                raise NotPermitted("a worker registers itself only")
            own_allocation = known.allocation_id if known is not None else own_allocation
        if allocation_id != own_allocation:
            raise NotPermitted(f"this token is not for allocation {allocation_id!r}")
        if who.kind is TokenKind.WORKER or known is None or known.credential_sha256 == sha256:
            return  # itself, new, or the same request again: its answer was lost
        if not own_allocation or known.allocation_id != own_allocation:
            raise AlreadyExists(f"a worker {worker_id!r} is here already; choose another --worker-id")

    async def sync(self, request: pb.SyncWorkerRequest) -> pb.SyncWorkerResponse:
        """One exchange; held until the desired set differs from what the worker knows."""
        who = self._c.caller()
        worker = self._c.state.workers.get(who.worker_id)
        if request.known_epoch > self._c.loop.epoch:
            raise FailedPrecondition(
                f"this worker obeys epoch {request.known_epoch}; this controller is of epoch {self._c.loop.epoch}"
            )
        if worker is None or worker.incarnation != request.incarnation:
            return self._response(reregister=True)
        poll = self._take_turn(worker.worker_id, request)
        if poll is None:
            return self._response(superseded=True)
        await self._fold(worker, request)
        if poll.superseded.done():
            return self._response(superseded=True)
        await self._hold(worker.worker_id, poll, request)
        if poll.superseded.done():
            return self._response(superseded=True)
        return self._answer(worker.worker_id, request)

    def _take_turn(self, worker_id: WorkerId, request: pb.SyncWorkerRequest) -> _Poll | None:
        """This request as the newest of its incarnation; `None` if a newer one came before."""
        last = self._polls.get(worker_id)
        if last is not None:
            if last.incarnation == request.incarnation and request.seq <= last.seq:
                return None
            if not last.superseded.done():
                last.superseded.set_result(None)
        poll = _Poll(request.incarnation, request.seq, asyncio.get_running_loop().create_future())
        self._polls[worker_id] = poll
        return poll

    async def _fold(self, worker: WorkerRow, request: pb.SyncWorkerRequest) -> None:
        if len(request.observed) > _MAX_OBSERVED:
            raise refuse("the number of observed attempts", f"at most {_MAX_OBSERVED}", len(request.observed))
        observed = tuple(convert.observed(each) for each in request.observed)
        resources = None if request.resources is None else convert.worker_resources(request.resources)
        if is_news(self._c.state, worker, request.incarnation, observed, resources):
            await self._c.loop.submit(WorkerSynced(worker.worker_id, request.incarnation, observed, resources))
        else:
            self._c.state.last_seen[worker.worker_id] = self._c.loop.now()

    async def _hold(self, worker_id: WorkerId, poll: _Poll, request: pb.SyncWorkerRequest) -> None:
        if self._c.loop.desired_version(worker_id) != request.desired_version:
            return
        with self._c.loop.wakers.worker(worker_id) as changed:
            hold = wait_s(request.wait_s)
            await asyncio.wait((changed, poll.superseded), timeout=hold, return_when=asyncio.FIRST_COMPLETED)

    def _response(self, *, superseded: bool = False, reregister: bool = False) -> pb.SyncWorkerResponse:
        return pb.SyncWorkerResponse(
            controller_epoch=self._c.loop.epoch,
            lease_s=self._c.state.settings.worker_lease_s,
            superseded=superseded,
            reregister=reregister,
        )

    def _answer(self, worker_id: WorkerId, request: pb.SyncWorkerRequest) -> pb.SyncWorkerResponse:
        state = self._c.state
        response = self._response()
        # The version first: what changes after it is answered by the next request at once.
        response.desired_version = self._c.loop.desired_version(worker_id)
        known = {each.attempt_uid for each in request.observed}
        response.desired = [self._desired(each, known) for each in desired(state, worker_id)]
        worker = state.workers.get(worker_id)
        response.leave = worker is not None and state.leaving(worker)
        return response

    def _desired(self, each: Desired, known: set[str]) -> pb.DesiredAttempt:
        message = pb.DesiredAttempt(attempt_uid=each.attempt.uid, stop=each.stop)
        if each.attempt.uid not in known:
            message.spec = self._attempt_spec(each)
        return message

    def _attempt_spec(self, each: Desired) -> pb.AttemptSpec:
        attempt = each.attempt
        job = self._c.state.jobs[attempt.job_id]
        spec = self._spec(job.job_id)
        world = world_of(self._c.state, attempt)
        message = pb.AttemptSpec(
            job_id=job.job_id,
            job_name=job.name,
            task_index=attempt.task,
            num_tasks=job.num_tasks,
            attempt=attempt.number,
            namespace=job.namespace,
            entrypoint=spec.entrypoint,
            resources=spec.resources,
            environment=spec.environment,
            ports=list(job.ports),
            token=self._c.auth.attempt_token(attempt.uid),
            local_rank=world.local_rank,
            local_world_size=world.local_size,
            node_rank=world.node_rank,
            master_host=world.master_host,
            master_port=world.master_port,
            avoid_ports=[world.avoid_port] if world.avoid_port else [],
            world_size=world.size,
        )
        if job.timeout_s is not None:
            message.timeout_s = job.timeout_s
        return message

    def _spec(self, job_id: JobId) -> types_pb.JobSpec:
        spec = self._specs.pop(job_id, None)
        if spec is None:
            spec = types_pb.JobSpec.from_binary(self._c.store.spec(job_id) or b"")
        self._specs[job_id] = spec
        while len(self._specs) > _MAX_SPECS:
            self._specs.popitem(last=False)
        return spec


def is_news(
    state: State,
    worker: WorkerRow,
    incarnation: str,
    observed: tuple[Observed, ...],
    resources: Resources | None,
) -> bool:
    """Whether a worker's report says anything the rows do not: most long polls of a quiet cluster do not."""
    if worker.status is not WorkerStatus.READY or (resources is not None and resources != worker.resources):
        return True
    held = state.held.get(worker.worker_id, {})
    expected = sum(1 for attempt in held.values() if has_process(attempt) and attempt.observed)
    for each in observed:
        attempt = held.get(each.uid)
        if attempt is None or not has_process(attempt):
            if each.uid in state.attempts or each.exit is None:
                continue  # late: it ended before
            return True
        if (
            each.exit is not None
            or not attempt.observed
            or attempt.incarnation != incarnation
            or each.state is not attempt.state
            or (each.master_port and not attempt.master_port)
        ):
            return True
        expected -= 1
    return expected != 0
