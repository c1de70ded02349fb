"""`ControllerService`: every RPC, who may send it, and which handler answers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext

from fluster.cluster.controller.auth import Identity
from fluster.cluster.controller.cluster_rpcs import Blobs, Machines
from fluster.cluster.controller.context import Controller
from fluster.cluster.controller.endpoints import Endpoints
from fluster.cluster.controller.history import History
from fluster.cluster.controller.jobs import Jobs
from fluster.cluster.controller.listing import Listing
from fluster.cluster.controller.logs import Logs
from fluster.cluster.controller.opencalls import TokenEnded
from fluster.cluster.controller.outcomes import Outcomes
from fluster.cluster.controller.sync import Workers
from fluster.cluster.controller.token_rpcs import Tokens
from fluster.cluster.tokens import TokenKind, without_secrets
from fluster.errors import FlusterError, JobNotFound, RemoteFault, Unreachable
from fluster.rpc.errors import code_of, refusal
from fluster.rpc.gate import UNAUTHENTICATED, client_names, current_peer, refusal_is_told, request_id
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1.controller_connect import ControllerService

_Context = RequestContext[Any, Any]

_log = logging.getLogger(__name__)

_LOOKS = frozenset(("GetJobStatus", "ExplainJob", "FetchLogs", "GetResult", "ListEvents", "WaitJobs"))
"""To look for a job that is not there is no matter of the audit; to look at somebody else's is."""


class Authorization:
    """Refuses what the table of RPCs and identities does not allow, before any handler runs; notes every refusal.

    What is being answered when its token ends, ends too.
    """

    def __init__(self, controller: Controller) -> None:
        self._c = controller

    async def intercept_unary(
        self, call_next: Callable[[Any, _Context], Awaitable[Any]], request: Any, ctx: _Context
    ) -> Any:
        """Of a call with one answer."""
        who, rpc = self._c.caller(), ctx.method.name
        try:
            with self._c.calls.call(who):
                self._check(who, rpc)
                return await call_next(request, ctx)
        except Exception as error:
            self._raise(error, who, rpc, request)

    async def intercept_server_stream(
        self, call_next: Callable[[Any, _Context], AsyncIterator[Any]], request: Any, ctx: _Context
    ) -> AsyncIterator[Any]:
        """Of a call with many answers."""
        who, rpc = self._c.caller(), ctx.method.name
        try:
            with self._c.calls.call(who):
                self._check(who, rpc)
                async with aclosing(call_next(request, ctx)) as messages:  # type: ignore[type-var]
                    async for message in messages:
                        yield message
        except Exception as error:
            self._raise(error, who, rpc, request)

    def _check(self, who: Identity, rpc: str) -> None:
        if not (self._c.auth.still_valid(who) and self._is_shown(who)):
            raise TokenEnded
        self._c.auth.authorize(who, rpc)

    def _raise(self, error: Exception, who: Identity, rpc: str, request: Any) -> NoReturn:
        """Passes the error on; a refusal is noted. That we cannot is none."""
        if isinstance(error, TokenEnded):
            self._refuse_ended(who, rpc)
        if isinstance(error, FlusterError | ValueError | ConnectError) and not isinstance(
            error, Unreachable | RemoteFault
        ):
            if type(error) is JobNotFound and rpc in _LOOKS:
                refusal_is_told()  # a name instead of an id, or a typing error, denied nothing to anybody
                raise error
            code = error.code.value if isinstance(error, ConnectError) else code_of(error)
            if code is not None:
                self._note(who, rpc, f"{code}: {getattr(error, 'message', error)}", request)
        raise error

    def _is_shown(self, who: Identity) -> bool:
        """Whether the caller's connection shows the certificate that its token is bound to, where one is."""
        tls = self._c.tls
        if tls is None or not tls.wants_worker_certificates or who.kind is not TokenKind.WORKER:
            return True
        return tls.uri_of(who.worker_id) in client_names()

    def _refuse_ended(self, who: Identity, rpc: str) -> NoReturn:
        error = refusal("unauthenticated", UNAUTHENTICATED)
        self._note(who, rpc, f"{error.code}: the token has ended, or is not shown with its certificate", None)
        raise ConnectError(Code(error.code), error.message, details=[error.info()])

    def _note(self, who: Identity, rpc: str, why: str, request: Any) -> None:
        refusal_is_told()
        _log.info("refused %s of %s: %s (request %s)", rpc, who.actor, without_secrets(why), request_id())
        self._c.refusals.note(who.actor, current_peer(), f"{rpc}: {why}", getattr(request, "job_id", ""))


class ControllerServicer(ControllerService):
    """The service's table of contents. Reads are answered from memory between turns, changes after their commit."""

    def __init__(self, controller: Controller) -> None:
        self._jobs = Jobs(controller)
        self._listing = Listing(controller)
        self._outcomes = Outcomes(controller)
        self._logs = Logs(controller)
        self._machines = Machines(controller)
        self._history = History(controller)
        self._endpoints = Endpoints(controller)
        self._workers = Workers(controller)
        self._blobs = Blobs(controller)
        self._tokens = Tokens(controller)

    async def launch_job(self, request: pb.LaunchJobRequest, _: _Context) -> pb.LaunchJobResponse:
        """See `Jobs.launch`."""
        return await self._jobs.launch(request)

    async def launch_jobs(self, request: pb.LaunchJobsRequest, _: _Context) -> pb.LaunchJobsResponse:
        """See `Jobs.launch_many`."""
        return await self._jobs.launch_many(request)

    async def get_job_status(self, request: pb.GetJobStatusRequest, _: _Context) -> pb.GetJobStatusResponse:
        """See `Jobs.status`."""
        return self._jobs.status(request)

    async def terminate_job(self, request: pb.TerminateJobRequest, _: _Context) -> pb.TerminateJobResponse:
        """See `Jobs.terminate`."""
        return await self._jobs.terminate(request)

    async def list_jobs(self, request: pb.ListJobsRequest, _: _Context) -> pb.ListJobsResponse:
        """See `Listing.page`."""
        return self._listing.page(request)

    async def wait_jobs(self, request: pb.WaitJobsRequest, _: _Context) -> pb.WaitJobsResponse:
        """See `Outcomes.wait`."""
        return await self._outcomes.wait(request)

    async def get_result(self, request: pb.GetResultRequest, _: _Context) -> pb.GetResultResponse:
        """See `Outcomes.result`."""
        return await self._outcomes.result(request)

    def fetch_logs(self, request: pb.FetchLogsRequest, _: _Context) -> AsyncIterator[pb.FetchLogsResponse]:
        """See `Logs.fetch`."""
        return self._logs.fetch(request)

    async def explain_job(self, request: pb.ExplainJobRequest, _: _Context) -> pb.ExplainJobResponse:
        """See `Jobs.explain`."""
        return self._jobs.explain(request)

    async def list_events(self, request: pb.ListEventsRequest, _: _Context) -> pb.ListEventsResponse:
        """See `History.events`."""
        return await self._history.events(request)

    async def list_workers(self, _request: pb.ListWorkersRequest, _: _Context) -> pb.ListWorkersResponse:
        """See `Machines.workers`."""
        return self._machines.workers()

    async def list_allocations(self, _request: pb.ListAllocationsRequest, _: _Context) -> pb.ListAllocationsResponse:
        """See `Machines.allocations`."""
        return self._machines.allocations()

    async def register_endpoint(self, request: pb.RegisterEndpointRequest, _: _Context) -> pb.RegisterEndpointResponse:
        """See `Endpoints.register`."""
        return await self._endpoints.register(request)

    async def renew_endpoints(self, request: pb.RenewEndpointsRequest, _: _Context) -> pb.RenewEndpointsResponse:
        """See `Endpoints.renew`."""
        return self._endpoints.renew(request)

    async def unregister_endpoint(
        self, request: pb.UnregisterEndpointRequest, _: _Context
    ) -> pb.UnregisterEndpointResponse:
        """See `Endpoints.unregister`."""
        return await self._endpoints.unregister(request)

    async def lookup_endpoints(self, request: pb.LookupEndpointsRequest, _: _Context) -> pb.LookupEndpointsResponse:
        """See `Endpoints.lookup`."""
        return self._endpoints.lookup(request)

    async def list_endpoints(self, request: pb.ListEndpointsRequest, _: _Context) -> pb.ListEndpointsResponse:
        """See `Endpoints.list`."""
        return self._endpoints.list(request)

    async def register_worker(self, request: pb.RegisterWorkerRequest, _: _Context) -> pb.RegisterWorkerResponse:
        """See `Workers.register`."""
        return await self._workers.register(request)

    async def sync_worker(self, request: pb.SyncWorkerRequest, _: _Context) -> pb.SyncWorkerResponse:
        """See `Workers.sync`."""
        return await self._workers.sync(request)

    async def push_logs(self, request: pb.PushLogsRequest, _: _Context) -> pb.PushLogsResponse:
        """See `Logs.push`."""
        return await self._logs.push(request)

    async def put_blob(self, request: pb.PutBlobRequest, _: _Context) -> pb.PutBlobResponse:
        """See `Blobs.put`."""
        return await self._blobs.put(request)

    def get_blob(self, request: pb.GetBlobRequest, _: _Context) -> AsyncIterator[pb.GetBlobResponse]:
        """See `Blobs.get`."""
        return self._blobs.get(request)

    async def get_wheel(self, _request: pb.GetWheelRequest, _: _Context) -> pb.GetWheelResponse:
        """See `Blobs.get_wheel`."""
        return await self._blobs.get_wheel()

    async def create_token(self, request: pb.CreateTokenRequest, _: _Context) -> pb.CreateTokenResponse:
        """See `Tokens.create`."""
        return await self._tokens.create(request)

    async def list_tokens(self, _request: pb.ListTokensRequest, _: _Context) -> pb.ListTokensResponse:
        """See `Tokens.list`."""
        return self._tokens.list()

    async def revoke_token(self, request: pb.RevokeTokenRequest, _: _Context) -> pb.RevokeTokenResponse:
        """See `Tokens.revoke`."""
        return await self._tokens.revoke(request)
