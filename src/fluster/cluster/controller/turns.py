"""Turns: events are folded into the state, what follows from them is decided, and all of it is one commit."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

from fluster.cluster.controller.core.events import (
    EndpointRegistered,
    Event,
    JobsSubmitted,
    TimePassed,
    TokenCreated,
)
from fluster.cluster.controller.core.index import drop_finished
from fluster.cluster.controller.core.reconcile import intents
from fluster.cluster.controller.core.rows import AllocationRow, Changes, JobRow, RequestRow
from fluster.cluster.controller.core.schedule import Decision, schedule
from fluster.cluster.controller.core.state import State
from fluster.cluster.controller.core.transitions import apply
from fluster.cluster.controller.core.workers import stood_still
from fluster.cluster.controller.store import Store, StoreBusy, StoreError, StoreFailed, StoreFull
from fluster.cluster.controller.versions import Versions
from fluster.cluster.controller.wakers import Wakers
from fluster.errors import AlreadyExists, FlusterError, ResourceExhausted

_log = logging.getLogger(__name__)

TICK_S = 1.0
"""How often time alone is looked at: leases are tens of seconds, so a second late is nothing."""
STOOD_STILL_S = 5.0
"""Without a turn: the process was stopped, or a commit waited for its disk. Nobody was heard meanwhile, and what was
said then is read only after the first look at the time, which would find everybody silent."""
FULL_RETRY_S = 1.0
"""After a commit that found the disk full."""
VAIN_PAUSE_S = 1.0
"""After a decision that could not be kept: the same one would be made again at once, and fail again."""
DECIDING_SHARE = 0.1
"""Of the time, at most, for passes of the scheduler: one takes milliseconds for each thousand jobs that wait, and a
flood of launches must not pay for one with each commit."""

Answer = str | FlusterError


class Defect(Exception):
    """A turn failed in a way nobody expected; nothing of it is kept.

    Attributes:
        by_event: One of its events may be the reason.
    """

    def __init__(self, *, by_event: bool) -> None:
        super().__init__()
        self.by_event = by_event


class Turns:
    """The state, and the only way it changes.

    Args:
        store: Where turns are committed.
        load: Makes a state of what the store holds; called at the start and after a turn that came to nothing.
        clock: Unix seconds of a steady clock.
        epoch: Of this controller.
        act: Told when machines are to be asked for or given back.

    Attributes:
        state: As of the last commit.
        decision: Outcome of the scheduler's last pass.
        wakers: Of those who wait for a change.
        versions: Of what each worker should run.
    """

    def __init__(
        self,
        store: Store,
        load: Callable[[State | None], State],
        clock: Callable[[], float],
        epoch: int,
        act: Callable[[], None],
    ) -> None:
        self.state = load(None)
        self.decision = Decision()
        self.wakers = Wakers()
        self.versions = Versions(epoch, self.wakers)
        self._store = store
        self._load = load
        self._clock = clock
        self._act = act
        self._turned_at = clock()
        self._full_until = 0.0
        self._ticked_at = 0.0
        self._decide_at = 0.0
        self._undecided = False
        self._machines_due = True

    def next_at(self) -> float:
        """When a turn is due even if nothing happens."""
        look_at = self._decide_at if self._undecided else self.decision.next_at
        return min(self._ticked_at + TICK_S, math.inf if look_at is None else look_at)

    def take(self, events: Sequence[Event]) -> list[Answer]:
        """Folds, decides, commits.

        Returns:
            For each event, once it is committed: the answer of its request ("" where it has none; the one given before
            where it was answered before), or why it was refused.

        Raises:
            StoreFull: There is no room to commit. Nothing is kept of this turn; so it is with the next two.
            StoreBusy: Another program holds the database.
            Defect: Something failed in a way nobody expected.
            Exception: What is on disk is unknown. Nothing may be answered, and there is no other turn.
        """
        changes, now = Changes(), self._clock()
        if now - self._turned_at > STOOD_STILL_S:
            stood_still(self.state, now - self._turned_at, now)
        self._turned_at = now
        by_event = True
        try:
            answers = [self._fold(event, now, changes) for event in events]
            by_event = False
            self._tick(now, changes)
            decision = self._decide(now, changes)
            by_event = bool(events)
            if changes:
                self._store.commit(changes)
        except StoreFailed:
            raise
        except Exception as error:
            self._forget(error, now)
            if isinstance(error, StoreError) or not by_event:
                self._decide_at = now + VAIN_PAUSE_S
            if isinstance(error, StoreError):
                raise
            raise Defect(by_event=by_event) from error
        self._tell(changes, decision)
        return answers

    def _fold(self, event: Event, now: float, changes: Changes) -> Answer:
        request = _request_of(event)
        try:
            if request is not None:
                known = self._known(request, changes)
                if known is not None:
                    return known
                if now < self._full_until:
                    return disk_full()
            apply(self.state, event, now, changes)
        except StoreError:
            raise
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

    def _tick(self, now: float, changes: Changes) -> None:
        """Looks at time, however busy the inbox is."""
        if now - self._ticked_at >= TICK_S:
            self._ticked_at = now
            self._machines_due = True
            apply(self.state, TimePassed(), now, changes)

    def _decide(self, now: float, changes: Changes) -> Decision | None:
        """What follows from what is known now; `None`: the same as before, or it is looked at a little later."""
        self._undecided = now < self._decide_at
        if self._undecided:
            return None
        began = self._clock()
        decision = None if self.decision.stands(self.state, now) else schedule(self.state, now)
        for placed in () if decision is None else decision.placed:
            apply(self.state, placed, now, changes)
        # A dry run over all that waits is nothing for each commit of a flood; machines take seconds to come anyway.
        if self._machines_due or any(kind is AllocationRow for kind, _ in changes.rows):
            self._machines_due = False
            for intent in intents(self.state, now):
                apply(self.state, intent, now, changes)
        ended = self._clock()
        self._decide_at = ended + (ended - began) * (1 / DECIDING_SHARE - 1)
        return decision

    def _forget(self, error: Exception, now: float) -> None:
        """Memory must not hold what no commit explains; what is stored is whole."""
        if isinstance(error, StoreFull):
            _log.error("the disk is full; nothing new is taken in until there is room: %s", error)
            self._full_until = now + FULL_RETRY_S
        elif isinstance(error, StoreBusy):
            _log.error("nothing of this turn was taken in: %s", error)
        else:
            _log.critical("a turn failed; the state is loaded anew", exc_info=error)
        self.state = self._load(self.state)
        self.decision = Decision()
        self._undecided, self._decide_at, self._machines_due = True, 0.0, True
        self.versions.refresh_all(self.state)

    def _tell(self, changes: Changes, decision: Decision | None) -> None:
        """After the commit: wakes who waits for what changed, forgets what is finished."""
        if decision is not None:
            self.decision = decision
            self.state.waiting = decision.waiting
            self.state.hold = decision.hold
        for worker_id in changes.touched_workers:
            self.versions.refresh(self.state, worker_id)
        finished = [row.job_id for row in changes.rows.values() if isinstance(row, JobRow) and row.outcome is not None]
        for job_id in finished:
            self.wakers.jobs.wake(job_id)
        drop_finished(self.state, finished)
        if changes.journal:
            self.wakers.journal.wake(None)
        if any(kind is AllocationRow for kind, _ in changes.rows):
            self._act()


def _request_of(event: Event) -> RequestRow | None:
    """Of events that make something new."""
    match event:
        case JobsSubmitted() | EndpointRegistered() | TokenCreated():
            return event.request
        case _:
            return None


def disk_full() -> ResourceExhausted:
    """What is told to whoever asks for something new meanwhile."""
    return ResourceExhausted("the controller's disk is full; nothing was taken in, ask again once there is room")
