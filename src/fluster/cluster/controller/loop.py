"""The loop: the only writer. Takes events in turns, and answers what is committed."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from fluster.cluster.controller.core.events import Event, JobsSubmitted
from fluster.cluster.controller.core.schedule import Decision
from fluster.cluster.controller.core.state import State
from fluster.cluster.controller.store import Store, StoreBusy, StoreFull
from fluster.cluster.controller.turns import Answer, Defect, Turns, disk_full
from fluster.cluster.controller.wakers import Wakers
from fluster.cluster.ids import WorkerId
from fluster.errors import RemoteFault, ResourceExhausted, Unreachable

_log = logging.getLogger(__name__)

MAX_INBOX = 20_000
"""Events that wait at one time; more are refused: each waits for a commit anyway."""
MAX_TURN = 2_000
"""Events folded into one commit, so that readers are served in between."""
MAX_TURN_TASKS = 10_000
"""Tasks of the jobs launched in one turn, unless a single launch brings more: each is a row to write."""


@dataclass(slots=True)
class _Pending:
    event: Event
    reply: asyncio.Future[str]

    def answer(self, answer: Answer) -> None:
        """Tells the caller; one that has gone is not told, and what it asked for stands."""
        if self.reply.done():
            return
        if isinstance(answer, str):
            self.reply.set_result(answer)
        else:
            self.reply.set_exception(answer)


class Loop:
    """Owns the state. `submit` is how anything changes; reads take `state` between turns.

    Args:
        store: Where turns are committed.
        load: Makes a state of what the store holds; called at the start and after a turn that came to nothing.
        clock: Unix seconds of a steady clock.
        epoch: Of this controller.
        act: Told when machines are to be asked for or given back.

    Attributes:
        incarnation: Of this start: copies of a state directory that were started equally often share an epoch.
    """

    def __init__(
        self,
        store: Store,
        load: Callable[[State | None], State],
        clock: Callable[[], float],
        epoch: int,
        act: Callable[[], None] = lambda: None,
    ) -> None:
        self.epoch = epoch
        self.incarnation = secrets.token_hex(8)
        self._turns = Turns(store, load, clock, epoch, act)
        self._clock = clock
        self._inbox: deque[_Pending] = deque()
        self._rung = asyncio.Event()
        self._over = False

    @property
    def state(self) -> State:
        """As of the last commit; another object after a turn that came to nothing."""
        return self._turns.state

    @property
    def decision(self) -> Decision:
        """Outcome of the scheduler's last pass."""
        return self._turns.decision

    @property
    def wakers(self) -> Wakers:
        """Of those who wait for a change."""
        return self._turns.wakers

    def now(self) -> float:
        """Unix seconds of the steady clock."""
        return self._clock()

    def desired_version(self, worker_id: WorkerId) -> int:
        """Changes whenever the worker's desired set does; never the same under two epochs."""
        return self._turns.versions.of(self.state, worker_id)

    async def submit(self, event: Event) -> str:
        """Folds an event in; returns once it is committed.

        Returns:
            The answer of the event's request: given before, if this request was answered before. Else "".

        Raises:
            FlusterError: The event was refused, or could not be committed.
        """
        if self._over:
            raise _gone()
        if len(self._inbox) >= MAX_INBOX:
            raise ResourceExhausted("the controller has more to do than it can queue; ask again in a moment")
        reply: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._inbox.append(_Pending(event, reply))
        self._rung.set()
        return await reply

    async def run(self) -> None:
        """Turns until cancelled. What this raises is a broken disk: the process must not go on.

        Either way, whoever waits then is told that nobody answers any more.
        """
        try:
            while True:
                await self._bell()
                self._answered_turn(self._take())
                await asyncio.sleep(0)
        finally:
            self._over = True
            while self._inbox:
                self._inbox.popleft().answer(_gone())

    async def _bell(self) -> None:
        """Returns when there is an event, or when time alone is to be looked at."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._turns.next_at() - self.now())):
                await self._rung.wait()

    def _take(self) -> list[_Pending]:
        """What one turn can carry."""
        batch: list[_Pending] = []
        tasks = 0
        while self._inbox and len(batch) < MAX_TURN:
            tasks += _tasks_of(self._inbox[0].event)
            if batch and tasks > MAX_TURN_TASKS:
                break
            batch.append(self._inbox.popleft())
        if not self._inbox:
            self._rung.clear()
        return batch

    def _answered_turn(self, batch: list[_Pending]) -> None:
        """One commit for the whole batch, then the answers."""
        try:
            answers = self._answers(batch)
        except Exception:
            _log.critical("the state on disk is unknown; nobody is answered any more", exc_info=True)
            for pending in batch:
                pending.answer(_gone())
            raise
        for pending, answer in zip(batch, answers, strict=True):
            pending.answer(answer)

    def _answers(self, batch: list[_Pending]) -> list[Answer]:
        try:
            return self._turns.take([pending.event for pending in batch])
        except StoreFull:
            return [disk_full() for _ in batch]
        except StoreBusy:
            return [_busy() for _ in batch]
        except Defect as defect:
            if not defect.by_event or len(batch) == 1:
                return [_internal() for _ in batch]
            # The event that cannot be folded must harm no other.
            return [answer for pending in batch for answer in self._answers([pending])]


def _tasks_of(event: Event) -> int:
    return sum(job.row.num_tasks for job in event.jobs) if isinstance(event, JobsSubmitted) else 0


def _internal() -> RemoteFault:
    return RemoteFault("internal error while deciding; the controller's log has the details")


def _busy() -> Unreachable:
    return Unreachable("another program holds the controller's database; nothing was taken in, ask again in a moment")


def _gone() -> Unreachable:
    return Unreachable("the controller is ending; whether this was taken in is unknown, ask again under the same id")
