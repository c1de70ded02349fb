"""Results of a pool one after the other: a window that moves over items that may have no end."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar

from fluster.actor.futures import PENDING
from fluster.pool.dispatch import BATCH_S, DEPTH, LONG_S, MAX_BATCH, Dispatcher
from fluster.pool.tasks import Function

T = TypeVar("T")

_LEAST_TO_A_WORKER: Final = 4
_TOGETHER: Final = 256
_SOON_S: Final = 0.0005
"""So long items are gathered before they are sent to a worker that waits."""
_DONE, _FAILED, _DROPPED = "DONE", "FAILED", "DROPPED"


class _Slot:
    """A task whose result a stream gets."""

    __slots__ = ("_state", "alone", "deaths", "function", "mode", "payload", "sent", "size", "value", "window")

    def __init__(self, window: _Window, function: Function, mode: int, payload: Any, size: int) -> None:
        self.window = window
        self.function = function
        self.mode = mode
        self.payload = payload
        self.size = size
        self.deaths = 0
        self.alone = self.sent = False
        self.value: Any = None
        self._state = PENDING

    def settle(self, value: Any, error: BaseException | None) -> bool:
        """It returned, or raised."""
        self.payload = None
        if self._state != PENDING:
            return False
        self.value = value if error is None else error
        self._state = _DONE if error is None else _FAILED
        window = self.window
        if not window.ordered:
            window.ended.append(self)
        if window.waits:
            window.notify()
        return False

    def tell(self) -> None:
        """Nobody else listens."""

    def fail(self, error: BaseException) -> None:
        """It never gets to its end."""
        self.settle(None, error)

    def cancel(self) -> None:
        """Nobody wants the result, or nobody will work it out; whoever waits for it is told."""
        if self._state != PENDING:
            return
        self._state = _DROPPED
        window = self.window
        if not window.ordered:
            window.ended.append(self)
        window.notify()
        window.dispatcher.cancelled(self)


class _Window:
    """What a stream and its tasks share.

    Attributes:
        dispatcher: Of the pool.
        ordered: Results are wanted in the order of the items.
        slots: Tasks whose results were not given yet; when ordered, in order.
        ended: Those with an end, when not ordered.
        waits: The stream waits for a result.
        wake: Ends that.
    """

    __slots__ = ("dispatcher", "ended", "in_flight", "ordered", "slots", "waits", "wake")

    def __init__(self, dispatcher: Dispatcher, ordered: bool) -> None:
        self.dispatcher = dispatcher
        self.ordered = ordered
        self.slots: deque[_Slot] = deque()
        self.ended: deque[_Slot] = deque()
        self.in_flight: set[_Slot] = set()
        self.waits = False
        self.wake: SimpleQueue[None] = SimpleQueue()

    def add(self, slot: _Slot) -> None:
        """A task that was made."""
        if self.ordered:
            self.slots.append(slot)
        else:
            self.in_flight.add(slot)

    def __len__(self) -> int:
        return len(self.slots) if self.ordered else len(self.in_flight)

    def is_ready(self) -> bool:
        """Whether a result can be given."""
        if self.ordered:
            return bool(self.slots) and self.slots[0]._state != PENDING
        return bool(self.ended)

    def notify(self) -> None:
        """A task has come to its end."""
        if self.waits:
            self.waits = False
            self.wake.put(None)

    def take(self) -> _Slot:
        """The task whose result is next; waits for it."""
        while not self.is_ready():
            self.waits = True
            if self.is_ready():
                break
            self.wake.get()
        self.waits = False
        if self.ordered:
            return self.slots.popleft()
        slot = self.ended.popleft()
        self.in_flight.discard(slot)
        return slot


class TaskStream(Iterator[T], Generic[T]):
    """The results of `WorkerPool.imap`. A `for` loop over it, or `close`, ends it; one thread may iterate at a time."""

    def __init__(
        self,
        items: Iterator[Any],
        function: Function,
        payloads: Callable[[list[Any]], list[Any]],
        dispatcher: Dispatcher,
        check_open: Callable[[], None],
        ordered: bool,
        max_in_flight: int | None,
        workers: Callable[[], int],
    ) -> None:
        self._items = items
        self._function = function
        self._payloads = payloads
        self._dispatcher = dispatcher
        self._check_open = check_open
        self._max = max_in_flight
        self._workers = workers
        self._window = _Window(dispatcher, ordered)
        self._exhausted = False
        self._broken: BaseException | None = None
        self._finalize = weakref.finalize(self, _cancel_all, self._window)
        self._finalize.atexit = False

    def __iter__(self) -> TaskStream[T]:
        return self

    def __next__(self) -> T:
        window = self._window
        if not self._exhausted:
            self._take_items()
        if not len(window):
            self._exhausted = True
            error, self._broken = self._broken, None
            if error is not None:
                raise error
            raise StopIteration
        slot = window.take()
        if slot._state == _FAILED:
            raise slot.value
        if slot._state == _DROPPED:
            raise CancelledError("the pool was shut down before this item's turn")
        result: T = slot.value
        return result

    def close(self) -> None:
        """The rest is not wanted; what no worker has does not run."""
        self._exhausted = True
        self._finalize()
        self._window.slots.clear()
        self._window.in_flight.clear()
        self._window.ended.clear()

    def __enter__(self) -> TaskStream[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_items(self) -> None:
        """Fills the window, many items at a time; not for long when a result is there, should items come slowly."""
        window = self._window
        limit = self._limit()
        room, some = limit - len(window), limit // 4
        if room <= 0 or (room < some and window.is_ready()):
            return
        self._check_open()
        batch: list[Any] = []
        began = added = time.perf_counter()
        try:
            for taken in range(room):
                now = time.perf_counter()
                if batch and (len(batch) >= _TOGETHER or (now - added > _SOON_S and self._dispatcher.is_hungry)):
                    self._add(batch)
                    batch, added = [], now
                if now - began > _SOON_S and taken > 1 and window.is_ready():
                    break
                batch.append(next(self._items))
        except StopIteration:
            self._exhausted = True
        except BaseException as error:  # of the items: after the results of those before it
            self._exhausted, self._broken = True, error
            if not isinstance(error, Exception):
                raise
        if batch:
            self._add(batch)

    def _add(self, batch: list[Any]) -> None:
        window, function = self._window, self._function
        slots, unsendable = [], 0
        for payload in self._payloads(batch):
            if isinstance(payload, Exception):
                slot = _Slot(window, function, 0, None, 0)
                window.add(slot)
                slot.fail(payload)
                unsendable += 1
            else:
                slot = _Slot(window, function, *payload)
                window.add(slot)
                slots.append(slot)
        if unsendable:
            self._dispatcher.count_failed(unsendable)
        self._dispatcher.add(slots)

    def _limit(self) -> int:
        if self._max is not None:
            return self._max
        workers = max(1, self._workers())
        timing = self._function.timing
        least = _LEAST_TO_A_WORKER * workers
        if not timing.answered or timing.seconds > LONG_S:
            return least
        batch = min(MAX_BATCH, int(BATCH_S / max(timing.seconds, 1e-9)), 4 * timing.answered)
        return max(least, (DEPTH + 2) * workers * batch)


def _cancel_all(window: _Window) -> None:
    for slot in (*window.slots, *window.in_flight):
        slot.cancel()
