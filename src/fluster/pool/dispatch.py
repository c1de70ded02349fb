"""Which worker gets which tasks, and what becomes of them: the queue of a pool and everything its workers have.

Tasks leave the queue in batches of about 2 ms of work, at most two to a worker; a worker whose tasks take long has only
one, and gives back what it has not begun when another one is idle. When a worker dies, what it had goes to the front
again, and from then on alone, so that what kills workers is found, and nothing is blamed that only was beside it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from fluster.actor.futures import PENDING
from fluster.pool import wire
from fluster.pool.stats import PoolStats
from fluster.pool.tasks import Task
from fluster.pool.worker import Frame, Worker

BATCH_S: Final = 0.002
"""Work of one batch: enough to hide what a batch costs, little enough to come back soon."""
MAX_BATCH: Final = 2_048
MAX_BATCH_BYTES: Final = 1 << 20
DEPTH: Final = 2
"""Batches that a worker has: one runs while the next one travels."""
LONG_S: Final = 0.02
"""Nothing is put behind a task that takes so long; the way to a worker and back is short beside it."""
STUCK_S: Final = 0.005
"""A worker that is silent for so long, with more than one task, is asked for what it has not begun."""
_GROWTH = 4
"""What is known of a function from n tasks is believed for a batch of so many times n."""


class Dispatcher:
    """The queue and the workers; any threads may use it.

    Args:
        max_retries: How many deaths of workers a task survives.
        on_lost: Told of a worker that is gone, and of the task that has killed too many, if so.
    """

    def __init__(self, max_retries: int, on_lost: Callable[[Worker, Task | None], None]) -> None:
        self._max_retries = max_retries
        self._on_lost = on_lost
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        """Workers came or went, or the last task ended."""
        self.settled = threading.Condition()
        """Of all futures of the pool."""
        self.queue: deque[Task] = deque()
        self.workers: list[Worker] = []
        self.stuck = threading.Event()
        """A worker is idle while others have more than they run."""
        self.news = threading.Event()
        """The numbers of `stats` may have changed."""
        self._dropped = 0  # cancelled, and still in the queue
        self._running = self._done = self._failed = self._retried = self._cancelled = 0
        self._turn = 0
        self._hungry = False  # a worker may have room, and the queue was empty
        self._failure: BaseException | None = None

    @property
    def is_hungry(self) -> bool:
        """Whether a worker may be waiting for tasks."""
        return self._hungry

    @property
    def is_idle(self) -> bool:
        """Whether no task is without an end."""
        return not self._running and len(self.queue) <= self._dropped

    def stats(self) -> PoolStats:
        """The numbers of this moment."""
        with self.lock:
            return PoolStats(
                workers=sum(not worker.leaving for worker in self.workers),
                queued=len(self.queue) - self._dropped,
                running=self._running,
                done=self._done,
                failed=self._failed,
                retried=self._retried,
                cancelled=self._cancelled,
            )

    def add(self, tasks: Sequence[Task]) -> None:
        """Queues tasks."""
        with self.lock:
            failure = self._failure
            if failure is None:
                self.queue.extend(tasks)
            else:
                self._failed += len(tasks)
        if failure is not None:
            for task in tasks:
                task.fail(failure)
        elif self._hungry:
            self._dispatch()
        if not self.news.is_set():
            self.news.set()

    def count_failed(self, count: int) -> None:
        """So many tasks failed before they were queued."""
        with self.lock:
            self._failed += count
        self.news.set()

    def cancelled(self, task: Task) -> None:
        """A task was cancelled. If a worker has it and has not begun, it is taken back."""
        worker = None
        with self.lock:
            if task.sent:
                worker = self._holder(task)
                if worker is not None:
                    worker.asked_back = True
            else:
                task.payload = None
                self._dropped += 1
                self._cancelled += 1
                if self.is_idle:
                    self.changed.notify_all()
        if worker is not None:
            worker.ask_back()
        self.news.set()

    def queued(self) -> list[Task]:
        """Tasks that no worker has."""
        with self.lock:
            return [task for task in self.queue if task._state == PENDING]

    def fail_all(self, failure: BaseException) -> None:
        """No task is run any more: those there are fail, and those that come."""
        with self.lock:
            self._failure = failure
            tasks = [task for task in self.queue if task._state == PENDING]
            self.queue.clear()
            self._dropped = 0
            for worker in self.workers:
                for frame in worker.frames.values():
                    tasks += frame.tasks[frame.position :]
                worker.frames.clear()
                worker.unanswered = 0
            self._running = 0
            self._failed += len(tasks)
            self.changed.notify_all()
        for task in tasks:
            task.fail(failure)
        self.news.set()

    # What workers tell

    def joined(self, worker: Worker) -> None:
        """It can be sent tasks."""
        with self.lock:
            worker.moved_at = time.monotonic()
            self.workers.append(worker)
            self.changed.notify_all()
        self._dispatch()

    def answered(self, worker: Worker, chunk: tuple[Any, ...]) -> None:
        """Results of its oldest tasks came."""
        number, times, body, *buffers = chunk
        values = wire.load(body, buffers)
        errors: dict[int, BaseException] = {}
        for position, value in enumerate(values):
            if type(value) is tuple:
                returned, outcome = wire.load_result(value)
                values[position] = outcome if returned else None
                if not returned:
                    errors[position] = outcome
        failed = len(errors)
        with self.lock:
            frame = worker.frames.get(number)
            if frame is None:
                return
            begin, frame.position = frame.position, frame.position + len(values)
            tasks = frame.tasks[begin : frame.position]
            self._learn(frame, times)
            worker.unanswered -= len(tasks)
            worker.moved_at = time.monotonic()
            worker.served = True
            self._running -= len(tasks)
            self._failed += failed
            self._done += len(tasks) - failed
            self._close_if_over(worker, frame)
        self._dispatch()
        listened = []
        with self.settled:
            for position, task in enumerate(tasks):
                if task.settle(values[position], errors.get(position) if errors else None):
                    listened.append(task)
        for task in listened:
            task.tell()
        if not self._running:
            with self.lock:
                if self.is_idle:
                    self.changed.notify_all()
        if not self.news.is_set():
            self.news.set()

    def given_back(self, worker: Worker, taken: list[tuple[int, int]]) -> None:
        """It will not run so many of the last tasks of these batches."""
        with self.lock:
            back: list[Task] = []
            for number, count in sorted(taken):
                frame = worker.frames.get(number)
                if frame is None:  # it was lost meanwhile, and all of it is queued again
                    continue
                keep = len(frame.tasks) - count
                back += frame.tasks[keep:]
                del frame.tasks[keep:]
                frame.exclusive = True
                self._close_if_over(worker, frame)
            worker.unanswered -= len(back)
            self._running -= len(back)
            self._requeue(back)
            # A batch may have come after it was asked, and tasks of it were cancelled before it answered.
            later = list(worker.frames.values())[1:]
            again = any(task._state != PENDING for frame in later for task in frame.tasks[frame.position :])
            worker.asked_back = again
        if again:
            worker.ask_back()
        self._dispatch()

    def lost(self, worker: Worker) -> None:
        """It is gone: what it had is queued again."""
        doomed = None
        with self.lock:
            if worker in self.workers:
                self.workers.remove(worker)
            tasks = _unanswered(worker)
            worker.frames.clear()
            worker.unanswered = 0
            self._running -= len(tasks)
            if tasks:
                worker.served = True
                doomed = self._charge(tasks)
            self.changed.notify_all()
        self._on_lost(worker, doomed)
        worker.close()
        self._dispatch()
        self.news.set()

    def condemned(self, task: Task, error: BaseException) -> None:
        """A task that `on_lost` was told of has its end."""
        with self.lock:
            self._running -= 1
            self._failed += 1
        task.fail(error)
        with self.lock:
            self.changed.notify_all()
        self.news.set()

    # What the pool wants

    def leave(self, worker: Worker) -> None:
        """Gives a worker nothing any more, and takes back what it has not begun."""
        with self.lock:
            worker.leaving = True
            self.changed.notify_all()
            ask = worker.unanswered > 1 and not worker.asked_back
            worker.asked_back |= ask
        if ask:
            worker.ask_back()

    def least_busy(self) -> list[Worker]:
        """Workers that take tasks, idle ones first."""
        with self.lock:
            return sorted((w for w in self.workers if not w.leaving), key=lambda w: (w.unanswered, -w.last_used))

    def relieve(self) -> bool:
        """Takes tasks back from workers that seem to be stuck, for those that are idle; whether to look again soon."""
        now = time.monotonic()
        with self.lock:
            if self.queue or not any(not w.unanswered and not w.leaving for w in self.workers):
                return False
            laden = [w for w in self.workers if w.unanswered > 1 and not w.asked_back]
            stuck = [w for w in laden if now - w.moved_at > STUCK_S]
            for worker in stuck:
                worker.asked_back = True
        for worker in stuck:
            worker.ask_back()
        return len(stuck) < len(laden)

    # With the lock held

    def _holder(self, task: Task) -> Worker | None:
        """Who has a task and may give it back."""
        for worker in self.workers:
            if worker.unanswered > 1 and not worker.asked_back and task in _unanswered(worker):
                return worker
        return None

    def _learn(self, frame: Frame, times: wire.Times) -> None:
        if len(times) == 1 and frame.tasks:
            (_, count, seconds), *_ = times
            frame.tasks[0].function.timing.learn(count, seconds)
        elif times:
            timings = {task.function.function_id: task.function.timing for task in frame.tasks}
            for function_id, count, seconds in times:
                if function_id in timings:  # else all of them were given back
                    timings[function_id].learn(count, seconds)

    def _close_if_over(self, worker: Worker, frame: Frame) -> None:
        if frame.position == len(frame.tasks):
            del worker.frames[frame.number]
            if not self.queue:
                self._hungry = True
                if not worker.frames and not worker.leaving:
                    self.stuck.set()
            if worker.leaving and not worker.frames:
                self.changed.notify_all()

    def _charge(self, tasks: list[Task]) -> Task | None:
        """Queues again what a worker had that died; gives the task that has killed too many instead."""
        oldest = tasks[0]
        oldest.deaths += 1
        self._retried += 1
        doomed = None
        if oldest.deaths > self._max_retries and len(tasks) == 1 and oldest._state == PENDING:
            # Only when there is no doubt: it was the only one. Else it is tried once more, alone.
            doomed = oldest
            self._retried -= 1
            self._running += 1
            tasks = []
        for task in tasks:
            task.alone = True
        self._requeue(tasks)
        return doomed

    def _requeue(self, tasks: list[Task]) -> None:
        for task in reversed(tasks):
            if task._state == PENDING:
                task.sent = False
                self.queue.appendleft(task)
            else:
                self._cancelled += 1

    # Sending

    def _dispatch(self) -> None:
        """Sends what there is to whoever has room."""
        while True:
            with self.lock:
                worker = self._next_worker()
                self._hungry = worker is not None
                if worker is None or not self.queue:
                    return
                frame = self._fill(worker)
                if frame is None:
                    continue
                self._hungry = False
                worker.sending = True
            try:
                worker.send(frame)
            finally:
                with self.lock:
                    worker.sending = False

    def _next_worker(self) -> Worker | None:
        """The least busy one with room; of several the one that was not given anything for longest."""
        alone = bool(self.queue) and self.queue[0].alone
        best: Worker | None = None
        for worker in self.workers:
            if worker.sending or worker.leaving:
                continue
            frames = worker.frames
            if frames and (alone or len(frames) >= DEPTH or any(frame.exclusive for frame in frames.values())):
                continue
            if (
                best is None
                or worker.unanswered < best.unanswered
                or (worker.unanswered == best.unanswered and worker.last_used < best.last_used)
            ):
                best = worker
        return best

    def _fill(self, worker: Worker) -> Frame | None:
        """A batch for a worker; `None` if what was queued is cancelled."""
        queue = self.queue
        first = self._pop()
        if first is None:
            return None
        first.sent = True
        tasks = [first]
        function, timing = first.function, first.function.timing
        exclusive = first.alone or not timing.answered or timing.seconds > LONG_S
        if not exclusive:
            room_s, room = BATCH_S - timing.seconds, MAX_BATCH_BYTES - first.size
            limit = min(MAX_BATCH, -(-len(queue) // len(self.workers)), _GROWTH * timing.answered)
            while queue and len(tasks) < limit:
                task = queue[0]
                if task.function is not function:
                    function, timing = task.function, task.function.timing
                room_s -= timing.seconds
                room -= task.size
                if room_s < 0 or room < 0 or task.alone or not timing.answered:
                    break
                queue.popleft()
                if task._state == PENDING:
                    task.sent = True
                    tasks.append(task)
                else:
                    self._dropped -= 1
        if not worker.frames:
            worker.moved_at = time.monotonic()
        self._turn += 1
        worker.last_used = self._turn
        self._running += len(tasks)
        return worker.next_frame(tasks, exclusive)

    def _pop(self) -> Task | None:
        while self.queue:
            task = self.queue.popleft()
            if task._state == PENDING:
                return task
            self._dropped -= 1
        return None


def _unanswered(worker: Worker) -> list[Task]:
    """Oldest first."""
    return [task for frame in worker.frames.values() for task in frame.tasks[frame.position :]]
