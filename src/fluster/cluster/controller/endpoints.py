"""RPCs of service discovery: name -> address."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable

from fluster.cluster.addresses import check_endpoint_address, parse_endpoint_address
from fluster.cluster.controller import convert, view
from fluster.cluster.controller.auth import Identity
from fluster.cluster.controller.context import Controller
from fluster.cluster.controller.core.events import EndpointRegistered, EndpointUnregistered
from fluster.cluster.controller.core.rows import AttemptRow, EndpointRow, RequestRow
from fluster.cluster.controller.core.state import has_process
from fluster.cluster.ids import EndpointId, Namespace
from fluster.cluster.tokens import TokenKind
from fluster.cluster.validation import check_id, check_metadata, check_name, metadata_bytes
from fluster.errors import FailedPrecondition, NotPermitted, ResourceExhausted
from fluster.rpc.gate import current_peer
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

MAX_METADATA_BYTES = 16_384
_MAX_KEY_CHARS = 256


class Endpoints:
    """Handlers of the endpoint RPCs."""

    def __init__(self, controller: Controller) -> None:
        self._c = controller

    async def register(self, request: pb.RegisterEndpointRequest) -> pb.RegisterEndpointResponse:
        """Publishes an endpoint: for the calling attempt, or kept by a lease for a client outside of jobs."""
        who = self._c.caller()
        check_id(request.request_id, "request_id")
        check_name(request.name, "an endpoint's name")
        check_endpoint_address(request.address)
        metadata = check_metadata(dict(request.metadata))
        if metadata_bytes(metadata) > MAX_METADATA_BYTES:
            raise ResourceExhausted(f"an endpoint's metadata take at most {MAX_METADATA_BYTES} bytes")
        if len(request.access_key) > _MAX_KEY_CHARS:
            raise ValueError(f"access_key must be at most {_MAX_KEY_CHARS} characters")
        attempt = self._owner(who, request.job_id)
        if who.kind is TokenKind.ATTEMPT and attempt is not None:
            self._check_own_machine(attempt, request.address)
        namespace = self._c.namespace_of(who, request.namespace)
        row = EndpointRow(
            endpoint_id=EndpointId(f"ep-{secrets.token_hex(8)}"),
            name=request.name,
            namespace=namespace,
            address=request.address,
            owner=who.actor,
            job_id=None if attempt is None else attempt.job_id,
            attempt_uid=None if attempt is None else attempt.uid,
            registered_at=self._c.loop.now(),
            metadata=tuple(sorted(metadata.items())),
            access_key=request.access_key,
        )
        body = convert.fingerprint(
            request.name, request.address, request.job_id, namespace, str(row.metadata), request.access_key
        )
        note = RequestRow(who.actor, request.request_id, "RegisterEndpoint", body, row.endpoint_id, row.registered_at)
        endpoint_id = EndpointId(await self._c.loop.submit(EndpointRegistered(row, note, current_peer())))
        registered = self._c.state.endpoints.get(endpoint_id)
        if registered is None:
            raise FailedPrecondition(f"endpoint {endpoint_id} was registered by this request before and has ended")
        lease = self._c.state.settings.endpoint_lease_s if registered.attempt_uid is None else 0.0
        return pb.RegisterEndpointResponse(endpoint=view.endpoint_message(registered), lease_s=lease)

    def _owner(self, who: Identity, job_id: str) -> AttemptRow | None:
        """The attempt that the endpoint ends with; `None`: it is kept by a lease."""
        attempt = self._c.caller_attempt(who)
        if attempt is not None:
            if job_id and job_id != attempt.job_id:
                raise NotPermitted(f"a task registers endpoints of its own job only, not of {job_id!r}")
            return attempt
        if not job_id:
            return None
        # On behalf of a job: of its first task that runs.
        job = self._c.own_job(who, job_id)
        for task in self._c.state.tasks.get(job.job_id, ()):
            current = self._c.state.current(job.job_id, task.index)
            if current is not None and has_process(current):
                return current
        raise FailedPrecondition(f"no task of job {job_id!r} runs; an endpoint of a job needs one that does")

    def _check_own_machine(self, attempt: AttemptRow, address: str) -> None:
        """A task speaks for no machine but the one it runs on."""
        host, _ = parse_endpoint_address(address)
        worker = self._c.state.workers.get(attempt.worker_id)
        own = worker.advertise_host if worker is not None else ""
        if _same_host(host, own) or (self._c.on_loopback and _is_loopback(host)):
            return
        raise NotPermitted(f"a task's endpoint is on its own machine, {own or 'which has no name'}, not at {address!r}")

    def renew(self, request: pb.RenewEndpointsRequest) -> pb.RenewEndpointsResponse:
        """Prolongs leases; says which endpoints are gone."""
        who, unknown = self._c.caller(), []
        for endpoint_id in map(EndpointId, request.endpoint_ids):
            row = self._c.state.endpoints.get(endpoint_id)
            if row is None or row.owner != who.actor:
                unknown.append(str(endpoint_id))
            elif row.attempt_uid is None:
                self._c.state.endpoint_seen[endpoint_id] = self._c.loop.now()
        return pb.RenewEndpointsResponse(unknown_endpoint_ids=unknown)

    async def unregister(self, request: pb.UnregisterEndpointRequest) -> pb.UnregisterEndpointResponse:
        """Withdraws an endpoint of the caller's own; one that is gone already is no error."""
        who = self._c.caller()
        row = self._c.state.endpoints.get(EndpointId(request.endpoint_id))
        own_namespace = self._c.own_namespace(who)
        if row is not None and own_namespace in (None, row.namespace):  # elsewhere it looks like one that is gone
            if not self._is_own(who, row):
                raise NotPermitted(f"endpoint {request.endpoint_id!r} is not the caller's")
            await self._c.loop.submit(EndpointUnregistered(row.endpoint_id, who.actor, current_peer()))
        return pb.UnregisterEndpointResponse()

    def _is_own(self, who: Identity, row: EndpointRow) -> bool:
        attempt = self._c.caller_attempt(who)
        if attempt is not None:
            return row.job_id == attempt.job_id
        return who.kind is TokenKind.ADMIN or row.owner == who.actor

    def lookup(self, request: pb.LookupEndpointsRequest) -> pb.LookupEndpointsResponse:
        """All endpoints of a name in the caller's namespace, oldest first, with their access keys."""
        namespace = self._c.namespace_of(self._c.caller(), request.namespace)
        ids = self._c.state.endpoints_by_name.get((namespace, request.name), {})
        rows = [self._c.state.endpoints[endpoint_id] for endpoint_id in ids]
        return pb.LookupEndpointsResponse(endpoints=[view.endpoint_message(row, with_key=True) for row in rows])

    def list(self, request: pb.ListEndpointsRequest) -> pb.ListEndpointsResponse:
        """Endpoints by the beginning of their name, without access keys."""
        namespace = self._c.namespace_of(self._c.caller(), request.namespace)
        rows = self._in(namespace, request.prefix)
        return pb.ListEndpointsResponse(endpoints=[view.endpoint_message(row) for row in rows], namespace=namespace)

    def _in(self, namespace: Namespace, prefix: str) -> Iterable[EndpointRow]:
        rows = self._c.state.endpoints.values()
        return [row for row in rows if row.namespace == namespace and row.name.startswith(prefix)]


def _same_host(one: str, other: str) -> bool:
    try:
        return ipaddress.ip_address(one) == ipaddress.ip_address(other)
    except ValueError:
        return one.rstrip(".").lower() == other.rstrip(".").lower() != ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
