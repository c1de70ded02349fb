"""A relay between a caller and a server that cuts connections where a test wants it."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

Plan = Iterator[tuple[int | None, int | None]]
"""For each connection after how many bytes it is cut: of those to the server, of those to the caller; `None`: not."""


class Cutter:
    """Relays TCP connections to a port of this machine until it is closed.

    Attributes:
        cuts: Connections that were cut.
        up: Bytes of the last connection to the server.
        down: Bytes of the last connection to the caller.
    """

    def __init__(self, port: int, plan: Plan, *, reset: bool = False) -> None:
        self.cuts = self.up = self.down = 0
        self._port = port
        self._plan = plan
        self._reset = reset
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._wake = os.eventfd(0)
        self._poll = select.poll()
        self._pairs: dict[int, _Pair] = {}
        self._thread = threading.Thread(target=self._run, name="test-cutter")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.eventfd_write(self._wake, 1)
        self._thread.join(20)
        os.close(self._wake)

    def _run(self) -> None:
        self._poll.register(self._wake, select.POLLIN)
        self._poll.register(self._listener, select.POLLIN)
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._wake:
                    for pair in set(self._pairs.values()):
                        self._close(pair)
                    self._listener.close()
                    return
                if descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor in self._pairs:
                    self._relay(self._pairs[descriptor], descriptor)

    def _accept(self) -> None:
        caller, _ = self._listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self._port))
        except OSError:
            caller.close()
            return
        pair = _Pair(caller, server, *next(self._plan, (None, None)))
        self.up = self.down = 0
        for sock in (caller, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._poll.register(sock, select.POLLIN)
            self._pairs[sock.fileno()] = pair
        if 0 in pair.left:
            self._cut(pair)

    def _relay(self, pair: _Pair, descriptor: int) -> None:
        upwards = descriptor == pair.caller.fileno()
        source, target = (pair.caller, pair.server) if upwards else (pair.server, pair.caller)
        left = pair.left[0 if upwards else 1]
        try:
            data = source.recv(256 << 10 if left is None else min(left, 256 << 10))
            # Counted first: whoever has them asks.
            if upwards:
                self.up += len(data)
            else:
                self.down += len(data)
            target.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._close(pair)
            return
        if left is not None:
            left -= len(data)
            pair.left[0 if upwards else 1] = left
            if left == 0:
                self._cut(pair)

    def _cut(self, pair: _Pair) -> None:
        self.cuts += 1
        if self._reset:
            for sock in (pair.caller, pair.server):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._close(pair)

    def _close(self, pair: _Pair) -> None:
        for sock in (pair.caller, pair.server):
            if self._pairs.pop(sock.fileno(), None) is not None:
                self._poll.unregister(sock)
                sock.close()


class _Pair:
    def __init__(self, caller: socket.socket, server: socket.socket, up: int | None, down: int | None) -> None:
        self.caller, self.server = caller, server
        self.left = [up, down]
