"""Who reads a connection: one of the threads that wait for replies, for all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from threading import get_ident

from fluster.actor.pending import Pending, release, too_late


class Role:
    """The role of reading, which one thread has at a time. It hands it on when it has what it waited for.

    Args:
        read: Reads once, for all who wait, until a deadline at most; called by the thread that has the role.
    """

    def __init__(self, read: Callable[[float | None], None]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._owner = 0
        self._waiting: dict[int, Pending] = {}

    @property
    def is_mine(self) -> bool:
        """Whether this thread has it."""
        return self._owner == get_ident()

    @property
    def is_taken(self) -> bool:
        """Whether a thread has it."""
        return self._lock.locked()

    def take(self, timeout: float = 0.0) -> bool:
        """Whether this thread has it now; `release` it. Never asked by a thread that has it.

        Args:
            timeout: How long it may wait for it, in seconds; -1: for ever.
        """
        taken = self._lock.acquire(False) if timeout == 0.0 else self._lock.acquire(timeout=timeout)
        if taken:
            self._owner = get_ident()
        return taken

    def release(self) -> None:
        """Another of those who wait may read."""
        self._owner = 0
        self._lock.release()
        if self._waiting:
            self._promote()

    def wait(self, pending: Pending, deadline: float | None, *, until: Callable[[], bool] | None = None) -> None:
        """Returns when the call has its reply, or `until` is true."""
        try:
            self._wait_or_read(pending, deadline, until)
        finally:
            # It may have been asked to read just when it had no more reason to.
            if self._waiting and not self._lock.locked():
                self._promote()

    def _wait_or_read(self, pending: Pending, deadline: float | None, until: Callable[[], bool] | None) -> None:
        while not (pending.done or (until is not None and until())):
            if self._owner == get_ident():  # called by the callback of a future
                self._read(deadline)
            elif self.take():
                try:
                    while not (pending.done or (until is not None and until())):
                        self._read(deadline)
                finally:
                    self.release()
            else:
                self._sleep(pending, deadline)

    def _sleep(self, pending: Pending, deadline: float | None) -> None:
        """Until the reader has something for this call, or reads no more."""
        wake = pending.wake
        if wake is None:
            wake = threading.Lock()
            wake.acquire()
            pending.wake = wake
        self._waiting[pending.call_id] = pending
        try:
            if not pending.done and not pending.items:
                if not self._lock.locked():  # the reader left just before
                    return
                if deadline is None:
                    wake.acquire()
                elif not wake.acquire(timeout=max(0.0, deadline - time.monotonic())) and not pending.done:
                    raise too_late()
        finally:
            self._waiting.pop(pending.call_id, None)

    def _promote(self) -> None:
        """Has another of those who wait read."""
        for pending in list(self._waiting.values()):
            if not pending.done and release(pending.wake):
                return
