"""What runs in a pool's worker: tasks on the main thread, calls of the pool on others.

A batch of tasks is put here by one call; results go back through one stream for all batches. A result waits for others
until its batch is through, but at most 2 ms.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Final

from fluster.actor.server import ActorServer
from fluster.cluster.local import current_cluster
from fluster.errors import RemoteError
from fluster.pool import wire
from fluster.pool.wire import Mode, Run, Times

LINGER_S: Final = 0.002
"""So long a result waits for others."""
_SWITCH_S = 0.001
"""How soon a task that computes gives way to the threads that send and receive; Python's 5 ms are more than a batch."""
_WATCH_EVERY_S = 1.0
_GRACE_S = 1.0
_THREADS = 3  # one for the stream of results, one for calls, one to spare

_FIRST, _OVER = 0, 1


def run_worker(name: str, silence_s: float) -> None:
    """The entrypoint of a worker's job; ends by SIGTERM.

    Args:
        name: What its pool looks up.
        silence_s: It ends after so long without a word of the pool: whoever had launched it is gone.
    """
    sys.setswitchinterval(_SWITCH_S)
    executor = Executor(silence_s)
    server = ActorServer(current_cluster(), max_concurrency=_THREADS)
    signal.signal(signal.SIGTERM, executor.end)
    server.register(name, Door(executor))
    server.serve_background()
    threading.Thread(target=executor.watch, name="fluster-pool-watch", daemon=True).start()
    try:
        executor.run()
    finally:
        executor.ready.put(None)
        server.shutdown(_GRACE_S)


class _Ending(BaseException):
    """Brings the main thread out of whatever it runs."""


class _Frame:
    """A batch of tasks.

    Attributes:
        number: The pool's.
        functions: Pickles of functions that are new.
        forgotten: Ids of functions that are not needed any more.
        runs: Tasks of one function and mode each; both ends of the payloads are taken from.
        results: Of its first tasks.
        sent: How many of them are sent.
        times: Not sent yet.
        over: All tasks are done, or were given back.
    """

    __slots__ = ("forgotten", "functions", "number", "over", "results", "runs", "sent", "times")

    def __init__(self, number: int, functions: list[tuple[int, bytes]], forgotten: list[int], runs: list[Run]) -> None:
        self.number = number
        self.functions = functions
        self.forgotten = forgotten
        self.runs = [(function_id, mode, deque(payloads)) for function_id, mode, payloads in runs]
        self.results: list[Any] = []
        self.sent = 0
        self.times: Times = []
        self.over = False


class Executor:
    """Runs batches one after the other.

    Args:
        silence_s: See `run_worker`.

    Attributes:
        frames: Batches that wait.
        held: Those that wait and the one that runs.
        ready: Tells the stream that there are results, or that a batch is over; `None`: that is all.
        unsent: Batches with results to send.
        idle: The stream waits to be told.
        heard: The pool said something since this was last looked at.
    """

    def __init__(self, silence_s: float) -> None:
        self.frames: SimpleQueue[_Frame] = SimpleQueue()
        self.held: deque[_Frame] = deque()
        self.ready: SimpleQueue[int | None] = SimpleQueue()
        self.unsent: deque[_Frame] = deque()
        self.idle = False
        self.heard = True
        self._silence_s = silence_s
        self._ending = self._running = False
        self._functions: dict[int, Callable[..., Any] | bytes] = {}

    def run(self) -> None:
        """Until `end`."""
        try:
            self._running = True
            while not self._ending:
                self._run_frame(self.frames.get())
        except _Ending:
            pass

    def end(self, _number: int, _frame: FrameType | None) -> None:
        """Ends the task that runs, and then `run`. While the worker starts or ends, that goes on undisturbed."""
        first, self._ending = not self._ending, True
        if not (self._running and first):
            return
        for held in tuple(self.held):
            for _, _, payloads in held.runs:
                payloads.clear()
        raise _Ending

    def watch(self) -> None:
        """Ends the process when nobody is there to use it."""
        silent = 0
        # Seconds are counted one by one: after a halt of this process the pool must have time to be heard.
        while silent * _WATCH_EVERY_S < self._silence_s:
            time.sleep(_WATCH_EVERY_S)
            silent, self.heard = (0 if self.heard else silent + 1), False
        print(f"the pool has not been heard of for {self._silence_s:g} s: its worker ends", file=sys.stderr, flush=True)
        os._exit(1)

    def _run_frame(self, frame: _Frame) -> None:
        for function_id in frame.forgotten:
            self._functions.pop(function_id, None)
        self._functions.update(frame.functions)
        self.unsent.append(frame)
        for function_id, mode, payloads in frame.runs:
            if payloads:
                self._run_tasks(frame, function_id, mode, payloads)
        frame.over = True
        self.held.remove(frame)
        self.ready.put(_OVER)

    def _run_tasks(self, frame: _Frame, function_id: int, mode: int, payloads: deque[Any]) -> None:
        call = self._caller(function_id, mode)
        results = frame.results
        take, keep = payloads.popleft, results.append
        before, began = len(results), time.perf_counter()
        while payloads:
            try:
                payload = take()
            except IndexError:  # given back just now
                break
            try:
                value = call(payload)
                if not wire.is_small(value):
                    value = wire.dump_result(value)
            except BaseException as error:
                if self._ending:
                    raise _Ending from None
                value = _thrown(error)
            keep(value)
            if self.idle and payloads:
                self._tell()
        payload = value = None
        if (count := len(results) - before) > 0:
            frame.times.append((function_id, count, time.perf_counter() - began))
        if self.idle and frame.runs[-1][2] is not payloads:
            self._tell()

    def _tell(self) -> None:
        self.idle = False
        self.ready.put(_FIRST)

    def _caller(self, function_id: int, mode: int) -> Callable[[Any], Any]:
        """What runs a task of a function, given its payload."""
        function = self._functions[function_id]
        if isinstance(function, bytes):
            try:
                function = self._functions[function_id] = pickle.loads(function)[0]
            except BaseException as error:
                if self._ending:
                    raise
                return _raiser(error)
        assert not isinstance(function, bytes)
        return _CALLERS[mode](function)


class Door:
    """What the pool may call. All of it are streams: nobody waits for an answer."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._lock = threading.Lock()
        self._next = 0
        self._early: dict[int, _Frame] = {}
        self._given_back: deque[list[tuple[int, int]]] = deque()

    def put(self, body: bytes, *buffers: Any) -> Iterator[None]:
        """Adds a batch. They are numbered from 0 and run in that order."""
        frame = _Frame(*wire.load(body, buffers))
        executor = self._executor
        executor.heard = True
        with self._lock:
            self._early[frame.number] = frame
            while (ready := self._early.pop(self._next, None)) is not None:
                self._next += 1
                executor.held.append(ready)
                executor.frames.put(ready)
        yield from ()

    def results(self) -> Iterator[Any]:
        """First this process's id, then what `wire` calls results."""
        yield os.getpid()
        executor = self._executor
        ready = executor.ready
        while True:
            token = ready.get()
            if token == _FIRST:
                until = time.monotonic() + LINGER_S
                while token == _FIRST and (left := until - time.monotonic()) > 0:
                    try:
                        token = ready.get(timeout=left)
                    except Empty:
                        break
            executor.idle = True  # before looking: what comes later tells again
            for frame in tuple(executor.unsent):
                over = frame.over
                if (count := len(frame.results)) > frame.sent or (over and frame.times):
                    yield self._chunk(frame, count)
                if over:
                    executor.unsent.remove(frame)
            while self._given_back:
                yield wire.GIVEN_BACK, self._given_back.popleft()
            if token is None:
                return

    def give_back(self) -> Iterator[None]:
        """Takes tasks that have not begun from their batches; the stream of results says which."""
        taken = []
        for frame in reversed(tuple(self._executor.held)):
            count = 0
            for _, _, payloads in reversed(frame.runs):
                try:
                    while True:
                        payloads.pop()
                        count += 1
                except IndexError:
                    pass
            if count:
                taken.append((frame.number, count))
        self._given_back.append(taken)
        self._executor.ready.put(_OVER)
        yield from ()

    def alive(self) -> Iterator[None]:
        """The pool is there."""
        self._executor.heard = True
        yield from ()

    def _chunk(self, frame: _Frame, count: int) -> tuple[Any, ...]:
        values = frame.results[frame.sent : count]
        frame.results[frame.sent : count] = [None] * len(values)
        frame.sent = count
        times = []
        while frame.times:
            times.append(frame.times.pop(0))
        return frame.number, times, *wire.dump(values)


def _thrown(error: BaseException) -> Any:
    trace = error.__traceback__
    if trace is not None:
        # Users look for their own lines: those of this module come first.
        while trace.tb_next is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        error.__traceback__ = trace
    return wire.dump_thrown(error)


def _raiser(error: BaseException) -> Callable[[Any], Any]:
    text = f"the task's function cannot be rebuilt in the worker: {type(error).__name__}: {error}"

    def fail(_payload: Any) -> Any:
        raise RemoteError(text) from error

    return fail


def _loaded(payload: Any) -> Any:
    try:
        return pickle.loads(payload)
    except Exception as error:
        raise RemoteError(
            f"the task's arguments cannot be rebuilt in the worker: {type(error).__name__}: {error}"
        ) from error


def _call_item(function: Callable[..., Any]) -> Callable[[Any], Any]:
    return function


def _call_arguments(function: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda payload: function(*payload)


def _call_pickled_item(function: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda payload: function(_loaded(payload))


def _call_pickled(function: Callable[..., Any]) -> Callable[[Any], Any]:
    def call(payload: Any) -> Any:
        args, kwargs = _loaded(payload)
        return function(*args, **kwargs)

    return call


_CALLERS: Final = {
    Mode.ITEM: _call_item,
    Mode.ARGUMENTS: _call_arguments,
    Mode.PICKLED_ITEM: _call_pickled_item,
    Mode.PICKLED_CALL: _call_pickled,
}
