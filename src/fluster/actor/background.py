"""Threads that a channel has only while there is something for them: they end when idle, and start again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sized
from queue import Empty, SimpleQueue
from typing import Any

from fluster.actor.futures import ActorFuture
from fluster.actor.line import Line
from fluster.actor.pending import release

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
        """Lets the thread end, with no future left; it is returned."""
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
                if self._closed or (due is None and idle):  # closed while it looked: what was due is not any more
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


class Reader:
    """Reads for futures: nobody may be waiting for them.

    Args:
        futures: Those without a result.
        read: Reads until there are none.

    Attributes:
        reads: Whether a future that was just added needs no `start`.
    """

    def __init__(self, futures: Sized, read: Callable[[], None]) -> None:
        self.reads = False
        self._futures = futures
        self._read = read
        self._changed = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Read, if that does not happen already."""
        with self._changed:
            if self._thread is None:
                self.reads = True
                self._thread = threading.Thread(target=self._run, name="fluster-actor-reader", daemon=True)
                self._thread.start()
            else:
                self._changed.notify_all()

    def stop(self) -> threading.Thread | None:
        """Lets the thread end once there are no futures; it is returned."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            return self._thread

    def _run(self) -> None:
        while True:
            self._read()
            with self._changed:
                self.reads = False  # whoever adds a future from here on notifies
                if not self._futures and not self._stopped:
                    self._changed.wait(STAYS_S)
                if not self._futures:
                    self._thread = None
                    return
                self.reads = True


class Writer:
    """Writes for futures: what comes while it waits for its turn goes out together.

    Args:
        line: Where to.
        sending: The lock of whoever sends; `wake` is called with it.
    """

    def __init__(self, line: Line, sending: threading.Lock) -> None:
        self._line = line
        self._sending = sending
        self._wanted = threading.Lock()
        self._wanted.acquire()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """The connection has something queued."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fluster-actor-writer", daemon=True)
            self._thread.start()
        release(self._wanted)

    def stop(self) -> threading.Thread | None:
        """Lets the thread end once the registration is gone; it is returned."""
        release(self._wanted)
        return self._thread

    def _run(self) -> None:
        line = self._line
        while True:
            if not self._wanted.acquire(timeout=STAYS_S) or line.gone is not None:
                with self._sending:
                    if line.gone is not None or line.link is None or not line.link.has_queue:
                        self._thread = None
                        return
            link = line.link
            if link is None:
                continue
            try:
                link.flush()
            except OSError:
                with self._sending:
                    line.broken(link, by_reader=False)
