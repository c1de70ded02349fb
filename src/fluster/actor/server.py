"""`ActorServer`: hosts actors, publishes them under their names, and serves calls of their methods."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from fluster.actor.direct import DirectCalls
from fluster.actor.doors import Doors
from fluster.actor.frames import small_frame
from fluster.actor.hosted import Hosted, Method
from fluster.actor.lanes import Lane, LoopThread
from fluster.actor.memory import Received
from fluster.actor.own import OWN_SERVERS
from fluster.actor.peers import Peer
from fluster.actor.protocol import DEFAULT_MAX_MESSAGE_BYTES, Kind, bearer_of, parse_target
from fluster.actor.reactor import Reactor
from fluster.actor.resolver import ClusterResolver, FixedResolver, Resolver
from fluster.actor.sessions import Session
from fluster.actor.tls import AnySocket, server_context
from fluster.actor.types import ActorContext, ActorId
from fluster.cluster.context import TaskContext
from fluster.cluster.validation import check_int, check_name
from fluster.errors import ActorNotFound, FlusterError
from fluster.rpc.trust import pinned

if TYPE_CHECKING:
    from fluster.cluster.client import Cluster

_log = logging.getLogger(__name__)

SESSION_KEPT_S: Final = 15.0
"""A caller without a connection that does not come back by then has given up before."""
_POLL_S = 0.005
_JOIN_S = 5.0
_ANYWHERE = ("0.0.0.0", "::", "")


class ActorServer:
    """Hosts actors in this process.

    Args:
        cluster: Where their names are registered; `None`: nowhere, callers then use a `FixedResolver`.
        host: Address to listen on; default: inside a job where other tasks reach it, else 127.0.0.1.
        port: 0: any.
        max_concurrency: How many synchronous methods of one actor run at a time. With 1 they run one after the other,
            always on the same thread.
        max_message_bytes: Of a call's arguments, and of its result.
    """

    def __init__(
        self,
        cluster: Cluster | None,
        host: str | None = None,
        port: int = 0,
        max_concurrency: int = 1,
        *,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        self._cluster = cluster
        self._task = TaskContext.from_environment()
        self._host = host if host is not None else self._task.advertise_host if self._task is not None else "127.0.0.1"
        self._port = check_int(port, "port", low=0, high=65_535)
        self._threads = check_int(max_concurrency, "max_concurrency", low=1, high=4_096)
        self._limit = max_message_bytes
        self._access_key, self._tls = self._identity()
        self._lock = threading.RLock()
        self._doors: Doors | None = None
        self._reactor = Reactor()
        self._loop = LoopThread("fluster-actor-loop")
        self._received = Received()
        self._direct = DirectCalls(self._find, self._loop)
        self._names: dict[str, Hosted] = {}
        self._ids: dict[str, Hosted] = {}
        self._retired: set[str] = set()
        self._targets: dict[bytes, tuple[Hosted, Method]] = {}
        self._lanes: list[Lane] = []
        self._sessions: dict[bytes, Session] = {}
        self._serving = False
        self._stopping = False
        self._closed = threading.Event()
        self._wanted_end = threading.Event()
        self._context: ActorContext | None = None
        _ALL.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    @property
    def address(self) -> str:
        """``host:port`` where callers reach it."""
        port = self._bound().port
        host = self._host
        if host in _ANYWHERE:
            host = self._task.advertise_host if self._task is not None else "127.0.0.1"
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def access_key(self) -> str:
        """Proves this server to its callers and them to it; lookups of the namespace get it."""
        return self._access_key

    @property
    def bearer(self) -> str:
        """What a caller over HTTP presents as ``Authorization: Bearer …``."""
        return bearer_of(self._access_key)

    def register(self, name: str, actor: object, metadata: Mapping[str, str] | None = None) -> ActorId:
        """Hosts an object under a name, which actors of other servers may share; callers wait until it is served.

        Args:
            name: What callers look up.
            actor: Its public methods may be called. One whose first parameter is named ``ctx``, or annotated
                `ActorContext`, gets the context.
            metadata: Told to whoever looks it up.

        Raises:
            ValueError: The name breaks a rule, or this server has an actor of that name.
            TypeError: `actor` is a class.
        """
        check_name(name, "an actor's name")
        if isinstance(actor, type):
            raise TypeError(f"register an instance of {actor.__qualname__}, not the class itself")
        with self._lock:
            if self._stopping:
                raise RuntimeError("the server was shut down")
            address = self.address
            if name in self._names:
                raise ValueError(f"this server has an actor {name!r} already; several servers may share a name")
            lane = Lane(f"actor-{name}", self._threads, self._reactor)
            hosted = Hosted(actor, name, lane, self._context_of_calls())
            self._names[name] = hosted
            self._lanes.append(lane)
        try:
            hosted.actor_id = self._publish(name, address, metadata)
        except BaseException:
            with self._lock:
                del self._names[name]
                self._lanes.remove(lane)
            raise
        with self._lock:
            self._ids[hosted.actor_id] = hosted
            if self._serving:
                lane.start()
        return hosted.actor_id

    def unregister(self, name: str) -> None:
        """Withdraws an actor; calls of it that run go on, those that wait are refused.

        Raises:
            ActorNotFound: This server has none of that name.
        """
        with self._lock:
            hosted = self._names.pop(name, None)
            if hosted is None:
                raise ActorNotFound(name, f"this server has no actor {name!r}")
            hosted.gone = True
            self._ids.pop(hosted.actor_id, None)
            self._retired.add(hosted.actor_id)
            self._targets.clear()
            self._lanes.remove(hosted.lane)
        hosted.lane.close()
        self._withdraw(hosted)

    def serve(self) -> None:
        """Serves until `shutdown`; on the main thread of a job also until SIGTERM, which ends it cleanly."""
        self.serve_background()
        restore = self._end_on_sigterm()
        try:
            self._wanted_end.wait()
        finally:
            restore()
            self.shutdown()
        self._closed.wait()

    def serve_background(self) -> None:
        """Serves in threads of its own; returns at once. Repeating it is harmless."""
        with self._lock:
            if self._stopping:
                raise RuntimeError("the server was shut down")
            doors = self._bound()
            if self._serving:
                return
            self._serving = True
            self._reactor.start()
            for lane in self._lanes:
                lane.start()
            doors.open()

    def shutdown(self, grace_period: float = 5.0) -> None:
        """Withdraws all actors, lets calls that run come to their end, and stops serving. Repeating is harmless.

        Args:
            grace_period: Seconds for calls that run; then their callers get `ActorUnavailable`.
        """
        with self._lock:
            first, self._stopping = not self._stopping, True
        self._wanted_end.set()
        if not first:
            if not self._is_own_thread():
                self._closed.wait()
            return
        if self._is_own_thread():
            # A method of an actor ends its own server: that it returns is what is waited for.
            threading.Thread(target=self._shut_down, args=(grace_period,), name="fluster-actor-shutdown").start()
        else:
            self._shut_down(grace_period)

    def _shut_down(self, grace_period: float) -> None:
        try:
            self._withdraw_all()
            if self._serving:
                for peer in self._reactor.peers:
                    peer.send_small(small_frame(Kind.BYE))
                self._wait_for_calls(time.monotonic() + grace_period)
            self._close()
        finally:
            self._closed.set()

    def _is_own_thread(self) -> bool:
        me = threading.current_thread()
        return me is self._loop.thread or any(me in lane.threads for lane in list(self._lanes))

    def _withdraw_all(self) -> None:
        with self._lock:
            hosted = list(self._names.values())
            self._names.clear()
            for each in hosted:
                each.gone = True
                self._ids.pop(each.actor_id, None)
                self._retired.add(each.actor_id)
            self._targets.clear()
        for each in hosted:
            self._withdraw(each)

    def _wait_for_calls(self, until: float) -> None:
        while time.monotonic() < until and (
            self._direct.busy
            or any(session.busy for session in list(self._sessions.values()))
            or any(peer.unsent for peer in self._reactor.peers)
        ):
            time.sleep(_POLL_S)

    def _close(self) -> None:
        if self._doors is not None:
            OWN_SERVERS.pop(self.address, None)
            self._doors.close()
        self._reactor.close()
        for lane in self._lanes:
            lane.close()
        for session in list(self._sessions.values()):
            session.forget()
        self._loop.close(_JOIN_S)
        if self._serving:
            for lane in self._lanes:
                lane.join(_JOIN_S if not lane.has_work else 0.0)
        self._reactor.join(_JOIN_S)

    def _identity(self) -> tuple[str, ssl.SSLContext | None]:
        """The key by which both ends know each other, and what is encrypted with the certificate that it names."""
        key = secrets.token_hex(32)
        file = self._task.certificate_file if self._task is not None else None
        if file is None:
            return key, None
        context, pin = server_context(file)
        return pinned(key, pin), context

    def _bound(self) -> Doors:
        with self._lock:
            if self._doors is None:
                if self._stopping:
                    raise RuntimeError("the server was shut down")
                self._doors = Doors(
                    self._host,
                    self._port,
                    self._access_key,
                    self._admit,
                    self._serve_http,
                    self._tidy,
                    self._tls,
                )
                OWN_SERVERS[self.address] = self._access_key
            return self._doors

    def _publish(self, name: str, address: str, metadata: Mapping[str, str] | None) -> ActorId:
        if self._cluster is None:
            return ActorId(f"actor-{secrets.token_hex(8)}")
        endpoint = self._cluster.register_endpoint(name, address, None, metadata, access_key=self._access_key)
        return ActorId(endpoint.endpoint_id)

    def _withdraw(self, hosted: Hosted) -> None:
        if self._cluster is None or not hosted.actor_id:
            return
        try:
            self._cluster.unregister_endpoint(hosted.actor_id)
        except (FlusterError, TimeoutError, RuntimeError) as error:
            # Its lease, or its job, ends it.
            _log.warning("actor %r could not be unregistered: %s", hosted.name, error)

    def _context_of_calls(self) -> ActorContext:
        if self._context is None:
            resolver: Resolver
            if self._cluster is None:
                resolver = FixedResolver({})
                namespace = ""
            else:
                resolver, namespace = ClusterResolver(self._cluster), self._cluster.namespace
            job_id = self._task.job_id if self._task is not None else ""
            self._context = ActorContext(self._cluster, resolver, job_id, namespace)
        return self._context

    # Callers

    def _admit(
        self, sock: AnySocket, session_id: bytes, open_calls: list[int] | None
    ) -> tuple[list[bool] | None, Callable[[], None]]:
        with self._lock:
            session = self._sessions.get(session_id) if open_calls is not None else None
            known = session.resume(open_calls) if session is not None and open_calls is not None else None
            if session is None:
                stale = self._sessions.pop(session_id, None)
                session = Session(self._resolve, self._loop, threading.Lock(), self._limit)
                self._sessions[session_id] = session
                if stale is not None:
                    stale.forget()
            turn = session.turn

        def go_on(session: Session = session) -> None:
            peer = Peer(sock, session, self._reactor, self._received, self._limit)
            session.attach(peer, turn)
            self._reactor.add(peer)

        return known, go_on

    def _tidy(self) -> None:
        """Forgets callers that will not come back."""
        long_ago = time.monotonic() - SESSION_KEPT_S
        with self._lock:
            lost = [
                (session_id, session)
                for session_id, session in self._sessions.items()
                if session.silent_since is not None and session.silent_since < long_ago
            ]
            for session_id, _ in lost:
                del self._sessions[session_id]
        for _, session in lost:
            session.forget()
        self._direct.tidy()

    def _resolve(self, target: bytes) -> tuple[Hosted, Method]:
        known = self._targets.get(target)
        if known is None:
            actor_id, name, method = parse_target(target)
            hosted = self._find(actor_id, name)
            known = hosted, hosted.method(method)
            if len(self._targets) < 10_000:
                self._targets[target] = known
        return known

    def _find(self, actor_id: str, name: str) -> Hosted:
        """By the registration; a renewed one has another id, then by name."""
        with self._lock:
            hosted = self._ids.get(actor_id)
            if hosted is None and actor_id not in self._retired:
                hosted = self._names.get(name)
        if hosted is None:
            raise ActorNotFound(name, f"actor {name!r} is not registered with this server (any more)")
        return hosted

    def _serve_http(self, sock: AnySocket, first: bytes) -> None:
        from fluster.actor import http

        http.serve_connection(sock, first, _Http(self), stopping=lambda: self._stopping)

    def _end_on_sigterm(self) -> Callable[[], None]:
        """Has SIGTERM end this server, where that is asked for; what is returned restores what was before."""
        if self._task is None or threading.current_thread() is not threading.main_thread():
            return lambda: None

        def end(_number: int, _frame: FrameType | None) -> None:
            self._wanted_end.set()

        before = signal.signal(signal.SIGTERM, end)
        return lambda: (signal.signal(signal.SIGTERM, before), None)[1]

    def _leave_to_parent(self) -> None:
        """In a forked child, which has none of the threads: what it holds open would outlive the parent."""
        self._stopping = True
        self._closed.set()
        if self._doors is not None:
            self._doors.abandon()
        for peer in self._reactor.peers_at_fork:
            peer.abandon()


_ALL: weakref.WeakSet[ActorServer] = weakref.WeakSet()


def _in_child() -> None:
    for server in list(_ALL):
        server._leave_to_parent()
    OWN_SERVERS.clear()


os.register_at_fork(after_in_child=_in_child)


class _Http:
    """What HTTP connections need of the server."""

    def __init__(self, server: ActorServer) -> None:
        self._server = server

    @property
    def bearer(self) -> str:
        return self._server.bearer

    def call(
        self,
        actor: str,
        method: str,
        call_id: str,
        load: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]],
        dump: Callable[[Any], Any],
    ) -> Any:
        return self._server._direct.call(actor, method, call_id, load, dump)
