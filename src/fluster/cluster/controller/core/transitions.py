"""`apply`: folds one event into the state and says which rows change."""

from __future__ import annotations

from typing import assert_never

from fluster.cluster.controller.core import allocations, attempts, endpoints, jobs, workers
from fluster.cluster.controller.core.events import (
    AllocationObserved,
    AllocationRefused,
    AllocationUnwanted,
    AllocationWanted,
    EndpointRegistered,
    EndpointUnregistered,
    Event,
    GangPlaced,
    JobsSubmitted,
    MachinesForgotten,
    TerminationRequested,
    TimePassed,
    TokenCreated,
    TokenRevoked,
    WorkerRegistered,
    WorkerSynced,
)
from fluster.cluster.controller.core.fold import Fold
from fluster.cluster.controller.core.rows import Changes
from fluster.cluster.controller.core.state import State


def apply(state: State, event: Event, now: float, changes: Changes | None = None) -> Changes:
    """Folds an event into the state.

    Args:
        state: Altered in place.
        event: What happened.
        now: Unix seconds of a steady clock.
        changes: Of the same turn so far; added to.

    Returns:
        The rows to commit, with the journal lines that explain them.

    Raises:
        FlusterError: The event is refused; the state is as it was.
    """
    fold = Fold(state, now, changes)
    match event:
        case JobsSubmitted():
            jobs.submit(fold, event)
        case TerminationRequested():
            jobs.terminate(fold, event)
        case GangPlaced():
            attempts.place(fold, event)
        case WorkerRegistered():
            workers.register(fold, event)
        case WorkerSynced():
            workers.sync(fold, event)
        case EndpointRegistered():
            endpoints.register(fold, event)
        case EndpointUnregistered():
            endpoints.unregister(fold, event)
        case AllocationWanted():
            allocations.want(fold, event)
        case AllocationUnwanted():
            allocations.unwant(fold, event)
        case AllocationObserved():
            allocations.observe(fold, event)
        case AllocationRefused():
            allocations.refuse(fold, event)
        case TokenCreated():
            fold.put_token(event.row)
            fold.put_request(event.request)
            fold.journal("TokenCreated", event.actor, message=event.row.token_id)
        case TokenRevoked():
            if event.token_id in state.tokens:
                fold.drop_token(event.token_id)
                fold.journal("TokenRevoked", event.actor, message=event.token_id)
        case MachinesForgotten():
            workers.forget(fold)
        case TimePassed():
            workers.expire(fold)
            allocations.note_idle(fold)
            endpoints.expire(fold)
            jobs.expire(fold)
            _expire_tokens(fold)
        case _:
            assert_never(event)
    return fold.changes


def _expire_tokens(fold: Fold) -> None:
    for token in [t for t in fold.state.tokens.values() if t.expires_at <= fold.now]:
        fold.drop_token(token.token_id)
        fold.journal("TokenExpired", message=token.token_id)
