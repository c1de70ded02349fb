"""Keeps the endpoints that a client registered outside of any job: one thread renews their leases until `close`."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from dataclasses import dataclass, field

from fluster.cluster.ids import EndpointId
from fluster.errors import FlusterError
from fluster.rpc.client import ConnectClient
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

_log = logging.getLogger(__name__)

# Renewed three times within a lease: one lost renewal costs nothing.
_RENEWALS = 3
_CLOSE_S = 5.0


@dataclass(slots=True)
class _Kept:
    request: pb.RegisterEndpointRequest
    endpoint_id: str  # changes when it had to be registered again
    lease_s: float


@dataclass(slots=True)
class _Own:
    """Of one process: a forked child keeps only what it registers itself."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    kept: dict[EndpointId, _Kept] = field(default_factory=dict)  # by the id its owner knows
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None


class LeaseKeeper:
    """Renews leases in the background; the thread starts with the first one."""

    def __init__(self, rpc: ConnectClient) -> None:
        self._rpc = rpc
        self._by_pid: dict[int, _Own] = {}

    def keep(self, request: pb.RegisterEndpointRequest, endpoint_id: EndpointId, lease_s: float) -> None:
        """From now on; `request` is sent again, under another id, should the lease have ended after all."""
        own = self._own()
        with own.lock:
            own.kept[endpoint_id] = _Kept(request, endpoint_id, lease_s)
            if own.thread is None and not own.stop.is_set():
                own.thread = threading.Thread(target=self._run, args=(own,), name="fluster-leases", daemon=True)
                own.thread.start()

    def drop(self, endpoint_id: EndpointId) -> EndpointId:
        """No longer; returns the id it has now."""
        own = self._own()
        with own.lock:
            kept = own.kept.pop(endpoint_id, None)
        return EndpointId(kept.endpoint_id) if kept is not None else endpoint_id

    def stop(self) -> None:
        """Let the thread end."""
        self._own().stop.set()

    def join(self) -> None:
        """Wait until it has; its client is closed, so that it does not wait for an answer."""
        thread = self._own().thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_CLOSE_S)

    def _own(self) -> _Own:
        pid = os.getpid()
        return self._by_pid.get(pid) or self._by_pid.setdefault(pid, _Own())

    def _run(self, own: _Own) -> None:
        while not own.stop.wait(self._interval_s(own)):
            try:
                self._renew(own)
            except (FlusterError, TimeoutError, ValueError) as error:
                _log.warning("endpoints could not be renewed: %s", error)
            except RuntimeError:
                if not self._rpc.closed:
                    raise

    def _interval_s(self, own: _Own) -> float:
        with own.lock:
            return min((each.lease_s for each in own.kept.values()), default=60.0) / _RENEWALS

    def _renew(self, own: _Own) -> None:
        with own.lock:
            kept = {each.endpoint_id: each for each in own.kept.values()}
        if not kept:
            return
        reply = self._rpc.unary(
            "RenewEndpoints", pb.RenewEndpointsRequest(endpoint_ids=[*kept]), pb.RenewEndpointsResponse
        )
        for endpoint_id in reply.unknown_endpoint_ids:
            if endpoint_id in kept:
                self._register_again(own, kept[endpoint_id])

    def _register_again(self, own: _Own, kept: _Kept) -> None:
        kept.request.request_id = uuid.uuid4().hex
        reply = self._rpc.unary("RegisterEndpoint", kept.request, pb.RegisterEndpointResponse)
        if reply.endpoint is None:
            return
        with own.lock:
            dropped = all(each is not kept for each in own.kept.values())
            kept.endpoint_id = reply.endpoint.endpoint_id
        if dropped:  # while it was being registered
            gone = pb.UnregisterEndpointRequest(request_id=uuid.uuid4().hex, endpoint_id=kept.endpoint_id)
            self._rpc.unary("UnregisterEndpoint", gone, pb.UnregisterEndpointResponse)
