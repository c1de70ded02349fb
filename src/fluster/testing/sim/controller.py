"""One controller process: the real `Turns` with handlers around it. What it has not committed dies with it."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, cast

from fluster.cluster.controller.core.events import Event
from fluster.cluster.controller.core.state import State
from fluster.cluster.controller.store import Store, StoreFull
from fluster.cluster.controller.turns import Answer, Turns, disk_full
from fluster.cluster.controller.wakers import Waiting
from fluster.cluster.ids import WorkerId
from fluster.errors import ResourceExhausted
from fluster.testing.sim import loading
from fluster.testing.sim.clock import Timer
from fluster.testing.sim.job_rpcs import JobRpcs
from fluster.testing.sim.network import Call, refused
from fluster.testing.sim.store import Killed, MemoryStore
from fluster.testing.sim.story import InvariantBroken
from fluster.testing.sim.worker_rpcs import WorkerRpcs

if TYPE_CHECKING:
    from fluster.testing.sim.simulation import Simulation

MAX_INBOX = 64
_COMMIT_S = 0.002
_IDLE_TICK_S = 3.0
"""Where nothing else happens time is looked at more rarely than by the real loop: most of a quiet hour is that."""
_MAX_IDLE_TURNS = 100
"""Turns that come to nothing within one second: a controller that spins."""


class Beside(Enum):
    """Who goes on beside the next controller, on a copy of the state that nobody else looks at."""

    NOBODY = auto()
    REPLACED = auto()
    """The one before."""
    COPY = auto()
    """Another one: it was started as often as the next one, and has the same epoch."""


class _Bell(Waiting[WorkerId]):
    """Takes the place of the futures that long polls wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.rung: dict[WorkerId, None] = {}

    def wake(self, key: WorkerId) -> None:
        self.rung[key] = None


class Controller:
    """One process.

    Attributes:
        epoch, incarnation: Of this start.
        alive: Not killed yet.
        frozen: It stands still.
        calls: Requests that are not answered yet.
        workers, jobs: Its handlers.
    """

    def __init__(self, sim: Simulation, store: MemoryStore) -> None:
        self.sim = sim
        self.store = store
        self.alive = True
        self.frozen = False
        self.calls: dict[Call, None] = {}
        self.epoch, self.incarnation = store.begin_epoch(), sim.new_id("c")
        self.workers, self.jobs = WorkerRpcs(self), JobRpcs(self)
        self._inbox: list[tuple[Event, Callable[[Answer], None]]] = []
        self._timer: Timer | None = None
        self._deferred: list[Callable[[], None]] = []
        self._bell = _Bell()
        self._vain: list[float] = []
        self._busy = True
        self.turns = Turns(
            cast(Store, store),
            lambda old: loading.load(store, sim.settings, sim.clock.now, old),
            sim.clock,
            self.epoch,
            lambda: sim.effects_ring(self),
        )
        self.turns.wakers.workers = self._bell
        self._ring()

    @property
    def state(self) -> State:
        """As of the last commit."""
        return self.turns.state

    # Life and death

    def later(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Lets something happen in this process: not while it stands still, never after its death."""
        return self.sim.clock.after(seconds, partial(self._do, action))

    def _do(self, action: Callable[[], None]) -> None:
        if self.alive:
            if self.frozen:
                self._deferred.append(partial(self._do, action))
            else:
                action()

    def serve(self, call: Call, handler: Callable[[], None]) -> None:
        """A request arrives."""
        if not self.alive:
            call.answer(refused())
            return
        self.calls[call] = None
        if self.frozen:
            call.give_up_in_time()
            self._deferred.append(lambda: handler() if self.alive else None)
        else:
            handler()

    def answer(self, call: Call, value: object) -> None:
        """Answers a request."""
        if call in self.calls:
            del self.calls[call]
            call.answer(value)

    def freeze(self, seconds: float) -> None:
        """Stands still for a while."""
        if not self.frozen:
            self.frozen = True
            self.sim.story.tell("ControllerStoodStill", text=f"{seconds:.1f} s")
            for call in self.calls:
                call.give_up_in_time()
            self.sim.clock.after(seconds, self.thaw)

    def thaw(self) -> None:
        """Goes on. What it looks at first is the time: requests are read from sockets a moment later."""
        if self.frozen and self.alive:
            self.frozen = False
            deferred, self._deferred = self._deferred, []
            self._turn()
            for action in deferred:
                action()

    def die(self) -> None:
        """It is killed: connections break, and nothing that was not committed is left."""
        self.alive = False
        calls, self.calls = self.calls, {}
        for call in calls:
            call.break_off()
        if self._timer is not None:
            self._timer.cancel()

    # Turns

    def submit(self, event: Event, reply: Callable[[Answer], None]) -> None:
        """Folds an event in; `reply` is called once it is committed."""
        if len(self._inbox) >= MAX_INBOX:
            reply(ResourceExhausted("the controller has more to do than it can queue"))
            return
        self._inbox.append((event, reply))
        if len(self._inbox) == 1:
            self._ring()

    def _ring(self) -> None:
        now = self.sim.clock.now
        when = now + _COMMIT_S
        if not self._inbox:
            next_at = self.turns.decision.next_at
            idle_until = now + _IDLE_TICK_S if next_at is None else min(now + _IDLE_TICK_S, next_at)
            when = max(when, self.turns.next_at() if self._busy else idle_until)
        if self._timer is not None:
            if self._timer.action is not None and now < self._timer.when <= when:
                return
            self._timer.cancel()
        self._timer = self.later(when - now, self._turn)

    def _turn(self) -> None:
        batch, self._inbox = self._inbox, []
        self._busy = bool(batch)
        self._timer = None
        try:
            answers = self.turns.take([event for event, _ in batch])
        except Killed:
            self.sim.controller_died(self)
            return
        except StoreFull:
            answers = [disk_full() for _ in batch]
            self._busy = True
            self._note_vain_turn()
        for (_, reply), answer in zip(batch, answers, strict=True):
            reply(answer)
        rung, self._bell.rung = sorted(self._bell.rung), {}
        self.workers.wake(rung)
        if self._inbox or self._timer is None:
            self._ring()

    def _note_vain_turn(self) -> None:
        now = self.sim.clock.now
        self._vain = [*(at for at in self._vain if now - at < 1.0), now]
        if len(self._vain) > _MAX_IDLE_TURNS:
            raise InvariantBroken("a controller that cannot commit waits", f"{len(self._vain)} turns in one second")
