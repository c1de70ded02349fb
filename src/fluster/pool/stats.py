"""What a pool tells about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool at one moment.

    Attributes:
        workers: Those that are there and take tasks.
        queued: Tasks that no worker has.
        running: Tasks that workers have; each runs one of its tasks at a time.
        done: Tasks that returned something.
        failed: Tasks that raised something, or killed too many workers.
        retried: How often a task was charged with the death of its worker.
        cancelled: Tasks cancelled before a worker had them.
    """

    workers: int
    queued: int
    running: int
    done: int
    failed: int
    retried: int
    cancelled: int = 0

    @property
    def finished(self) -> int:
        """Tasks that have their end, whichever."""
        return self.done + self.failed + self.cancelled

    @property
    def total(self) -> int:
        """Tasks there have been so far."""
        return self.finished + self.queued + self.running
