"""Threads that a channel has only while there is something for them: they end when idle, and start again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from fluster.actor.futures import ActorFuture

STAYS_S = 1.0
"""Without anything to do."""


class Clock:
    """Ends futures whose deadline passes: whoever reads may be waiting for something else.

    Args:
        expire: Ends those that are due, and gives the next deadline, `None` if there is none.
    """

    def __init__(self, expire: Callable[[], float | None]) -> None:
        self._expire = expire
        self._changed = threading.Condition()
        self._due = 0.0
        self._closed = False
        self._thread: threading.Thread | None = None

    def look_at(self, deadline: float) -> None:
        """A future has this deadline."""
        with self._changed:
            if self._thread is not None:
                if deadline < self._due:
                    self._changed.notify_all()
            elif not self._closed:
                self._due = deadline
                self._thread = threading.Thread(target=self._run, name="fluster-actor-clock", daemon=True)
                self._thread.start()

    def close(self) -> threading.Thread | None:
        """Lets the thread end; it is returned."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            return self._thread

    def _run(self) -> None:
        idle = False
        while True:
            due = self._expire()
            with self._changed:
                if due is None:
                    due = self._expire()  # one may have come since
                if due is None and (idle or self._closed):
                    self._thread = None
                    return
                idle = due is None
                self._due = time.monotonic() + STAYS_S if due is None else due
                self._changed.wait(max(0.0, self._due - time.monotonic()))


class Teller:
    """Calls back: what a user's code does there must not keep replies from coming."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: SimpleQueue[ActorFuture[Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def tell(self, future: ActorFuture[Any]) -> None:
        """Has whoever asked for it called."""
        self._waiting.put(future)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fluster-actor-callbacks", daemon=True)
                self._thread.start()

    def close(self) -> threading.Thread | None:
        """Lets the thread end once all was told; it is returned."""
        self._waiting.put(None)
        return self._thread

    def _run(self) -> None:
        while True:
            try:
                future = self._waiting.get(timeout=STAYS_S)
            except Empty:
                future = None
            if future is not None:
                future._invoke_callbacks()
                continue
            with self._lock:
                if self._waiting.empty():
                    self._thread = None
                    return
