"""What there is to say of machines to a gang that waits for room: some are starting, or none are to be had."""

from __future__ import annotations

from fluster.cluster.controller.core.state import State

_MAX_ERROR_CHARS = 300


def outlook(state: State, now: float) -> str:
    """In words, after why it waits; empty where machines are not asked for by demand."""
    if not state.settings.offers:
        return ""
    return "".join(f"; {part}" for part in (*_starting(state), *_refused(state, now), *_exhausted(state)))


def _starting(state: State) -> list[str]:
    machines = state.machines()
    number = sum(allocation_id not in machines.workers for allocation_id in machines.starting)
    return [f"{number} machine{'s' if number > 1 else ''} starting"] if number else []


def _refused(state: State, now: float) -> list[str]:
    found = []
    for backend, refusal in sorted(state.refusals.items()):
        again_s = max(0.0, refusal.until - now)
        found.append(f"{backend} gave none: {refusal.error[:_MAX_ERROR_CHARS]} (asked again in {again_s:.0f} s)")
    return found


def _exhausted(state: State) -> list[str]:
    found = []
    for offer in state.settings.offers:
        if sum(offer.made(row) for row in state.allocations.values()) >= offer.at_most:
            found.append(f"all {offer.at_most} machines that {offer.backend} may give are there or coming")
    return found
