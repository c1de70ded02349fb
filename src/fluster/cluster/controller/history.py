"""ListEvents: the journal, of a job or of all; and who asked for what, which is read from the same lines."""

from __future__ import annotations

import asyncio

from fluster.cluster.controller.auth import Identity
from fluster.cluster.controller.context import Controller
from fluster.cluster.controller.core.rows import JournalRow
from fluster.cluster.controller.listing import page_size
from fluster.cluster.controller.outcomes import wait_s
from fluster.cluster.controller.wakers import woken
from fluster.cluster.ids import JobId
from fluster.cluster.tokens import TokenKind
from fluster.cluster.validation import check_text
from fluster.errors import NotPermitted
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

_USER = "user:"


class History:
    """Handler of ListEvents."""

    def __init__(self, controller: Controller) -> None:
        self._c = controller

    async def events(self, request: pb.ListEventsRequest) -> pb.ListEventsResponse:
        """Oldest first, from after a position; waits for the first if asked to."""
        who = self._c.caller()
        self._check_may_read(who, request)
        request.page_size = page_size(request.page_size)
        deadline = asyncio.get_running_loop().time() + wait_s(request.wait_s)
        while True:
            with self._c.loop.wakers.journal.for_any([None]) as grown:
                rows = self._rows(who, request)
                if rows or asyncio.get_running_loop().time() >= deadline:
                    with_peer = who.kind is TokenKind.ADMIN
                    return pb.ListEventsResponse(events=[_event(seq, row, with_peer) for seq, row in rows])
                await woken(grown, deadline - asyncio.get_running_loop().time())

    def _check_may_read(self, who: Identity, request: pb.ListEventsRequest) -> None:
        if who.kind is TokenKind.ADMIN:
            if request.job_id and not request.audit:  # requests for a job that never was are told of too
                self._c.job(who, request.job_id)
            if request.actor:
                check_text(request.actor, "actor")
            return
        if request.audit or request.actor:
            raise NotPermitted("who asked for what is for administrators to read")
        if not request.job_id:
            raise NotPermitted("only administrators read the journal of all jobs: give job_id")
        self._c.job(who, request.job_id)

    def _rows(self, who: Identity, request: pb.ListEventsRequest) -> list[tuple[int, JournalRow]]:
        is_user = request.actor.startswith(_USER)
        return self._c.store.journal(
            job_id=JobId(request.job_id) if request.job_id else None,
            after_seq=request.after_seq,
            limit=request.page_size,
            asked=request.audit,
            # What others were refused is no part of a job's own history.
            refused=request.audit or not request.job_id,
            actor=request.actor if request.actor and not is_user else None,
            user=request.actor.removeprefix(_USER) if is_user else None,
            newest=request.newest,
        )


def _event(seq: int, row: JournalRow, with_peer: bool) -> pb.Event:
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
        peer=row.peer if with_peer else "",
    )
