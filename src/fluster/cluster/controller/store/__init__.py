"""The durable truth of the controller: what is acknowledged is in here, synced."""

from fluster.cluster.controller.store.errors import StoreBusy, StoreError, StoreFailed, StoreFull, StoreRefused
from fluster.cluster.controller.store.sqlite import JobCursor, Loaded, Store

__all__ = ["JobCursor", "Loaded", "Store", "StoreBusy", "StoreError", "StoreFailed", "StoreFull", "StoreRefused"]
