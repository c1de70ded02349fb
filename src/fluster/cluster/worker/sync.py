"""Exchanges whole observed and desired sets with the controller, for as long as the worker lives."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from fluster.cluster.worker import decide
from fluster.cluster.worker.attempts import Attempts
from fluster.cluster.worker.complaints import Complaints
from fluster.cluster.worker.decide import Answer, Session, Unreported, Verdict
from fluster.cluster.worker.ending import StopReason
from fluster.cluster.worker.lifecycle import GRACE_S
from fluster.cluster.worker.link import ControllerLink
from fluster.cluster.worker.manager import JobManager
from fluster.cluster.worker.state import Clock, WorkerState
from fluster.errors import AlreadyExists, FlusterError, NotPermitted
from fluster.rpc.gen.fluster.cluster.v1.controller_pb import (
    RegisterWorkerRequest,
    RegisterWorkerResponse,
    SyncWorkerRequest,
    SyncWorkerResponse,
)

_log = logging.getLogger(__name__)

# So long the ends of a leaving worker's attempts are reported; then the machine is given back anyway.
_FAREWELL_S = 15.0


@dataclass(frozen=True, slots=True)
class _Heard:
    """What came of a request, `seq` 0 for RegisterWorker, sent at `asked_at`."""

    seq: int
    asked_at: float
    answer: SyncWorkerResponse | RegisterWorkerResponse | Exception


class Sync:
    """One daemon's side of RegisterWorker and SyncWorker.

    Args:
        link: To the controller.
        state: Who this worker is and whom it obeyed.
        about: What registering says; ids and the credential's hash are filled in here.
        join_token: Lets an unknown worker register; `None`: there is none.
        clock: Steady, the same for all daemons of one boot.
        idle_exit_s: End when nothing runs, the lease has run out, and no controller was there for so long; `None`:
            never.
    """

    def __init__(
        self,
        link: ControllerLink,
        state: WorkerState,
        about: RegisterWorkerRequest,
        *,
        join_token: Callable[[], str | None],
        clock: Clock,
        idle_exit_s: float | None = None,
    ) -> None:
        self._link = link
        self._state = state
        self._about = about
        self._join_token = join_token
        self._clock = clock
        self._idle_exit_s = idle_exit_s
        contact = state.contact
        self._session = Session(contact.epoch, contact.controller, contact.lease_s, contact.lease_until)
        self._seq = 0  # of the last request sent
        self._is_registered = False
        self._registering: asyncio.Task[None] | None = None
        self._polls: dict[int, asyncio.Task[None]] = {}
        self._heard: list[_Heard] = []
        self._refusal: Exception | None = None
        self._complaints = Complaints(clock)
        self._unreported: Unreported | None = None
        self._rung = asyncio.Event()
        self._without_lease = False
        self._leaving_until: float | None = None
        self._started_at = clock()
        state.renew_secret()
        about.worker_id = state.identity.worker_id
        about.credential_sha256 = state.identity.next_sha256
        about.incarnation = secrets.token_hex(16)

    def changed(self, urgent: bool) -> None:
        """Something that the controller does not know yet; `urgent`: it is waited for."""
        known = self._unreported or Unreported(self._clock(), urgent=False)
        self._unreported = replace(known, urgent=known.urgent or urgent)
        self._rung.set()

    def has_lease(self) -> bool:
        """Whether this worker may start anything: without a lease others may have been given what waits here."""
        return not decide.lease_ended(self._session, self._clock())

    @property
    def has_left(self) -> bool:
        """Whether the controller let this worker go."""
        return self._leaving_until is not None

    def serves_at(self, address: str) -> None:
        """Where this worker's own service answers, if not where it was announced."""
        if self._about.address != address:
            self._about.address = address
            self.introduce_again()

    def introduce_again(self) -> None:
        """Registers once more: what this worker says of itself, or what it shows, is to be renewed."""
        self._is_registered = False
        self._rung.set()

    async def run(self, manager: JobManager) -> None:
        """Returns when the controller lets this worker go, or when it has neither a controller nor anything to do.

        Raises:
            NotPermitted: No credential and no join token is accepted, and nothing runs here.
            AlreadyExists: Another worker has this one's name.
            ValueError: Something this worker says of itself is refused.
        """
        try:
            self._register()
            attempts = await manager.open()
            # Before a lease that has come meanwhile hides that the one of these attempts had ended.
            await self._watch_lease(attempts)
            while True:
                await self._listen(attempts)
                await self._watch_lease(attempts)
                if self._is_over(attempts):
                    await attempts.wait_dropped()
                    return
                self._ask_if_due(attempts)
                await self._sleep()
        finally:
            tasks = [*self._polls.values(), *([self._registering] if self._registering else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _is_over(self, attempts: Attempts) -> bool:
        if self._refusal is not None and attempts.idle:
            raise self._refusal
        if self._leaving_until is not None:
            return not attempts.observed() or (attempts.idle and self._clock() >= self._leaving_until)
        return attempts.idle and self._clock() >= self._idle_until()

    def _idle_until(self) -> float:
        """When a worker with nothing to do has waited for a controller long enough."""
        if self._idle_exit_s is None:
            return math.inf
        last_heard = max(self._started_at, self._session.lease_until - self._session.lease_s)
        return max(self._session.lease_until, last_heard + self._idle_exit_s)

    # Asking.

    def _ask_if_due(self, attempts: Attempts) -> None:
        when = self._next_request()
        if when is None or self._clock() < when:
            return
        if not self._is_registered:
            self._register()
            return
        self._seq += 1
        self._unreported = None
        seq, wait_s = self._seq, decide.hold_s(self._session)
        request = SyncWorkerRequest(
            incarnation=self._about.incarnation,
            seq=seq,
            known_epoch=self._session.epoch,
            known_incarnation=self._session.controller,
            observed=attempts.observed(),
            resources=self._about.resources,
            wait_s=wait_s,
            desired_version=self._session.desired_version,
        )
        call = self._link.sync(request, wait_s + decide.patience_s(self._session.lease_s))
        self._polls[seq] = asyncio.create_task(self._hear(seq, call))

    def _next_request(self) -> float | None:
        if self._is_registered:
            return decide.ask_at(self._session, self._unreported, len(self._polls))
        return self._session.not_before if self._registering is None else None

    def _register(self) -> None:
        self._registering = asyncio.create_task(self._hear(0, self._call_register()))

    async def _call_register(self) -> RegisterWorkerResponse:
        self._about.request_id = secrets.token_hex(16)
        identity = self._state.identity
        if identity.registered:
            # The newer one is known already where the answer to an earlier request was lost.
            for token in dict.fromkeys((identity.token, identity.next_token)):
                try:
                    return await self._link.register(self._about, token, then=identity.next_token)
                except NotPermitted as error:
                    _log.warning("the controller does not take this worker's credential: %s", error)
        # Read only now: once registered, the worker needs it no more, and it may be gone.
        join_token = self._join_token()
        if join_token is None:
            raise NotPermitted(
                "this worker is unknown to its controller and has no join token: give it one of `fluster worker token`"
            )
        return await self._link.register(self._about, join_token, then=identity.next_token)

    async def _hear(self, seq: int, call: Coroutine[Any, Any, SyncWorkerResponse | RegisterWorkerResponse]) -> None:
        asked_at = self._clock()
        answer: SyncWorkerResponse | RegisterWorkerResponse | Exception
        try:
            answer = await call
        except Exception as error:
            answer = error
        self._heard.append(_Heard(seq, asked_at, answer))
        self._rung.set()

    # Listening.

    async def _listen(self, attempts: Attempts) -> None:
        heard, self._heard = self._heard, []
        for each in heard:
            if each.seq:
                del self._polls[each.seq]
            else:
                self._registering = None
            match each.answer:
                case SyncWorkerResponse():
                    await self._on_answer(each.answer, each, attempts)
                case RegisterWorkerResponse():
                    self._on_registered(each.answer, each)
                case error:
                    self._on_failure(error, each, attempts)

    async def _on_answer(self, answer: SyncWorkerResponse, heard: _Heard, attempts: Attempts) -> None:
        said = Answer(
            epoch=answer.controller_epoch,
            controller=answer.controller_incarnation,
            lease_s=answer.lease_s,
            superseded=answer.superseded,
            reregister=answer.reregister,
            leave=answer.leave,
            desired_version=answer.desired_version,
        )
        self._session, verdict = decide.on_answer(
            self._session, said, seq=heard.seq, asked_at=heard.asked_at, now=self._clock()
        )
        match verdict:
            case Verdict.APPLY:
                self._note_contact()
                await attempts.reconcile(answer.desired)
            case Verdict.LEAVE:
                self._note_contact()
                # Nothing new is begun; what is not wanted any more is dropped.
                await attempts.reconcile([each for each in answer.desired if attempts.get(each.attempt_uid)])
                await self._leave(attempts)
            case Verdict.REREGISTER:
                self._is_registered = False
            case Verdict.IGNORE:
                pass

    def _on_registered(self, answer: RegisterWorkerResponse, heard: _Heard) -> None:
        session = decide.on_registered(
            self._session,
            epoch=answer.controller_epoch,
            controller=answer.controller_incarnation,
            lease_s=answer.lease_s,
            asked_at=heard.asked_at,
        )
        if session is None:
            _log.warning(
                "a controller of epoch %s is not obeyed: this worker obeys another one, of epoch %s",
                answer.controller_epoch,
                self._session.epoch,
            )
            self._session = decide.on_failure(self._session, now=self._clock())
            return
        self._session = session
        self._is_registered = True
        self._refusal = None
        self._note_contact()
        self._state.registered()
        self._link.use_token(self._state.identity.token)
        _log.info("registered as %s at %s", self._state.identity.worker_id, self._link.address)

    def _on_failure(self, error: Exception, heard: _Heard, attempts: Attempts) -> None:
        if not isinstance(error, FlusterError | TimeoutError | ValueError):
            raise error
        if not heard.seq and isinstance(error, NotPermitted | AlreadyExists | ValueError):
            self._refusal = error
        elif isinstance(error, NotPermitted):
            self._is_registered = False
        if self._refusal is None or not attempts.idle:  # else it is raised
            self._complaints.failed(error)
        self._session = decide.on_failure(self._session, now=self._clock())
        if heard.seq == self._seq and heard.seq:
            self.changed(True)  # what it carried was not heard

    def _note_contact(self) -> None:
        self._complaints.succeeded()
        session = self._session
        self._state.obey(session.epoch, session.controller, session.lease_s, session.lease_until)

    async def _leave(self, attempts: Attempts) -> None:
        if self._leaving_until is None:
            _log.info("the controller lets this worker go")
            self._leaving_until = self._clock() + _FAREWELL_S
            await attempts.stop_all(StopReason.LEAVING)

    async def _watch_lease(self, attempts: Attempts) -> None:
        """Without a lease others may have been given what runs here."""
        now = self._clock()
        ended = decide.lease_ended(self._session, now)
        if ended and not self._without_lease and not attempts.idle:
            _log.warning("the lease has run out: everything is stopped")
            grace_s = decide.lease_grace_s(self._session, now, GRACE_S)
            await attempts.stop_all(StopReason.LEASE_ENDED, grace_s=grace_s)
        self._without_lease = ended

    async def _sleep(self) -> None:
        now = self._clock()
        # Of the moments other than the next request only those ahead matter: what they bring has been looked at.
        ahead = [self._session.lease_until, self._idle_until(), self._leaving_until or 0.0]
        due = [each for each in ahead if now < each < math.inf]
        if (request := self._next_request()) is not None:
            due.append(request)
        try:
            async with asyncio.timeout(max(0.0, min(due) - now) if due else None):
                await self._rung.wait()
        except TimeoutError:
            pass
        self._rung.clear()
