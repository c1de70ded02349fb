"""TLS in front of a connection's protocol: it counts as a stranger from its first packet on, not from its handshake."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssl import SSLContext

    from fluster.rpc.edge import EdgeProtocol, Strangers

_log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 10.0
_SHUTDOWN_S = 1.0


class Handshake(asyncio.Protocol):
    """One connection until its handshake is done; then another protocol goes on with what is encrypted.

    `create_server` would count it only afterwards: silent connections could take all descriptors.

    Args:
        make: Gives the protocol that goes on.
        context: Of the server.
        strangers: Those that have not authenticated.
    """

    def __init__(self, make: Callable[[], EdgeProtocol], context: SSLContext, strangers: Strangers) -> None:
        self.transport: asyncio.Transport
        self._make = make
        self._context = context
        self._strangers = strangers
        self._received = bytearray()
        self._lost = False
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        self.transport = transport
        transport.pause_reading()  # what comes first is the handshake's
        if self._strangers.admit(self):
            self._task = asyncio.get_running_loop().create_task(self._shake_hands())

    def data_received(self, data: bytes) -> None:
        """What came with the end of the handshake is kept for who goes on."""
        self._received += data

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._lost = True
        self._strangers.leave(self)

    async def _shake_hands(self) -> None:
        try:
            encrypted = await asyncio.get_running_loop().start_tls(
                self.transport,
                self,
                self._context,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                ssl_shutdown_timeout=_SHUTDOWN_S,
            )
        except (OSError, EOFError) as error:  # includes ssl.SSLError and what is told of a connection that went
            _log.debug("a handshake failed: %s", error)
            self.transport.abort()
            return
        finally:
            self._strangers.leave(self)
        if encrypted is not None and not self._lost:
            self._go_on(encrypted)

    def _go_on(self, encrypted: asyncio.Transport) -> None:
        protocol = self._make()
        encrypted.set_protocol(protocol)
        protocol.connection_made(encrypted)
        if self._received:
            protocol.data_received(bytes(self._received))
