"""Calls that come over HTTP: run where all calls of the actor run, and waited for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from fluster.actor.hosted import Hosted, Method, refused
from fluster.actor.lanes import LoopThread
from fluster.actor.types import CURRENT
from fluster.errors import ActorNotFound

_KEPT = 1_024
_KEPT_S = 60.0

Load = Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]
Dump = Callable[[Any], Any]


class _DirectCall:
    """One call; runs once, and any number of requests with its id wait for it."""

    def __init__(self, hosted: Hosted, method: Method, load: Load, dump: Dump) -> None:
        self._hosted = hosted
        self._method = method
        self._load: Load | None = load
        self._dump = dump
        self._value: Any = None
        self._error: BaseException | None = None
        self._done = threading.Event()
        self.ended_at: float | None = None

    def run(self) -> None:
        """In the actor's lane."""
        try:
            function, args, kwargs = self._prepared()
            self._value = self._dump(function(*args, **kwargs))
        except BaseException as error:
            self._error = error
        self._finish()

    async def run_async(self) -> None:
        """In the event loop."""
        try:
            function, args, kwargs = self._prepared()
            self._value = self._dump(await function(*args, **kwargs))
        except asyncio.CancelledError as error:
            self._error = error
        except BaseException as error:
            self._error = error
        self._finish()

    def wait(self) -> Any:
        """What it returned or raised."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._value

    def _prepared(self) -> tuple[Callable[..., Any], Any, Any]:
        load, self._load = self._load, None
        assert load is not None
        if self._hosted.gone:
            raise ActorNotFound(self._hosted.name, f"actor {self._hosted.name!r} was unregistered")
        args, kwargs = load()
        if self._method.takes_context:
            args = (self._hosted.context, *args)
        CURRENT.set(self._hosted.context)
        return getattr(self._hosted.actor, self._method.name), args, kwargs

    def _finish(self) -> None:
        self.ended_at = time.monotonic()
        self._done.set()


class DirectCalls:
    """The calls of one server that came over HTTP, by their ids.

    Args:
        find: Gives the actor with an id or a name.
        loop: Where coroutines run.
    """

    def __init__(self, find: Callable[[str, str], Hosted], loop: LoopThread) -> None:
        self._find = find
        self._loop = loop
        self._lock = threading.Lock()
        self._calls: OrderedDict[str, _DirectCall] = OrderedDict()

    @property
    def busy(self) -> bool:
        """Whether one waits or runs."""
        with self._lock:
            return any(call.ended_at is None for call in self._calls.values())

    def call(self, actor: str, method: str, call_id: str, load: Load, dump: Dump) -> Any:
        """`dump` of what the call returned, or what it raised; one with a known id is not run again.

        Raises:
            ActorNotFound: There is no such actor.
            AttributeError: The method may not be called; marked as `refused`.
        """
        with self._lock:
            call = self._calls.get(call_id)
        if call is None:
            hosted = self._find(actor, actor)
            found = hosted.method(method)
            if found.streams:
                raise refused(f"{method} gives a stream, which is not served over HTTP")
            with self._lock:
                fresh = call_id not in self._calls
                call = self._calls.setdefault(call_id, _DirectCall(hosted, found, load, dump))
            if fresh:
                self._begin(hosted, found, call)
        return call.wait()

    def tidy(self) -> None:
        """Forgets what ended long ago, and the oldest of too many."""
        now = time.monotonic()
        with self._lock:
            for call_id, call in list(self._calls.items()):
                if call.ended_at is not None and (now - call.ended_at > _KEPT_S or len(self._calls) > _KEPT):
                    del self._calls[call_id]

    def _begin(self, hosted: Hosted, method: Method, call: _DirectCall) -> None:
        if len(self._calls) > 2 * _KEPT:
            self.tidy()
        if method.in_loop:
            self._loop.spawn(call.run_async)
        else:
            hosted.lane.push(call)
