"""How a controller of the simulation loads its state: as the real one does."""

from __future__ import annotations

from typing import cast

from fluster.cluster.controller.core.state import Settings, State
from fluster.cluster.controller.loading import load_state
from fluster.cluster.controller.store import Store
from fluster.testing.sim.store import MemoryStore


def load(store: MemoryStore, settings: Settings, now: float, old: State | None) -> State:
    """The state of everything unfinished."""
    return load_state(cast(Store, store), settings, now, old)
