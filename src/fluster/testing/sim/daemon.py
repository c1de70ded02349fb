"""A worker's daemon: the real decisions of `fluster.cluster.worker.decide`, with simulated processes below them.

What this module does between those decisions is what `worker.sync` does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fluster.cluster.worker import decide
from fluster.cluster.worker.decide import Session, Unreported, Verdict
from fluster.cluster.worker.ending import StopReason
from fluster.cluster.worker.lifecycle import GRACE_S
from fluster.errors import AlreadyExists, NotPermitted
from fluster.testing.sim.attempts import Attempts
from fluster.testing.sim.clock import Timer
from fluster.testing.sim.machines import Machine
from fluster.testing.sim.messages import RegisterAnswer, RegisterRequest, SyncAnswer, SyncRequest

if TYPE_CHECKING:
    from fluster.testing.sim.simulation import Simulation

_FAREWELL_S = 15.0
_REGISTER_S = 30.0


class Daemon:
    """One life of a worker's daemon.

    Attributes:
        alive: Not killed yet.
        frozen: It stands still; shims and attempts do not.
        attempts: What it holds.
    """

    def __init__(self, machine: Machine, sim: Simulation) -> None:
        disk = machine.disk
        if disk.boot != machine.boot:
            disk.boot, disk.lease_until = machine.boot, 0.0
        self.alive = True
        self.frozen = False
        self.machine = machine
        self.incarnation = sim.new_id("i")
        self.session = Session(disk.epoch, disk.controller, disk.lease_s, disk.lease_until)
        self.sim = sim
        self.attempts = Attempts(self)
        self._seq = 0
        self._opened = False
        self._registered = self._registering = False
        self._refused = False
        self._polls: set[int] = set()
        self._unreported: Unreported | None = None
        self._without_lease = False
        self._leaving_until: float | None = None
        self._heard: list[Callable[[], None]] = []
        self._deferred: list[Callable[[], None]] = []
        self._timer: Timer | None = None
        self._rung = False

    @property
    def watches_lease(self) -> bool:
        """Whether it knows what runs here, and would end that with the lease."""
        return self._opened and not self.frozen

    # Time

    def later(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Lets something happen in this daemon: not while it stands still, never after its death."""
        return self.sim.clock.after(seconds, partial(self._do, action))

    def _do(self, action: Callable[[], None]) -> None:
        if not self.alive:
            return  # as it is, too, once its machine has lost power
        if self.machine.frozen:
            self.machine.defer(partial(self._do, action))
        elif self.frozen:
            self._deferred.append(partial(self._do, action))
        else:
            action()

    def freeze(self, seconds: float) -> None:
        """It stands still for a while."""
        if not self.frozen:
            self.frozen = True
            self.sim.story.tell("DaemonStoodStill", worker=self.machine.name, text=f"{seconds:.1f} s")
            self.machine.watch_lease()
            self.machine.later(seconds, self.thaw)

    def thaw(self) -> None:
        """It goes on."""
        if self.frozen and self.alive:
            self.frozen = False
            self.machine.well_since = self.sim.clock.now
            deferred, self._deferred = self._deferred, []
            for action in deferred:
                action()

    def start(self) -> None:
        """Registers, adopts what an earlier daemon left, then listens."""
        self.sim.story.tell("DaemonStarted", worker=self.machine.name, text=self.incarnation)
        self._register()
        self.attempts.adopt()

    def open(self) -> None:
        """It is known what runs here."""
        if self._opened:
            return
        self._opened = True
        # Before a lease that has come meanwhile hides that the one of these attempts had ended.
        self._watch_lease()
        self._turn()

    # The loop

    def _ring(self) -> None:
        if not self._rung:
            self._rung = True
            self.later(0.0, self._turn)

    def _turn(self) -> None:
        self._rung = False
        if not self._opened or not self.alive:
            return
        heard, self._heard = self._heard, []
        for each in heard:
            each()
            if not self.alive:
                return
        self._watch_lease()
        if self._is_over():
            self.machine.kill_daemon(5.0 if self._refused and self._leaving_until is None else None)
            return
        due = self._next_request()
        if due is not None and due <= self.sim.clock.now:
            self._ask()
            due = self._next_request()
        self._sleep(due)

    def _sleep(self, due: float | None) -> None:
        """Until the next request is due, or its lease or its stay ends."""
        now = self.sim.clock.now
        for each in (self.session.lease_until, self._leaving_until or 0.0):
            if each > now and (due is None or each < due):
                due = each
        if self._timer is not None:
            if due is not None and self._timer.action is not None and now < self._timer.when <= due:
                return  # it wakes early enough, and looks again then
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer = self.later(max(0.0, due - now), self._turn)

    def _is_over(self) -> bool:
        if self._leaving_until is None:
            return self._refused and self.attempts.idle
        idle = self.attempts.idle
        if self._refused and idle:
            return True
        return not self.attempts or (idle and self.sim.clock.now >= self._leaving_until)

    def _watch_lease(self) -> None:
        ended = decide.lease_ended(self.session, self.sim.clock.now)
        if ended and not self._without_lease and not self.attempts.idle:
            self.sim.story.tell("LeaseEnded", worker=self.machine.name)
            grace_s = decide.lease_grace_s(self.session, self.sim.clock.now, GRACE_S)
            self.attempts.stop_all(StopReason.LEASE_ENDED, grace_s)
        self._without_lease = ended

    def changed(self, urgent: bool) -> None:
        """Something that the controller does not know yet."""
        known = self._unreported
        if known is None or (urgent and not known.urgent):
            self._unreported = Unreported(self.sim.clock.now if known is None else known.since, urgent)
        self._ring()

    # Asking

    def _next_request(self) -> float | None:
        if self._registered:
            return decide.ask_at(self.session, self._unreported, len(self._polls))
        return None if self._registering else self.session.not_before

    def _ask(self) -> None:
        if not self._registered:
            self._register()
            return
        session = self.session
        self._seq = seq = self._seq + 1
        self._unreported = None
        wait_s = decide.hold_s(session)
        request = SyncRequest(
            worker_id=self.machine.name,
            credential=self.machine.disk.credential,
            incarnation=self.incarnation,
            seq=seq,
            known_epoch=session.epoch,
            known_controller=session.controller,
            observed=self.attempts.observed(),
            wait_s=wait_s,
            desired_version=session.desired_version,
        )
        self._polls.add(seq)
        asked_at = self.sim.clock.now
        self.sim.sync(
            request,
            lambda answer: self._hears(partial(self._on_answer, answer, seq, asked_at)),
            asked_at + wait_s + decide.patience_s(session.lease_s),
        )

    def _register(self) -> None:
        self._registering = True
        machine, asked_at = self.machine, self.sim.clock.now
        request = RegisterRequest(
            machine.name, self.incarnation, machine.allocation_id, machine.resources, machine.disk.credential
        )
        self.sim.register(
            request, lambda answer: self._hears(lambda: self._on_registered(answer, asked_at)), asked_at + _REGISTER_S
        )

    # Listening

    def _hears(self, what: Callable[[], None]) -> None:
        if self.alive:
            self._heard.append(what)
            if self.frozen or self.machine.frozen:
                self._ring()
            else:
                self._turn()

    def _on_answer(self, answer: object, seq: int, asked_at: float) -> None:
        self._polls.discard(seq)
        now = self.sim.clock.now
        if not isinstance(answer, SyncAnswer):
            if isinstance(answer, NotPermitted):
                self._registered = False
            self.session = decide.on_failure(self.session, now=now)
            if seq == self._seq:
                self.changed(True)  # what it carried was not heard
            return
        self.session, verdict = decide.on_answer(self.session, answer.head, seq=seq, asked_at=asked_at, now=now)
        match verdict:
            case Verdict.APPLY:
                self._note_contact()
                self.attempts.reconcile(answer, new=True)
            case Verdict.LEAVE:
                self._note_contact()
                self.attempts.reconcile(answer, new=False)
                if self._leaving_until is None:
                    self._leaving_until = now + _FAREWELL_S
                    self.sim.story.tell("WorkerLeaves", worker=self.machine.name)
                    self.attempts.stop_all(StopReason.LEAVING)
            case Verdict.REREGISTER:
                self._registered = False
            case Verdict.IGNORE:
                pass

    def _on_registered(self, answer: object, asked_at: float) -> None:
        self._registering = False
        if isinstance(answer, RegisterAnswer):
            session = decide.on_registered(
                self.session,
                epoch=answer.epoch,
                controller=answer.controller,
                lease_s=answer.lease_s,
                asked_at=asked_at,
            )
            if session is not None:
                self.session, self._registered, self._refused = session, True, False
                self.machine.disk.registered = True
                self._note_contact()
                return
        self._refused |= isinstance(answer, NotPermitted | AlreadyExists)
        self.session = decide.on_failure(self.session, now=self.sim.clock.now)

    def _note_contact(self) -> None:
        disk, session = self.machine.disk, self.session
        disk.shim_lease_until = session.lease_until
        known = session.epoch == disk.epoch and session.lease_s == disk.lease_s
        if not known or session.lease_until - disk.lease_until >= session.lease_s / 10:
            disk.epoch, disk.controller = session.epoch, session.controller
            disk.lease_s, disk.lease_until = session.lease_s, session.lease_until
