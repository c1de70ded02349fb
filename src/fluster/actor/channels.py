"""The channels of one resolver: one for each server that it met."""

from __future__ import annotations

import os
import threading
import weakref

from fluster.actor.transport import Channel
from fluster.actor.types import ActorEndpoint


class Channels:
    """Channels by server. A forked child begins without any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channels: dict[str, Channel] = {}
        self._closed = False
        _ALL.add(self)

    def to(self, endpoint: ActorEndpoint) -> Channel:
        """The channel to an actor's server.

        Raises:
            RuntimeError: They were closed.
        """
        channel = self._channels.get(endpoint.access_key)
        return channel if channel is not None else self._made(endpoint)

    def close(self) -> None:
        """Ends all; calls without a reply fail. Repeating is harmless."""
        with self._lock:
            self._closed = True
            channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.close()

    def leave_to_parent(self) -> None:
        """In a forked child: the lock may be held by a thread that was not forked."""
        self._lock = threading.Lock()
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.abandon()

    def _made(self, endpoint: ActorEndpoint) -> Channel:
        with self._lock:
            if self._closed:
                raise RuntimeError("the resolver, or its cluster, was closed")
            channel = self._channels.get(endpoint.access_key)
            if channel is not None:
                return channel
            spent = [each for each in self._channels.values() if each.spent]
            self._channels = {key: each for key, each in self._channels.items() if each not in spent}
            channel = self._channels[endpoint.access_key] = Channel(endpoint.address, endpoint.access_key)
        for each in spent:
            each.close()
        return channel


_ALL: weakref.WeakSet[Channels] = weakref.WeakSet()


def _in_child() -> None:
    for channels in list(_ALL):
        channels.leave_to_parent()


os.register_at_fork(after_in_child=_in_child)
