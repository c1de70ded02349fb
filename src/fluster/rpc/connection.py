"""Kept connections to one server: each call borrows one, threads share what is idle, a forked child shares nothing."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPResponse
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fluster.rpc.trust import Trust

# The server keeps idle connections for 75 s: a client that drops them sooner never writes into a closing one.
IDLE_S = 60.0
CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str
    port: int
    tls: bool = False

    @classmethod
    def parse(cls, text: str) -> Address:
        """``http://host:port``, ``https://host:port`` or ``host:port`` (plain HTTP).

        Raises:
            ValueError: for anything else.
        """
        url = urlsplit(text if "://" in text else f"http://{text}")
        try:
            port = url.port
        except ValueError:
            port = 0
        if url.scheme not in ("http", "https") or not url.hostname or port == 0 or url.path.strip("/"):
            raise ValueError(f"not an address: {text!r}; it looks like 'http://HOST:PORT' or 'https://HOST:PORT'")
        if url.username is not None or url.query or url.fragment:
            raise ValueError("an address has no user, query or fragment; a token goes into `token=` or FLUSTER_TOKEN")
        return cls(url.hostname, port or (443 if url.scheme == "https" else 80), url.scheme == "https")

    @property
    def authority(self) -> str:
        """``host:port`` as the Host header has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}"


class Connection:
    """One socket, used by one call at a time."""

    __slots__ = ("pid", "reused", "sock", "used_at")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.pid = os.getpid()
        self.reused = False
        self.used_at = 0.0

    def request(self, head: bytes, body: bytes, *, timeout_s: float | None) -> HTTPResponse:
        """Send a POST and read the head of its response. Each read and write may take up to `timeout_s`."""
        self.sock.settimeout(timeout_s)
        self.sock.sendall(head + body)
        response = HTTPResponse(self.sock, method="POST")
        try:
            response.begin()
        except BaseException:
            response.close()
            raise
        return response

    def own(self) -> bool:
        """Whether this process made it; a forked child's copy must not be used."""
        return self.pid == os.getpid()

    def close(self) -> None:
        """Give the socket back. In a forked child its parent's connection is left alone."""
        if self.own():
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
            self.sock.close()
        elif self.sock.fileno() >= 0:
            os.close(self.sock.detach())  # this process's copy only; close() would wait for readers of the parent's


@dataclass(slots=True)
class _Connections:
    """Those of one process."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    idle: list[Connection] = field(default_factory=list)  # last used last
    busy: set[Connection] = field(default_factory=set)


class ConnectionPool:
    """Connections to one server, safe to use from threads and after a fork."""

    def __init__(self, address: Address, trust: Trust | None = None) -> None:
        self.address = address
        self.closed = False
        self._trust = trust
        # By process id: a child must neither use its parent's sockets nor wait for a lock that another thread held.
        self._by_pid: dict[int, _Connections] = {}

    def acquire(self, *, fresh: bool = False) -> Connection:
        """An idle connection (never with `fresh`), else a new one; `release` or `discard` it.

        Raises:
            OSError: the server cannot be reached.
            RuntimeError: the pool is closed.
        """
        here = self._here()
        if self.closed:
            raise RuntimeError("this client is closed")
        with here.lock:
            connection = None if fresh else self._pop_idle(here)
            if connection is not None:
                connection.reused = True
                here.busy.add(connection)
        if connection is None:
            connection = Connection(self._connect())
            with here.lock:
                here.busy.add(connection)
        if self.closed:  # meanwhile, and close() may not have seen this one
            self.discard(connection)
            raise RuntimeError("this client is closed")
        return connection

    def release(self, connection: Connection) -> None:
        """Keep it for the next call: its response has been read to the end."""
        here = self._here()
        connection.used_at = time.monotonic()
        with here.lock:
            here.busy.discard(connection)
            if not self.closed and connection.own():
                here.idle.append(connection)
                expired = self._expired(here)
            else:
                expired = [connection]
        _close_all(expired)

    def discard(self, connection: Connection) -> None:
        """Close it: it is broken, or its response was not read to the end."""
        here = self._here()
        with here.lock:
            here.busy.discard(connection)
        connection.close()

    def close_idle(self) -> None:
        """Close those that no call uses."""
        here = self._here()
        with here.lock:
            idle, here.idle = here.idle, []
        _close_all(idle)

    def close(self) -> None:
        """Close those of all threads; a call that is under way fails."""
        self.closed = True
        self.close_idle()
        here = self._here()
        with here.lock:
            busy = list(here.busy)
        for connection in busy:  # its thread wakes up and closes it
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _here(self) -> _Connections:
        pid = os.getpid()
        here = self._by_pid.get(pid)
        if here is None:
            here = self._by_pid.setdefault(pid, _Connections())
            for other in [other for other in self._by_pid if other != pid]:
                inherited = self._by_pid.pop(other, None)
                if inherited is not None:
                    _close_all([*inherited.idle, *inherited.busy])
        return here

    def _pop_idle(self, here: _Connections) -> Connection | None:
        now = time.monotonic()
        while here.idle:
            connection = here.idle.pop()
            if now - connection.used_at < IDLE_S:
                return connection
            connection.close()
        return None

    def _expired(self, here: _Connections) -> list[Connection]:
        now = time.monotonic()
        count = next((i for i, c in enumerate(here.idle) if now - c.used_at < IDLE_S), len(here.idle))
        expired, here.idle = here.idle[:count], here.idle[count:]
        return expired

    def _connect(self) -> socket.socket:
        address = self.address
        try:
            sock = socket.create_connection((address.host, address.port), timeout=CONNECT_TIMEOUT_S)
        except TimeoutError as error:
            raise ConnectionError(f"no connection within {CONNECT_TIMEOUT_S:g} s") from error
        try:
            _configure(sock)
            return self._wrap(sock) if address.tls else sock
        except BaseException:
            sock.close()
            raise

    def _wrap(self, sock: socket.socket) -> socket.socket:
        if self._trust is None:
            from fluster.rpc.trust import Trust

            self._trust = Trust()
        return self._trust.context(self.address).wrap_socket(sock, server_hostname=self.address.host)


def _configure(sock: socket.socket) -> None:
    """No waiting for more to send, and a peer that vanished without a word is noticed within a minute."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _close_all(connections: Iterable[Connection]) -> None:
    for connection in connections:
        connection.close()
