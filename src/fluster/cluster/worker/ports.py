"""TCP ports for attempts: free when they are chosen, and never given to two attempts at a time."""

from __future__ import annotations

import socket
from collections.abc import Iterable

_TRIES = 200


class Ports:
    """Which ports live attempts were given."""

    def __init__(self) -> None:
        self._taken: dict[int, str] = {}

    def choose(self, uid: str, avoid: Iterable[int] = ()) -> int:
        """A port for the attempt, none of `avoid`.

        Raises:
            OSError: The machine has no free port.
        """
        refused = {*avoid, *self._taken}
        held: list[socket.socket] = []
        try:
            for _ in range(_TRIES):
                # Those refused stay bound for the moment, so that the kernel offers others.
                held.append(probe := socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                probe.bind(("", 0))
                port: int = probe.getsockname()[1]
                if port not in refused:
                    self._taken[port] = uid
                    return port
        finally:
            for each in held:
                each.close()
        raise OSError("no free TCP port was found")

    def keep(self, uid: str, ports: Iterable[int]) -> None:
        """Notes what an adopted attempt was given."""
        self._taken.update((port, uid) for port in ports)

    def give_back(self, uid: str) -> None:
        """Frees all ports of an attempt."""
        self._taken = {port: owner for port, owner in self._taken.items() if owner != uid}
