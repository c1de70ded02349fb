"""Lets callers in: listens on TCP and on a Unix socket, tells protocols apart, and demands proof of the key."""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable

from fluster.actor.link import let_go, receive_exactly
from fluster.actor.protocol import (
    ANSWER,
    CHALLENGE,
    HELLO,
    MAX_RESUMED,
    NONCE_BYTES,
    OPENING,
    VERDICT,
    VERSION,
    Hello,
    ProtocolError,
    Verdict,
    caller_proof,
    server_proof,
    socket_name,
)
from fluster.actor.tls import HELLO_BYTE, AnySocket, TlsSocket

_log = logging.getLogger(__name__)

GREETING_S = 10.0
"""Who has not proven the key by then is sent away."""
MAX_STRANGERS = 64
"""Callers that have not proven the key yet; when there are more, the oldest is sent away."""
MAX_HTTP = 128
"""Connections that speak HTTP; each has a thread."""
_BACKLOG = 512
_TIDY_EVERY_S = 5.0


class Doors:
    """The listening sockets of one server.

    Args:
        host: Where TCP is listened on.
        port: 0: any.
        access_key: Of the server.
        admit: Takes a caller that proved the key: socket, session, and the calls it goes on with, `None` for a new
            session; gives which of these are known, `None` if the session is not, and what is to be done once the
            caller was told.
        tidy: Called every few seconds.
        serve_http: Takes a connection that speaks HTTP, with its first bytes.
        context: What comes over TCP is encrypted with; `None`: it is not.
    """

    def __init__(
        self,
        host: str,
        port: int,
        access_key: str,
        admit: Callable[[AnySocket, bytes, list[int] | None], tuple[list[bool] | None, Callable[[], None]]],
        serve_http: Callable[[AnySocket, bytes], None],
        tidy: Callable[[], None],
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._context = context
        self._access_key = access_key
        self._admit = admit
        self._serve_http = serve_http
        self._tidy = tidy
        self._listeners = [_listen_tcp(host, port)]
        self.port: int = self._listeners[0].getsockname()[1]
        try:
            self._listeners += _listen_here(access_key)
        except BaseException:
            self._listeners[0].close()
            raise
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = False
        self._lock = threading.Lock()
        self._strangers: dict[socket.socket, None] = {}  # the oldest first
        self._browsers = threading.BoundedSemaphore(MAX_HTTP)
        self._greeters: set[threading.Thread] = set()
        self._thread = threading.Thread(target=self._accept_all, name="fluster-actor-doors", daemon=True)

    def open(self) -> None:
        """Lets callers in from now on; before, they wait."""
        self._thread.start()

    def close(self) -> None:
        """Lets nobody in any more."""
        self._closed = True
        os.eventfd_write(self._wake, 1)
        with self._lock:
            strangers, greeters = list(self._strangers), list(self._greeters)
        for stranger in strangers:
            _hang_up(stranger)
        if self._thread.ident is not None:
            self._thread.join()
        for listener in self._listeners:
            listener.close()
        for greeter in greeters:
            if greeter is not threading.current_thread():
                greeter.join(GREETING_S)
        os.close(self._wake)

    def abandon(self) -> None:
        """In a forked child: callers are the parent's."""
        for sock in (*self._listeners, *self._strangers):
            let_go(sock)

    def _accept_all(self) -> None:
        poll = select.poll()
        for descriptor in (self._wake, *(listener.fileno() for listener in self._listeners)):
            poll.register(descriptor, select.POLLIN)
        by_descriptor = {listener.fileno(): listener for listener in self._listeners}
        tidied_at = time.monotonic()
        while not self._closed:
            ready = poll.poll(_TIDY_EVERY_S * 1000)
            if time.monotonic() - tidied_at >= _TIDY_EVERY_S:
                self._tidy()
                tidied_at = time.monotonic()
            for descriptor, _ in ready:
                if descriptor in by_descriptor:
                    self._accept(by_descriptor[descriptor])

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                _log.warning("a caller could not be let in: %s", error)
                time.sleep(0.01)  # out of descriptors: not again at once
            return
        sock.setblocking(True)
        greeter = threading.Thread(target=self._greet, args=(sock,), name="fluster-actor-greeter", daemon=True)
        with self._lock:
            self._strangers[sock] = None
            self._greeters.add(greeter)
            oldest = next(iter(self._strangers)) if len(self._strangers) > MAX_STRANGERS else None
            if oldest is not None:
                del self._strangers[oldest]
        if oldest is not None:
            _hang_up(oldest)
        greeter.start()

    def _greet(self, accepted: socket.socket) -> None:
        """Tells protocols apart, and hands the connection on to those who know what to do with it."""
        keep = False
        sock: AnySocket = accepted
        try:
            sock.settimeout(GREETING_S)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._context is not None and accepted.family != socket.AF_UNIX:
                sock = self._encrypted(accepted, self._context)
            first = sock.recv(HELLO.size)
            if first[: len(OPENING)] == OPENING[: len(first)] and first:
                keep = self._challenge(sock, first)
            elif first and sock.family != socket.AF_UNIX:
                self._known(accepted)
                if self._browsers.acquire(blocking=False):
                    try:
                        keep = True
                        self._serve_http(sock, first)
                    finally:
                        self._browsers.release()
        except OSError as error:
            _log.debug("a caller went away or was sent away: %s", error)
        except Exception:
            _log.exception("a caller could not be served")
        finally:
            self._known(accepted)
            if not keep:
                sock.close()
            with self._lock:
                self._greeters.discard(threading.current_thread())

    def _encrypted(self, accepted: socket.socket, context: ssl.SSLContext) -> AnySocket:
        """The same connection after its handshake. Without one only HTTP is served, and that on loopback alone."""
        first = accepted.recv(len(OPENING), socket.MSG_PEEK)
        if first[:1] == HELLO_BYTE:
            encrypted = TlsSocket(accepted, context, server_side=True)
            encrypted.shake_hands(time.monotonic() + GREETING_S)
            accepted.settimeout(GREETING_S)
            return encrypted
        if first[: len(OPENING)] == OPENING[: len(first)]:
            raise ConnectionRefusedError("a caller came without encryption")
        return accepted

    def _known(self, sock: socket.socket) -> None:
        """It is no stranger any more."""
        with self._lock:
            self._strangers.pop(sock, None)

    def _challenge(self, sock: AnySocket, first: bytes) -> bool:
        """Whether the caller has the key, and was let in."""
        until = time.monotonic() + GREETING_S
        first += receive_exactly(sock, HELLO.size - len(first), until)
        nonce = secrets.token_bytes(NONCE_BYTES)
        try:
            hello = Hello.from_bytes(first)
        except ProtocolError:
            sock.sendall(CHALLENGE.pack(VERSION, nonce, bytes(32)))
            return False
        sock.sendall(CHALLENGE.pack(VERSION, nonce, server_proof(self._access_key, hello, nonce)))
        proof, count = ANSWER.unpack(receive_exactly(sock, ANSWER.size, until))
        if not hmac.compare_digest(proof, caller_proof(self._access_key, hello, nonce)):
            sock.sendall(VERDICT.pack(Verdict.REFUSED))
            return False
        if count > MAX_RESUMED:
            return False
        open_calls = list(struct.unpack(f"<{count}Q", receive_exactly(sock, 8 * count, until)))
        known, go_on = self._admit(sock, hello.session, open_calls if hello.resumes else None)
        if known is None:
            sock.sendall(VERDICT.pack(Verdict.OPENED))
        else:
            sock.sendall(VERDICT.pack(Verdict.RESUMED) + bytes(known))
        go_on()
        return True


def _hang_up(sock: socket.socket) -> None:
    """Whoever reads it notices."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def _listen_tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    listener.setblocking(False)
    return listener


def _listen_here(access_key: str) -> list[socket.socket]:
    """The Unix socket that callers of this machine find by the key; none where there are no abstract ones."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(socket_name(access_key))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        return []
    return [listener]
