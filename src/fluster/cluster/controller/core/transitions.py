"""`apply`: folds one event into the state and says which rows change."""

from __future__ import annotations

from typing import assert_never

from fluster.cluster.controller.core import allocations, attempts, endpoints, jobs, silence, tokens, workers
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
    RequestsRefused,
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
    fold = Fold(state, now, changes, getattr(event, "peer", ""))
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
            tokens.create(fold, event)
        case TokenRevoked():
            tokens.revoke(fold, event)
        case RequestsRefused():
            fold.changes.journal += event.lines
        case MachinesForgotten():
            workers.forget(fold)
        case TimePassed():
            silence.listen(fold)
            workers.expire(fold)
            allocations.note_idle(fold)
            endpoints.expire(fold)
            jobs.expire(fold)
            tokens.expire(fold)
        case _:
            assert_never(event)
    return fold.changes
