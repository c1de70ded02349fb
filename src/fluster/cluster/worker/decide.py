"""What a worker does about what its controller wants and about its lease: pure functions, time is a parameter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto

LONGEST_POLL_S = 20.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
COALESCE_S = 0.005
"""How long a change that is no end may wait for others: a trivial attempt's start and end then share one report."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One attempt of the desired set. `described`: its specification came along."""

    uid: str
    stop: bool
    described: bool


@dataclass(frozen=True, slots=True)
class Known:
    """One attempt this worker holds.

    Attributes:
        ended: Nothing of it runs.
        stopping: It has been told to stop because its controller wants that.
        dropping: It will be forgotten as soon as it has ended.
    """

    uid: str
    ended: bool
    stopping: bool
    dropping: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Accept the attempt and run it."""

    uid: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Report the attempt as terminated before anything of it ran."""

    uid: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End its process tree; its end is reported."""

    uid: str


@dataclass(frozen=True, slots=True)
class Drop:
    """The controller has recorded its end or does not know it: end what runs of it, report nothing, forget it."""

    uid: str


Step = Start | Refuse | Stop | Drop


def decide(wanted: Iterable[Wanted], known: Iterable[Known]) -> list[Step]:
    """What brings the attempts that are here to those that should be: drops, then stops, then starts.

    An attempt that is wanted, not here and not described is left alone: the next request shows that it is not here,
    and the answer to that describes it.
    """
    wanted_by_uid = {each.uid: each for each in wanted}
    known_by_uid = {each.uid: each for each in known}
    drops = [Drop(uid) for uid, each in known_by_uid.items() if uid not in wanted_by_uid and not each.dropping]
    stops = [
        Stop(uid)
        for uid, each in wanted_by_uid.items()
        if each.stop and (here := known_by_uid.get(uid)) and not (here.ended or here.stopping or here.dropping)
    ]
    new = [each for uid, each in wanted_by_uid.items() if uid not in known_by_uid and each.described]
    return [*drops, *stops, *(Refuse(each.uid) if each.stop else Start(each.uid) for each in new)]


@dataclass(frozen=True, slots=True)
class Session:
    """Where one daemon stands with its controller. Times are of one steady clock.

    Attributes:
        epoch: Highest controller epoch obeyed.
        controller: The start of a controller that was obeyed in this epoch.
        applied_seq: Of the last request whose answer was applied.
        desired_version: Of the last answer applied, within `epoch`.
        lease_s: As last granted.
        lease_until: When the lease runs out.
        failures: Requests in a row that got no answer.
        not_before: No request before this moment, for the controller was away.
    """

    epoch: int
    controller: str
    lease_s: float
    lease_until: float
    applied_seq: int = 0
    desired_version: int = 0
    failures: int = 0
    not_before: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer says, without the attempts."""

    epoch: int
    controller: str
    lease_s: float
    superseded: bool
    reregister: bool
    leave: bool
    desired_version: int


class Verdict(Enum):
    """What is to be done with an answer."""

    APPLY = auto()
    IGNORE = auto()
    REREGISTER = auto()
    LEAVE = auto()


def may_command(session: Session, epoch: int, controller: str) -> bool:
    """Whether this worker obeys a controller: a later one than any before, or the very start it has obeyed last.

    An epoch counts the starts on one state directory. Copies of it that were started equally often share their epochs;
    each start has a name of its own.
    """
    return epoch > session.epoch or (epoch == session.epoch and controller == session.controller)


def on_registered(session: Session, *, epoch: int, controller: str, lease_s: float, asked_at: float) -> Session | None:
    """After RegisterWorker; `None` if this worker does not obey that controller."""
    if not may_command(session, epoch, controller):
        return None
    return replace(
        session,
        epoch=epoch,
        controller=controller,
        desired_version=0,
        lease_s=lease_s,
        lease_until=asked_at + lease_s,
        failures=0,
        not_before=0.0,
    )


def on_answer(session: Session, answer: Answer, *, seq: int, asked_at: float, now: float) -> tuple[Session, Verdict]:
    """After an answer to request `seq`, sent at `asked_at`.

    Only an answer that is applied renews the lease: a superseded one was written for a request that its controller may
    not have counted.
    """
    if not may_command(session, answer.epoch, answer.controller):
        return on_failure(session, now=now), Verdict.IGNORE
    old = answer.superseded or seq <= session.applied_seq
    if old or answer.reregister:
        heard = replace(session, failures=0, not_before=0.0) if session.failures else session
        return heard, Verdict.IGNORE if old else Verdict.REREGISTER
    session = Session(
        epoch=answer.epoch,
        controller=answer.controller,
        lease_s=answer.lease_s,
        lease_until=asked_at + answer.lease_s,
        applied_seq=seq,
        desired_version=answer.desired_version,
    )
    return session, Verdict.LEAVE if answer.leave else Verdict.APPLY


def on_failure(session: Session, *, now: float) -> Session:
    """After a request that got no answer, or one that is not obeyed.

    Whoever answers next may be another controller, whose versions count from anew.
    """
    failures = session.failures + 1
    return replace(session, failures=failures, not_before=now + pause_s(failures), desired_version=0)


def pause_s(failures: int) -> float:
    """How long to wait after so many requests in a row without an answer."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (min(failures, 16) - 1))


def poll_s(lease_s: float) -> float:
    """How long the controller holds a request at most: the lease is renewed at least three times before it runs out."""
    return min(LONGEST_POLL_S, lease_s / 3)


def hold_s(session: Session) -> float:
    """How long the controller may hold the next request.

    Not at all after one that got no answer: if the network swallows this one too, that is known as soon as may be, and
    an outage of seconds does not become a silence of a minute.
    """
    return 0.0 if session.failures else poll_s(session.lease_s)


def patience_s(lease_s: float) -> float:
    """How long beyond `hold_s` an answer may take before its connection is given up."""
    return min(10.0, max(1.0, lease_s / 3))


def lease_ended(session: Session, now: float) -> bool:
    """Whether the controller may by now give this worker's attempts to others."""
    return now >= session.lease_until


def lease_grace_s(session: Session, now: float, grace_s: float) -> float:
    """What is left of the stop grace of a lease that has ended: it began with that end, however late it is noticed.

    The controller waits for lease, grace and a margin. A machine that stood still meanwhile has no time left.
    """
    return min(grace_s, max(0.0, session.lease_until + grace_s - now))


@dataclass(frozen=True, slots=True)
class Unreported:
    """Changes of this worker's attempts that no request has carried yet.

    Attributes:
        since: When the first of them happened.
        urgent: One of them is an end, or something others wait for.
    """

    since: float
    urgent: bool


def ask_at(session: Session, unreported: Unreported | None, waiting_requests: int) -> float | None:
    """When the next request goes out; `None`: after one of the waiting ones has been answered.

    Without news one request at a time waits at the controller; news go out at once on a second connection, which has
    the older request answered.
    """
    if waiting_requests == 0 and unreported is None:
        return session.not_before
    if waiting_requests >= 2 or unreported is None:
        return None
    due = unreported.since if unreported.urgent else unreported.since + COALESCE_S
    return max(session.not_before, due)
