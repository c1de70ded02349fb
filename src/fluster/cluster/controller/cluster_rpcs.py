"""RPCs about the cluster itself: workers, allocations, the journal, join tokens, blobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from connectrpc.code import Code
from connectrpc.errors import ConnectError

from fluster.cluster.controller import convert, view
from fluster.cluster.controller.blobs import BlobNotFound
from fluster.cluster.controller.context import Controller
from fluster.cluster.controller.core.events import TokenCreated, TokenRevoked
from fluster.cluster.controller.core.rows import JournalRow, RequestRow, TokenRow
from fluster.cluster.controller.listing import page_size
from fluster.cluster.controller.outcomes import wait_s
from fluster.cluster.controller.wakers import woken
from fluster.cluster.ids import JobId
from fluster.cluster.tokens import TokenKind, secret_sha256
from fluster.cluster.validation import check_id, check_int, check_seconds, refuse
from fluster.errors import FailedPrecondition, NotPermitted
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.trust import pinned

_CHUNK_BYTES = 1024 * 1024
_MAX_TOKEN_USES = 100_000
_MAX_TOKEN_TTL_S = 30 * 86_400.0


class Machines:
    """Handlers of what tells of workers and allocations."""

    def __init__(self, controller: Controller) -> None:
        self._c = controller

    def workers(self) -> pb.ListWorkersResponse:
        """All that are not gone, by id."""
        state = self._c.state
        rows = [state.workers[worker_id] for worker_id in sorted(state.workers)]
        return pb.ListWorkersResponse(workers=[view.worker_message(state, row) for row in rows])

    def allocations(self) -> pb.ListAllocationsResponse:
        """All that are not gone, by id."""
        rows = sorted(self._c.state.allocations.values(), key=lambda row: row.allocation_id)
        return pb.ListAllocationsResponse(allocations=[view.allocation_message(row) for row in rows])


class History:
    """Handlers of the journal."""

    def __init__(self, controller: Controller) -> None:
        self._c = controller

    async def events(self, request: pb.ListEventsRequest) -> pb.ListEventsResponse:
        """Oldest first, from after a position; waits for the first if asked to."""
        who = self._c.caller()
        if request.job_id:
            self._c.job(who, request.job_id)
        elif who.kind is not TokenKind.ADMIN:
            raise NotPermitted("a job reads the journal of single jobs: give job_id")
        size = page_size(request.page_size)
        deadline = asyncio.get_running_loop().time() + wait_s(request.wait_s)
        while True:
            with self._c.loop.wakers.journal.for_any([None]) as grown:
                rows = self._c.store.journal(
                    job_id=JobId(request.job_id) if request.job_id else None,
                    after_seq=request.after_seq,
                    limit=size,
                )
                if rows or asyncio.get_running_loop().time() >= deadline:
                    return pb.ListEventsResponse(events=[_event(seq, row) for seq, row in rows])
                await woken(grown, deadline - asyncio.get_running_loop().time())


def _event(seq: int, row: JournalRow) -> pb.Event:
    return pb.Event(
        seq=seq,
        timestamp=row.at,
        kind=row.kind,
        job_id=row.job_id,
        task=row.task,
        attempt=row.attempt,
        worker_id=row.worker_id,
        actor=row.actor,
        message=row.message,
    )


class Tokens:
    """Handlers of join tokens."""

    def __init__(self, controller: Controller) -> None:
        self._c = controller

    async def create(self, request: pb.CreateTokenRequest) -> pb.CreateTokenResponse:
        """Makes a join token. It is derived from its id, so that a repeated request gives it again."""
        who = self._c.caller()
        check_id(request.request_id, "request_id")
        if convert.known(request.kind, "kind") is not pb.TokenKind.JOIN:
            raise refuse("kind", "JOIN", int(request.kind))
        uses = check_int(request.uses or 1, "uses", low=1, high=_MAX_TOKEN_USES)
        ttl_s = check_seconds(request.ttl_s or 600.0, "ttl_s")
        if ttl_s > _MAX_TOKEN_TTL_S:
            raise refuse("ttl_s", f"at most {_MAX_TOKEN_TTL_S:.0f} seconds", ttl_s)
        now = self._c.loop.now()
        body = convert.fingerprint("JOIN", uses, ttl_s)
        token_id = "join-" + convert.fingerprint(who.actor, request.request_id)[:16]
        token = self._c.auth.join_token(token_id)
        row = TokenRow(token_id, secret_sha256(token), uses, now + ttl_s, now)
        note = RequestRow(who.actor, request.request_id, "CreateToken", body, token_id, now)
        await self._c.loop.submit(TokenCreated(row, note, who.actor))
        made = self._c.state.tokens.get(token_id)
        if made is None:
            raise FailedPrecondition(f"token {token_id} was made by this request before and has ended")
        given = pinned(token, self._c.pin)
        return pb.CreateTokenResponse(token_id=token_id, token=given, expires_at=made.expires_at)

    def list(self) -> pb.ListTokensResponse:
        """Those that have not ended."""
        state = self._c.state
        infos = [
            pb.TokenInfo(
                token_id=row.token_id,
                kind=pb.TokenKind.JOIN,
                uses_left=max(0, state.token_uses_left(row)),
                expires_at=row.expires_at,
            )
            for row in sorted(state.tokens.values(), key=lambda row: row.created_at)
        ]
        return pb.ListTokensResponse(tokens=infos)

    async def revoke(self, request: pb.RevokeTokenRequest) -> pb.RevokeTokenResponse:
        """Ends a token; one that has ended already is no error."""
        who = self._c.caller()
        await self._c.loop.submit(TokenRevoked(request.token_id, who.actor))
        return pb.RevokeTokenResponse()


class Blobs:
    """Handlers of content by hash."""

    def __init__(self, controller: Controller) -> None:
        self._c = controller

    async def put(self, request: pb.PutBlobRequest) -> pb.PutBlobResponse:
        """One chunk; the blob exists once all its bytes are on disk and their hash is right."""
        convert.check_sha256(request.sha256)
        size = await asyncio.to_thread(
            self._c.blobs.put, request.sha256, request.offset, request.chunk, request.total_size
        )
        return pb.PutBlobResponse(next_offset=size)

    async def get(self, request: pb.GetBlobRequest) -> AsyncIterator[pb.GetBlobResponse]:
        """The content from an offset, in chunks."""
        convert.check_sha256(request.sha256)
        try:
            total = self._c.blobs.size(request.sha256)
        except BlobNotFound as error:
            info = pb.ErrorInfo(reason="blob_not_found", metadata={"sha256": request.sha256})
            raise ConnectError(Code.NOT_FOUND, str(error), details=[info]) from None
        if not 0 <= request.offset <= total:
            raise refuse("offset", f"0 to {total}", request.offset)
        with self._c.blobs.open(request.sha256, request.offset) as file:
            while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
                yield pb.GetBlobResponse(chunk=chunk, total_size=total)
        if total == request.offset:
            yield pb.GetBlobResponse(total_size=total)
