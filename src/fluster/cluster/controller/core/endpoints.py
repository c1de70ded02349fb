"""Endpoints: published, withdrawn, expired. Those of an attempt go with it."""

from __future__ import annotations

from fluster.cluster.controller.core.events import EndpointRegistered, EndpointUnregistered
from fluster.cluster.controller.core.fold import Fold
from fluster.cluster.controller.core.rows import ENDED_STATES, AttemptState
from fluster.errors import FailedPrecondition, ResourceExhausted


def register(fold: Fold, event: EndpointRegistered) -> None:
    """Publishes an endpoint; one of an attempt needs that attempt alive."""
    state, row = fold.state, event.row
    if row.attempt_uid is not None:
        attempt = state.attempts.get(row.attempt_uid)
        if attempt is None or attempt.state in ENDED_STATES or attempt.state is AttemptState.EXITED:
            raise FailedPrecondition(f"attempt {row.attempt_uid!r} has ended; it can register no endpoint")
        owned = len(state.endpoints_by_attempt.get(row.attempt_uid, ()))
    else:
        owned = sum(1 for leased in state.endpoint_seen if state.endpoints[leased].owner == row.owner)
    if owned >= state.settings.max_endpoints_per_job:
        raise ResourceExhausted(f"{owned} endpoints are registered already, the limit for one owner")
    fold.put_endpoint(row)
    if event.request is not None:
        fold.put_request(event.request)
    fold.journal("EndpointRegistered", row.owner, job_id=row.job_id or "", message=f"{row.name} at {row.address}")


def unregister(fold: Fold, event: EndpointUnregistered) -> None:
    """Withdraws an endpoint; one that is gone already is no error."""
    row = fold.state.endpoints.get(event.endpoint_id)
    if row is None:
        return
    fold.drop_endpoint(event.endpoint_id)
    fold.journal("EndpointUnregistered", event.actor, job_id=row.job_id or "", message=f"{row.name} at {row.address}")


def expire(fold: Fold) -> None:
    """Withdraws leased endpoints nobody renews."""
    state = fold.state
    lease = state.settings.endpoint_lease_s
    for endpoint_id, seen in list(state.endpoint_seen.items()):
        if fold.now - seen >= lease:
            row = state.endpoints[endpoint_id]
            fold.drop_endpoint(endpoint_id)
            fold.journal("EndpointExpired", message=f"{row.name} at {row.address}")
