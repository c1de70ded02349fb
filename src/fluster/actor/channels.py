"""The channels of one resolver: one for each server that it met."""

from __future__ import annotations

import os
import threading

from fluster.actor.transport import Channel
from fluster.actor.types import ActorEndpoint


class Channels:
    """Channels by server. A forked child begins without any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channels: dict[str, Channel] = {}
        self._pid = os.getpid()
        self._closed = False

    def to(self, endpoint: ActorEndpoint) -> Channel:
        """The channel to an actor's server.

        Raises:
            RuntimeError: They were closed.
        """
        channel = self._channels.get(endpoint.access_key)
        if channel is not None and self._pid == _pid() and not channel.gone:
            return channel
        with self._lock:
            if self._pid != os.getpid():
                self._leave_to_parent()
            if self._closed:
                raise RuntimeError("the resolver, or its cluster, was closed")
            channel = self._channels.get(endpoint.access_key)
            if channel is None:
                self._channels = {key: each for key, each in self._channels.items() if not each.spent}
                channel = self._channels[endpoint.access_key] = Channel(endpoint.address, endpoint.access_key)
            return channel

    def close(self) -> None:
        """Ends all; calls without a reply fail. Repeating is harmless."""
        with self._lock:
            self._closed = True
            channels, self._channels = self._channels, {}
            mine = self._pid == os.getpid()
        for channel in channels.values():
            if mine:
                channel.close()
            else:
                channel.abandon()

    def _leave_to_parent(self) -> None:
        for channel in self._channels.values():
            channel.abandon()
        self._channels, self._pid = {}, os.getpid()


_own_pid = os.getpid()


def _pid() -> int:
    return _own_pid


def _in_child() -> None:
    global _own_pid
    _own_pid = os.getpid()


os.register_at_fork(after_in_child=_in_child)
