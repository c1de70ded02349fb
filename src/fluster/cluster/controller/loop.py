"""The loop: the only writer. Folds events, decides, commits, and only then answers."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from fluster.cluster.controller.core.desired import desired
from fluster.cluster.controller.core.events import (
    EndpointRegistered,
    Event,
    JobsSubmitted,
    TimePassed,
    TokenCreated,
)
from fluster.cluster.controller.core.reconcile import intents
from fluster.cluster.controller.core.rows import AllocationRow, Changes, JobRow, RequestRow
from fluster.cluster.controller.core.schedule import Decision, schedule
from fluster.cluster.controller.core.state import State, drop_finished
from fluster.cluster.controller.core.transitions import apply
from fluster.cluster.controller.store import Store, StoreBusy, StoreFailed, StoreFull
from fluster.cluster.ids import JobId, WorkerId
from fluster.errors import AlreadyExists, FlusterError, RemoteFault, ResourceExhausted

_log = logging.getLogger(__name__)

MAX_INBOX = 20_000
"""Events that wait at one time; more are refused: each waits for a commit anyway."""
MAX_TURN = 2_000
"""Events folded into one commit, so that readers are served in between."""
TICK_S = 1.0
"""How often time alone is looked at: leases are tens of seconds, so a second late is nothing."""
FULL_RETRY_S = 1.0
"""After a commit that found the disk full."""


@dataclass(slots=True)
class _Pending:
    event: Event
    reply: asyncio.Future[str]


@dataclass(slots=True)
class Wakers:
    """Who waits for a change: of a worker's desired set, of a job's end, of the journal."""

    workers: defaultdict[WorkerId, set[asyncio.Future[None]]] = field(default_factory=lambda: defaultdict(set))
    jobs: defaultdict[JobId, set[asyncio.Future[None]]] = field(default_factory=lambda: defaultdict(set))
    journal: set[asyncio.Future[None]] = field(default_factory=set)

    @contextmanager
    def job(self, job_ids: list[JobId]) -> Iterator[asyncio.Future[None]]:
        """A future that is done when one of the jobs has finished."""
        waker = asyncio.get_running_loop().create_future()
        for job_id in job_ids:
            self.jobs[job_id].add(waker)
        try:
            yield waker
        finally:
            for job_id in job_ids:
                self.jobs[job_id].discard(waker)
                if not self.jobs[job_id]:
                    del self.jobs[job_id]
            waker.cancel()

    @contextmanager
    def worker(self, worker_id: WorkerId) -> Iterator[asyncio.Future[None]]:
        """A future that is done when the worker's desired set has changed."""
        waker = asyncio.get_running_loop().create_future()
        self.workers[worker_id].add(waker)
        try:
            yield waker
        finally:
            self.workers[worker_id].discard(waker)
            waker.cancel()

    @contextmanager
    def history(self) -> Iterator[asyncio.Future[None]]:
        """A future that is done when the journal has grown."""
        waker = asyncio.get_running_loop().create_future()
        self.journal.add(waker)
        try:
            yield waker
        finally:
            self.journal.discard(waker)
            waker.cancel()


def wake(wakers: set[asyncio.Future[None]]) -> None:
    """Wakes all; each removes itself."""
    for waker in wakers:
        if not waker.done():
            waker.set_result(None)


class Loop:
    """Owns the state. `submit` is how anything changes; reads take `state` between turns.

    Args:
        store: Where turns are committed.
        load: Makes a state of what the store holds; called at the start and after a commit that failed.
        clock: Unix seconds of a steady clock.
        epoch: Of this controller.
        act: Told when machines are to be asked for or given back.
    """

    def __init__(
        self,
        store: Store,
        load: Callable[[State | None], State],
        clock: Callable[[], float],
        epoch: int,
        act: Callable[[], None] = lambda: None,
    ) -> None:
        self.state = load(None)
        self.decision = Decision()
        self.wakers = Wakers()
        self.epoch = epoch
        self._store = store
        self._load = load
        self._clock = clock
        self._act = act
        self._inbox: deque[_Pending] = deque()
        self._rung = asyncio.Event()
        self._versions: dict[WorkerId, int] = {}
        self._wanted: dict[WorkerId, tuple[tuple[str, bool], ...]] = {}
        self._full_until = 0.0
        self._ticked_at = 0.0

    def now(self) -> float:
        """Unix seconds of the steady clock."""
        return self._clock()

    async def submit(self, event: Event) -> str:
        """Folds an event in; returns once it is committed.

        Returns:
            The answer of the event's request: given before, if this request was answered before. Else "".

        Raises:
            FlusterError: The event was refused, or could not be committed.
        """
        if len(self._inbox) >= MAX_INBOX:
            raise ResourceExhausted("the controller has more to do than it can queue; ask again in a moment")
        reply: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._inbox.append(_Pending(event, reply))
        self._rung.set()
        return await reply

    def desired_version(self, worker_id: WorkerId) -> int:
        """Changes whenever the worker's desired set does; never the same under two epochs."""
        version = self._versions.get(worker_id)
        if version is None:
            version = self._versions[worker_id] = (self.epoch << 32) + 1
            self._wanted[worker_id] = self._desired_key(worker_id)
        return version

    async def run(self) -> None:
        """Turns until cancelled. What this raises is a defect or a broken disk: the process must not go on."""
        while True:
            await self._bell()
            batch = [self._inbox.popleft() for _ in range(min(len(self._inbox), MAX_TURN))]
            if not self._inbox:
                self._rung.clear()
            self._answered_turn(batch)
            await asyncio.sleep(0)

    async def _bell(self) -> None:
        """Returns when there is an event, or when time alone is to be looked at."""
        due = self._ticked_at + TICK_S
        if self.decision.next_at is not None:
            due = min(due, self.decision.next_at)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, due - self.now())):
                await self._rung.wait()

    def _answered_turn(self, batch: list[_Pending]) -> None:
        """One commit for the whole batch, then the answers."""
        try:
            answers = self._turn([pending.event for pending in batch])
        except FlusterError as error:
            answers = [error] * len(batch)
        for pending, answer in zip(batch, answers, strict=True):
            if pending.reply.done():
                continue  # the caller has gone; what it asked for stands
            if isinstance(answer, str):
                pending.reply.set_result(answer)
            else:
                pending.reply.set_exception(answer)

    def _turn(self, events: list[Event]) -> list[str | FlusterError]:
        changes = Changes()
        now = self.now()
        try:
            answers = [self._fold(event, now, changes) for event in events]
            self._tick(now, changes)
            decision = self._decide(now, changes)
        except Exception as error:
            # A defect must not leave a state that no commit explains; what is stored is still whole.
            _log.critical("a turn failed; the state is loaded anew", exc_info=True)
            self._reload()
            raise RemoteFault("internal error while deciding; the controller's log has the details") from error
        self._commit(changes, now)
        self.decision = decision
        self.state.waiting = {job_id: waiting.reason for job_id, waiting in decision.waiting.items()}
        self.state.hold = decision.hold
        self._tell(changes)
        return answers

    def _tick(self, now: float, changes: Changes) -> None:
        """Looks at time, however busy the inbox is."""
        if now - self._ticked_at >= TICK_S:
            self._ticked_at = now
            apply(self.state, TimePassed(), now, changes)

    def _fold(self, event: Event, now: float, changes: Changes) -> str | FlusterError:
        request = _request_of(event)
        try:
            if request is not None:
                known = self._known(request, changes)
                if known is not None:
                    return known
            if isinstance(event, JobsSubmitted) and now < self._full_until:
                return _disk_full()
            apply(self.state, event, now, changes)
        except FlusterError as error:
            return error
        return "" if request is None else request.answer

    def _known(self, request: RequestRow, changes: Changes) -> str | None:
        """The answer this request was given before, in this turn or ever."""
        key = (request.caller, request.request_id)
        known = changes.rows.get((RequestRow, key)) or self._store.request(*key)
        if not isinstance(known, RequestRow):
            return None
        if (known.kind, known.body_sha256) != (request.kind, request.body_sha256):
            raise AlreadyExists(f"request id {request.request_id!r} was used before for something else")
        return known.answer

    def _decide(self, now: float, changes: Changes) -> Decision:
        decision = schedule(self.state, now)
        for placed in decision.placed:
            apply(self.state, placed, now, changes)
        for intent in intents(self.state, now):
            apply(self.state, intent, now, changes)
        return decision

    def _commit(self, changes: Changes, now: float) -> None:
        if not changes:
            return
        try:
            self._store.commit(changes)
        except StoreFull as error:
            self._full_until = now + FULL_RETRY_S
            _log.error("the disk is full; nothing new is taken in until there is room: %s", error)
            self._reload()
            raise _disk_full() from error
        except StoreBusy:
            _log.error("another program holds the database; nothing of this turn was taken in")
            self._reload()
            raise
        except StoreFailed:
            _log.critical("the store failed; nothing that is not on disk was answered", exc_info=True)
            raise

    def _reload(self) -> None:
        self.state = self._load(self.state)
        self.decision = Decision()
        for worker_id in list(self._versions):
            self._refresh_version(worker_id)

    def _tell(self, changes: Changes) -> None:
        """After the commit: wakes who waits for what changed, forgets what is finished."""
        for worker_id in changes.touched_workers:
            self._refresh_version(worker_id)
        finished = [row.job_id for row in changes.rows.values() if isinstance(row, JobRow) and row.outcome is not None]
        for job_id in finished:
            wake(self.wakers.jobs.get(job_id, set()))
        drop_finished(self.state, finished)
        if changes.journal:
            wake(self.wakers.journal)
        if any(kind is AllocationRow for kind, _ in changes.rows):
            self._act()

    def _refresh_version(self, worker_id: WorkerId) -> None:
        wanted = self._desired_key(worker_id)
        if self._wanted.get(worker_id) != wanted:
            self._versions[worker_id] = self.desired_version(worker_id) + 1
            self._wanted[worker_id] = wanted
            wake(self.wakers.workers.get(worker_id, set()))

    def _desired_key(self, worker_id: WorkerId) -> tuple[tuple[str, bool], ...]:
        worker = self.state.workers.get(worker_id)
        leaving = worker is not None and self.state.leaving(worker)
        wanted = [(each.attempt.uid, each.stop) for each in desired(self.state, worker_id)]
        return (*wanted, ("", leaving))


def _request_of(event: Event) -> RequestRow | None:
    match event:
        case JobsSubmitted() | EndpointRegistered() | TokenCreated():
            return event.request
        case _:
            return None


def _disk_full() -> ResourceExhausted:
    return ResourceExhausted("the controller's disk is full; nothing was taken in, ask again once there is room")
