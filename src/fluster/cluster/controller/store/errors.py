"""What can go wrong with the database, by what its owner has to do about it.

StoreError
├── StoreRefused   it is not opened: newer, foreign or damaged; it is left as it was
├── StoreFull      no space left: nothing of the commit was kept, the store goes on (also a ResourceExhausted)
├── StoreBusy      another program holds it locked: nothing of the commit was kept, the store goes on
└── StoreFailed    reading, writing or syncing failed: the store has closed itself
"""

from __future__ import annotations

from pathlib import Path

from fluster.errors import FlusterError, ResourceExhausted


class StoreError(FlusterError):
    """Base of what can go wrong with the database."""


class StoreRefused(StoreError):
    """The database cannot be used by this version, and was left untouched.

    Attributes:
        path: The database.
        why: What was found.
    """

    path: Path
    why: str

    def __init__(self, path: Path, why: str, cure: str) -> None:
        super().__init__(f"{path} {why}; {cure}. It was left untouched")
        self.path = path
        self.why = why


class StoreFull(StoreError, ResourceExhausted):
    """The disk is full; the commit was rolled back, later ones may succeed."""


class StoreBusy(StoreError):
    """Another program holds a lock on the database; the commit was rolled back, later ones may succeed."""


class StoreFailed(StoreError):
    """Reading, writing or syncing failed, so that nothing in memory may be trusted. Only opening it again helps."""
