"""A pool's end of one worker: what it has, and the connection to it."""

from __future__ import annotations

import threading
from typing import Any, Protocol

from fluster.actor.pending import NotRun
from fluster.actor.protocol import target_of
from fluster.actor.stream import ActorStream
from fluster.actor.transport import Channel
from fluster.actor.types import ActorEndpoint
from fluster.cluster.ids import JobId
from fluster.errors import ActorError, FlusterError
from fluster.pool import wire
from fluster.pool.tasks import Function, Task

_MAX_KNOWN = 256


class Frame:
    """A batch of tasks that a worker has.

    Attributes:
        number: Of the worker's batches.
        tasks: In the order in which they run.
        position: How many of them are answered.
        exclusive: The worker gets nothing beside it.
    """

    __slots__ = ("exclusive", "number", "position", "tasks")

    def __init__(self, number: int, tasks: list[Task], exclusive: bool) -> None:
        self.number = number
        self.tasks = tasks
        self.position = 0
        self.exclusive = exclusive


class Heeds(Protocol):
    """What a worker tells of."""

    def joined(self, worker: Worker) -> None:
        """It can be sent tasks."""
        ...

    def answered(self, worker: Worker, chunk: tuple[Any, ...]) -> None:
        """Results came."""
        ...

    def given_back(self, worker: Worker, taken: list[tuple[int, int]]) -> None:
        """It will not run so many of the last tasks of these batches."""
        ...

    def lost(self, worker: Worker) -> None:
        """Nothing comes any more."""
        ...


class Worker:
    """One worker.

    The attributes are the dispatcher's, under its lock.

    Attributes:
        job_id: Its job.
        pid: Of its process; 0 until it is there.
        error: Why it is not there any more, as far as the connection tells.
        served: A task of it came back, or was with it when it died.
        frames: What it has, by number, oldest first.
        unanswered: How many tasks that is.
        last_used: When it was last given something, as a number that grows.
        moved_at: When it was last heard of, or began with what it has; monotonic.
        sending: Somebody sends to it.
        leaving: It gets nothing any more.
        asked_back: It was asked for tasks that it has not begun, and has not answered.
    """

    def __init__(self, endpoint: ActorEndpoint, heeds: Heeds) -> None:
        self.job_id = JobId(endpoint.job_id)
        self.pid = 0
        self.error: Exception = ConnectionError("the connection ended")
        self.served = False
        self.frames: dict[int, Frame] = {}
        self.unanswered = 0
        self.last_used = 0
        self.moved_at = 0.0
        self.sending = self.leaving = self.asked_back = False
        self._heeds = heeds
        self._channel = Channel(endpoint.address, endpoint.access_key)
        self._targets = {
            method: target_of(endpoint.actor_id, endpoint.name, method)
            for method in ("put", "results", "give_back", "alive")
        }
        self._numbers = 0
        self._known: dict[int, None] = {}  # ids of functions that it has, the longest unused first
        self._heartbeat: ActorStream | None = None
        self._thread = threading.Thread(target=self._read, name=f"fluster-pool-{self.job_id}", daemon=True)

    def start(self) -> None:
        """Connects, and reads results, in a thread of its own."""
        self._thread.start()

    def next_frame(self, tasks: list[Task], exclusive: bool) -> Frame:
        """Makes a batch of tasks this worker's."""
        frame = Frame(self._numbers, tasks, exclusive)
        self._numbers += 1
        self.frames[frame.number] = frame
        self.unanswered += len(tasks)
        return frame

    def send(self, frame: Frame) -> None:
        """Sends a batch; one thread at a time. A worker that is gone is told of by `lost`."""
        self._tell("put", wire.dump(self._batch(frame)))

    def ask_back(self) -> None:
        """Asks for the tasks that it has not begun; the answer comes with the results."""
        self._tell("give_back")

    def say_alive(self) -> None:
        """Lets the worker know that its pool is there."""
        if self._heartbeat is None or self._heartbeat.done:
            self._heartbeat = self._tell("alive")

    def close(self) -> None:
        """Ends the connection; what has no answer is lost."""
        self._channel.close()

    def join(self, timeout: float) -> None:
        """Waits for its thread."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _tell(self, method: str, args: tuple[Any, ...] = ()) -> ActorStream | None:
        """Calls a method that gives nothing, as a stream: that needs no thread to wait for the end."""
        try:
            return self._channel.stream(self._targets[method], args, {}, None)
        except (NotRun, ActorError, RuntimeError):  # the thread that reads is told, too
            return None

    def _batch(self, frame: Frame) -> wire.Batch:
        functions: list[tuple[int, bytes]] = []
        runs: list[wire.Run] = []
        function: Function | None = None
        mode = -1
        payloads: list[Any] = []
        for task in frame.tasks:
            if task.function is not function or task.mode != mode:
                function, mode, payloads = task.function, task.mode, []
                runs.append((function.function_id, mode, payloads))
                self._introduce(function, functions)
            payload = task.payload
            payloads.append(wire.beside(payload) if mode >= wire.Mode.PICKLED_ITEM and payload is not None else payload)
        used = {run[0] for run in runs}
        forgotten = [each for each in list(self._known)[:-_MAX_KNOWN] if each not in used]
        for each in forgotten:
            del self._known[each]
        return frame.number, functions, forgotten, runs

    def _introduce(self, function: Function, functions: list[tuple[int, bytes]]) -> None:
        function_id = function.function_id
        if function_id in self._known:
            del self._known[function_id]
        else:
            functions.append((function_id, function.content))
        self._known[function_id] = None

    def _read(self) -> None:
        try:
            with self._channel.stream(self._targets["results"], (), {}, None) as results:
                self.pid = next(results)
                self._heeds.joined(self)
                for chunk in results:
                    if chunk[0] == wire.GIVEN_BACK:
                        self._heeds.given_back(self, chunk[1])
                    else:
                        self._heeds.answered(self, chunk)
        except (NotRun, FlusterError) as error:
            self.error = error
        except StopIteration:
            pass
        finally:
            self._heeds.lost(self)
