"""Where methods run: lanes of threads for synchronous ones, one event loop for the others."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from fluster.actor.reactor import Reactor


class Work(Protocol):
    """Something to run on a lane's thread."""

    def run(self) -> None:
        """Runs it; nothing is raised."""
        ...


class Lane:
    """The threads that run one actor's synchronous methods, in the order in which they came.

    A thread without work reads the server's connections, if nobody else does, and runs what it reads for its own lane
    at once: a call then costs no change of threads.

    Args:
        name: Of the threads.
        threads: How many methods may run at a time.
        reactor: Where connections are read.

    Attributes:
        threads: All of them.
    """

    def __init__(self, name: str, threads: int, reactor: Reactor) -> None:
        self._reactor = reactor
        self._lock = threading.Lock()
        self._work: deque[Work] = deque()
        self._idle: list[_Idle] = []
        self._started = self._closed = False
        self.threads = [
            threading.Thread(target=self._run, name=f"fluster-{name}-{number}"[:40], daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        """Lets the threads begin. Repeating it is harmless."""
        with self._lock:
            if self._started:
                return
            self._started = True
        for thread in self.threads:
            thread.start()

    @property
    def has_work(self) -> bool:
        """Whether something waits."""
        return bool(self._work)

    @property
    def closed(self) -> bool:
        """Whether its threads end, or have ended."""
        return self._closed

    def push(self, work: Work, *, lead: bool = False) -> bool:
        """Adds work behind what waits.

        Args:
            work: To run.
            lead: Also hand over the reading of connections, if a thread is idle.

        Returns:
            Whether the reading was handed over.
        """
        with self._lock:
            closed = self._closed
            if not closed:
                self._work.append(work)
            idle = self._idle.pop() if self._idle else None
            if idle is not None:
                idle.leads = lead
        if closed:
            # It is refused, because the actor is gone; the pusher's context is none of its business.
            contextvars.copy_context().run(work.run)
            return False
        if idle is None:
            self._reactor.interrupt(self)
            return False
        idle.wake.release()
        return lead

    def close(self) -> None:
        """Lets threads end once they have nothing to do; work that comes later is run by none."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for each in idle:
            each.wake.release()

    def join(self, timeout: float) -> bool:
        """Whether all threads have ended."""
        for thread in self.threads:
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(timeout)
        return not any(thread.is_alive() for thread in self.threads if thread is not threading.current_thread())

    def _run(self) -> None:
        me = _Idle()
        leads = False
        while True:
            work = None
            with self._lock:
                if self._work:
                    work = self._work.popleft()
                elif self._closed:
                    break
                elif not leads:
                    leads = self._reactor.try_lead()
                    if not leads:
                        self._idle.append(me)
            if work is not None:
                if leads:
                    # As what a leader reads: if it takes long, somebody else reads meanwhile.
                    leads = self._reactor.run_leading(work)
                else:
                    work.run()
                if not leads:
                    # What it left for a flush by the leader may have come after the new one's last.
                    self._reactor.flush()
            elif leads:
                leads = self._reactor.lead(self)
                if not leads:
                    self._reactor.flush()
            else:
                me.wake.acquire()
                if me.leads:
                    me.leads, leads = False, True
                    self._reactor.take_over()
        if leads:
            self._reactor.stop_leading()


class _Idle:
    """A thread that waits for work."""

    __slots__ = ("leads", "wake")

    def __init__(self) -> None:
        self.wake = threading.Lock()
        self.wake.acquire()
        self.leads = False


class LoopThread:
    """An event loop in a thread of its own, for `async def` methods. Started when first needed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, make: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        """Runs a coroutine; what is returned cancels it."""
        loop = self._started()
        begun: list[asyncio.Task[None]] = []

        async def run() -> None:
            task = asyncio.current_task()
            assert task is not None
            begun.append(task)
            await make()

        def start() -> None:
            task = loop.create_task(run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        loop.call_soon_threadsafe(start, context=contextvars.Context())
        # One that has not begun is not cancelled: it would never learn of it, and ends itself when it begins.
        return lambda: self._call(lambda: [task.cancel() for task in begun])

    @property
    def thread(self) -> threading.Thread | None:
        """Where it runs; `None` before."""
        return self._thread

    def call(self, function: Callable[[], object]) -> None:
        """Runs a function there."""
        self._call(function)

    def close(self, timeout: float) -> None:
        """Cancels what runs, and ends the thread."""
        with self._lock:
            loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        self._call(lambda: loop.create_task(self._finish()))
        if thread is not threading.current_thread():
            thread.join(timeout)

    def _call(self, function: Callable[[], object]) -> None:
        try:
            self._started().call_soon_threadsafe(function)
        except RuntimeError:  # it has ended
            pass

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._run, args=(loop,), name=self._name, daemon=True)
                self._thread.start()
            return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    async def _finish(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        asyncio.get_running_loop().stop()
