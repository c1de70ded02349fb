"""RPCs of workers: they register, and exchange whole observed and desired sets in a long poll."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass

from fluster.cluster.controller import convert
from fluster.cluster.controller.auth import Identity
from fluster.cluster.controller.context import Controller
from fluster.cluster.controller.core.desired import desired, world_of
from fluster.cluster.controller.core.events import Observed, WorkerRegistered, WorkerSynced
from fluster.cluster.controller.core.rows import AttemptRow, Resources, WorkerRow
from fluster.cluster.controller.core.state import State, has_process
from fluster.cluster.controller.outcomes import wait_s
from fluster.cluster.controller.wakers import woken
from fluster.cluster.ids import AllocationId, JobId, WorkerId
from fluster.cluster.states import WorkerStatus
from fluster.cluster.tokens import TokenKind
from fluster.cluster.validation import check_id, check_name, check_text, refuse, shown
from fluster.errors import FailedPrecondition, NotPermitted, ResourceExhausted
from fluster.rpc.gate import current_peer
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

_log = logging.getLogger(__name__)

_MAX_OBSERVED = 100_000
_MAX_SPECS = 256
"""Parsed specs kept: gangs ask for one spec once for each worker, shortly after one another."""
_SPEC_BYTES = 4 * 1024 * 1024
"""Of specs in one answer, give or take one: the worker asks for the rest at once."""
_MAX_SHORT_BYTES = 256
_RETRY_S = 1.0
"""What could not be kept is said again after this."""


@dataclass(slots=True)
class _Poll:
    """The newest request of one incarnation."""

    incarnation: str
    seq: int


class Workers:
    """Handlers of the workers' RPCs."""

    def __init__(self, controller: Controller) -> None:
        self._c = controller
        self._polls: dict[WorkerId, _Poll] = {}
        self._specs: OrderedDict[JobId, tuple[types_pb.JobSpec, int]] = OrderedDict()

    async def register(self, request: pb.RegisterWorkerRequest) -> pb.RegisterWorkerResponse:
        """Takes in a worker's daemon: with a join token, or with the credential of an earlier time."""
        who = self._c.caller()
        worker_id = WorkerId(check_name(request.worker_id, "worker_id"))
        check_id(request.incarnation, "incarnation")
        allocation_id = AllocationId(request.allocation_id)
        self._check_may_join(who, worker_id, allocation_id)
        await self._c.loop.submit(
            WorkerRegistered(
                worker_id=worker_id,
                credential_sha256=convert.check_sha256(request.credential_sha256, "credential_sha256"),
                incarnation=request.incarnation,
                address=_short(request.address, "address"),
                advertise_host=_short(request.advertise_host, "advertise_host"),
                host_id=_short(request.host_id, "host_id"),
                allocation_id=allocation_id,
                resources=convert.worker_resources(request.resources),
                cgroup=request.resources.cgroup[:8] if request.resources is not None else "",
                joined_by=who.token_id,
                peer=current_peer(),
            )
        )
        return pb.RegisterWorkerResponse(
            worker_id=worker_id,
            controller_epoch=self._c.loop.epoch,
            controller_incarnation=self._c.loop.incarnation,
            lease_s=self._c.state.settings.worker_lease_s,
            certificate=self._certificate(worker_id, request.certificate_request),
        )

    def _certificate(self, worker_id: WorkerId, request: bytes) -> bytes:
        tls = self._c.tls
        return tls.worker_certificate(worker_id, request) if tls is not None and request else b""

    def _check_may_join(self, who: Identity, worker_id: WorkerId, allocation_id: AllocationId) -> None:
        """A worker speaks for itself and its own allocation.

        Whether the token is still good, and whether the id is somebody else's, is decided where the worker is taken in:
        in the one order of all events.
        """
        known = self._c.state.workers.get(worker_id)
        own_allocation = who.allocation_id
        if who.kind is TokenKind.WORKER:
            if who.worker_id != worker_id:
                raise NotPermitted("a worker registers itself only")
            own_allocation = known.allocation_id if known is not None else own_allocation
        if allocation_id != own_allocation:
            raise NotPermitted(f"this token is not for allocation {shown(allocation_id)}")

    async def sync(self, request: pb.SyncWorkerRequest) -> pb.SyncWorkerResponse:
        """One exchange; held until the desired set differs from what the worker knows."""
        who = self._c.caller()
        worker = self._c.state.workers.get(who.worker_id)
        self._check_obeys(request)
        # What was said to the controller before may arrive here late, sent again when that one's connections broke, and
        # after what was said later. Whoever has registered here says only what is newer.
        heeds_another = request.known_epoch < self._c.loop.epoch
        if worker is None or worker.incarnation != request.incarnation or heeds_another:
            return self._response(reregister=True)
        poll = self._take_turn(worker.worker_id, request)
        if poll is None:
            return self._response(superseded=True)
        hold_s = wait_s(request.wait_s)
        try:
            await self._fold(worker, request)
        except ResourceExhausted:
            # What it says could not be kept, but it was heard: its lease goes on, and it will say all of it again.
            if worker.worker_id in self._c.state.workers:
                self._c.state.last_seen[worker.worker_id] = self._c.loop.now()
            hold_s = min(hold_s, _RETRY_S)
        await self._hold(worker.worker_id, poll, request.desired_version, hold_s)
        if self._polls[worker.worker_id] is not poll:
            return self._response(superseded=True)
        return self._answer(worker.worker_id, request)

    def _check_obeys(self, request: pb.SyncWorkerRequest) -> None:
        """Refuses a worker that would not obey: its attempts are another controller's."""
        epoch = self._c.loop.epoch
        if request.known_epoch > epoch:
            raise FailedPrecondition(
                f"this worker obeys epoch {request.known_epoch}; this controller is of epoch {epoch}"
            )
        if request.known_epoch == epoch and request.known_incarnation != self._c.loop.incarnation:
            raise FailedPrecondition(
                f"this worker obeys another controller of epoch {epoch}: one of them runs on a copy of the other's "
                "state directory; end the one that is not meant, and start the other one once more"
            )

    def _take_turn(self, worker_id: WorkerId, request: pb.SyncWorkerRequest) -> _Poll | None:
        """This request as the newest of its incarnation; `None` if a newer one came before."""
        last = self._polls.get(worker_id)
        if last is not None and last.incarnation == request.incarnation and request.seq <= last.seq:
            return None
        poll = self._polls[worker_id] = _Poll(request.incarnation, request.seq)
        self._c.loop.wakers.workers.wake(worker_id)  # the older one is answered
        return poll

    async def _fold(self, worker: WorkerRow, request: pb.SyncWorkerRequest) -> None:
        if len(request.observed) > _MAX_OBSERVED:
            raise refuse("the number of observed attempts", f"at most {_MAX_OBSERVED}", len(request.observed))
        observed = tuple(convert.observed(each) for each in request.observed)
        phases = {each.uid: each.environment for each in observed if each.environment}
        self._c.building.heard(worker.worker_id, phases, self._c.loop.now())
        self._renew_results(observed)
        resources = None if request.resources is None else convert.worker_resources(request.resources)
        if is_news(self._c.state, worker, request.incarnation, observed, resources):
            await self._c.loop.submit(WorkerSynced(worker.worker_id, request.incarnation, observed, resources))
        else:
            self._c.state.last_seen[worker.worker_id] = self._c.loop.now()

    def _renew_results(self, observed: tuple[Observed, ...]) -> None:
        """Blobs that are about to be referred to must not be swept now."""
        for each in observed:
            if each.exit is not None and each.exit.result_blob and not self._c.blobs.renew(each.exit.result_blob):
                _log.warning("the result of %s is not here: blob %s", each.uid, each.exit.result_blob)

    async def _hold(self, worker_id: WorkerId, poll: _Poll, known_version: int, hold_s: float) -> None:
        """Returns when something else is desired, when a newer request came, or when the time is over."""
        with self._c.loop.wakers.workers.for_any([worker_id]) as changed:
            if self._polls[worker_id] is poll and self._c.loop.desired_version(worker_id) == known_version:
                await woken(changed, hold_s)

    def _response(self, *, superseded: bool = False, reregister: bool = False) -> pb.SyncWorkerResponse:
        return pb.SyncWorkerResponse(
            controller_epoch=self._c.loop.epoch,
            controller_incarnation=self._c.loop.incarnation,
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
        room = _SPEC_BYTES
        for each in desired(state, worker_id):
            message = pb.DesiredAttempt(attempt_uid=each.attempt.uid, stop=each.stop)
            if each.attempt.uid not in known:
                if room > 0:
                    message.spec, size = self._attempt_spec(each.attempt)
                    room -= size
                else:
                    response.desired_version = 0  # so that it asks for the rest at once
            response.desired.append(message)
        worker = state.workers.get(worker_id)
        response.leave = worker is not None and state.leaving(worker)
        return response

    def _attempt_spec(self, attempt: AttemptRow) -> tuple[pb.AttemptSpec, int]:
        """What its worker has to know to run it, and some measure of its bytes."""
        job = self._c.state.jobs[attempt.job_id]
        spec, size = self._spec(job.job_id)
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
            environment=self._opened(spec.environment),
            ports=list(job.ports),
            token=self._c.auth.attempt_token(attempt.uid),
            certificate=self._attempt_certificate(attempt),
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
        return message, size

    def _attempt_certificate(self, attempt: AttemptRow) -> bytes:
        """For the attempt's own servers; empty where nothing is encrypted."""
        tls, worker = self._c.tls, self._c.state.workers.get(attempt.worker_id)
        return tls.attempt_certificate(worker.advertise_host) if tls is not None and worker is not None else b""

    def _opened(self, environment: types_pb.EnvironmentSpec | None) -> types_pb.EnvironmentSpec | None:
        """As the worker needs it. Secrets that cannot be opened are sent as they are: no build can use them."""
        if environment is None or not environment.sealed_secrets:
            return environment
        opened = types_pb.EnvironmentSpec.from_binary(environment.to_binary())
        try:
            opened.secrets = self._c.sealer.open(environment.sealed_secrets)
        except (ValueError, FailedPrecondition) as error:
            _log.error("%s", error)
            return opened
        opened.sealed_secrets = b""
        return opened

    def _spec(self, job_id: JobId) -> tuple[types_pb.JobSpec, int]:
        found = self._specs.pop(job_id, None)
        if found is None:
            stored = self._c.store.spec(job_id) or b""
            found = types_pb.JobSpec.from_binary(stored), len(stored)
        self._specs[job_id] = found
        while len(self._specs) > _MAX_SPECS:
            self._specs.popitem(last=False)
        return found


def _short(value: str, what: str) -> str:
    return check_text(value, what, limit=_MAX_SHORT_BYTES) if value else ""


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
    if worker.worker_id in state.last_words:
        return True  # the first report of this incarnation
    held = state.held.get(worker.worker_id, {})
    if not held and not observed:
        return False  # as of most workers of a quiet cluster
    expected = sum(1 for attempt in held.values() if has_process(attempt) and attempt.observed)
    for each in observed:
        attempt = held.get(each.uid)
        if attempt is None or not has_process(attempt):
            known = state.attempts.get(each.uid)
            if known is not None and known.worker_id != worker.worker_id:
                return True  # which is refused
            if known is not None or each.exit is None:
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
