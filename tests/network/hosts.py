"""Hosts of their own on this machine, network namespaces on one switch, and what can go wrong between them.

Nothing here has a name outside: namespaces are held by descriptors, devices exist in them alone, and so do addresses.
Runs beside each other cannot meet, and the kernel removes everything once descriptors and programs are gone.
"""

from __future__ import annotations

import ctypes
import functools
import heapq
import os
import random
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Self

# Reserved for measurements between devices (RFC 2544): nobody's real network.
_PREFIX = "198.18.0"
_NOBODY = "02:00:00:00:00:00"
"""A hardware address that no host has: a frame to it is heard by none."""
_CLONE_NEWNET = 0x40000000
_COMMAND_S = 10.0
_libc = ctypes.CDLL(None, use_errno=True)

# linux/if_packet.h, linux/if_ether.h
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING, _ETH_P_ALL = 263, 15, 23, 3


@functools.cache
def why_not() -> str:
    """Why there can be no such hosts here; empty when there can."""
    if shutil.which("ip") is None:
        return "needs the ip command (Debian: iproute2)"
    try:
        with Network() as network, network.host("probe"):
            return ""
    except OSError as error:
        return f"needs network namespaces: {error}"
    except subprocess.CalledProcessError as error:
        return f"needs bridges and veth devices: {error.stderr.strip()}"


@dataclass(frozen=True, slots=True)
class Host:
    """One host; `namespace` is the descriptor that keeps its network."""

    name: str
    address: str
    namespace: int


class Network:
    """A switch and hosts on it. Root only."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._last = 0
        self._relays: dict[str, _Relay] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._switch = stack.enter_context(_new_namespace())
            self._ip(
                self._switch, "link add name switch type bridge stp_state 0 forward_delay 0", "link set dev switch up"
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @contextmanager
    def host(self, name: str, *, address: str | None = None) -> Iterator[Host]:
        """A host for a while, its cable in the switch. It is gone with the last program that runs on it.

        Args:
            name: At most 11 letters, of this network alone.
            address: One that another host had before; `None`: a new one.
        """
        if address is None:
            self._last += 1
            address = f"{_PREFIX}.{self._last}"
        with _new_namespace() as namespace:
            host = Host(name, address, namespace)
            peer = f"peer name {name} netns /proc/{os.getpid()}/fd/{self._switch}"
            # Who has the address is known without asking: a host that takes over an address is reached at once.
            hardware = ":".join(f"{int(part):02x}" for part in ["2", "0", *address.split(".")])
            self._ip(
                host.namespace,
                f"link add name eth0 address {hardware} type veth {peer}",
                f"address add {address}/24 dev eth0",
                "link set dev lo up",
                "link set dev eth0 up",
            )
            self._ip(self._switch, f"link set dev {name} master switch", f"link set dev {name} up")
            yield host

    @contextmanager
    def at(self, host: Host) -> Iterator[None]:
        """The calling thread is on that host, and so are the threads and programs that it starts."""
        with _within(host.namespace):
            yield

    # Faults.

    def cut(self, host: Host) -> None:
        """Pulls the cable out of the switch."""
        self._ip(self._switch, f"link set dev {host.name} down")

    def lose(self, source: Host, target: Host) -> None:
        """What the one sends to the other gets lost, silently; the other direction works."""
        self._ip(source.namespace, f"neighbour replace {target.address} lladdr {_NOBODY} dev eth0 nud permanent")

    def slow_down(self, host: Host, *, delay_s: float, loss: float, seed: int = 0) -> None:
        """Each frame takes `delay_s` longer in each direction, or is lost with that probability."""
        inner, outer = f"{host.name}-in", f"{host.name}-out"
        self._ip(
            self._switch,
            f"link set dev {host.name} nomaster",
            f"link add name {inner} type veth peer name {outer}",
            f"link set dev {outer} master switch",
            f"link set dev {outer} up",
            f"link set dev {inner} up",
        )
        with _within(self._switch):
            relay = _Relay(host.name, inner, delay_s, loss, random.Random(seed))
        self._relays[host.name] = relay
        self._stack.callback(relay.close)

    def lost_of(self, host: Host) -> int:
        """How many frames of a slowed down host have been lost."""
        return self._relays[host.name].lost

    def heal(self, host: Host) -> None:
        """No fault any more of those that `host` was given; of `lose`, as the source."""
        relay = self._relays.pop(host.name, None)
        if relay is not None:
            relay.close()
            self._ip(self._switch, f"link delete dev {host.name}-in", f"link set dev {host.name} master switch")
        self._ip(self._switch, f"link set dev {host.name} up")
        self._ip(host.namespace, "neighbour flush dev eth0 nud permanent")

    def _ip(self, namespace: int, *commands: str) -> None:
        with _within(namespace):
            lines = "".join(f"{command}\n" for command in commands)
            subprocess.run(
                ["ip", "-batch", "-"], input=lines, text=True, capture_output=True, check=True, timeout=_COMMAND_S
            )


class _Relay:
    """Copies frames between two devices of the calling thread's namespace, late or not at all."""

    def __init__(self, left: str, right: str, delay_s: float, loss: float, chance: random.Random) -> None:
        self._delay_s, self._loss, self._chance = delay_s, loss, chance
        self.lost = 0
        sockets = [self._open(device) for device in (left, right)]
        self._other = dict(zip(sockets, reversed(sockets), strict=True))
        self._ended, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="test-relay")
        self._thread.start()

    @staticmethod
    def _open(device: str) -> socket.socket:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        # With each frame comes what its sender left for the hardware to do, checksums above all, and goes along.
        opened.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        opened.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        opened.bind((device, 0))
        return opened

    def _run(self) -> None:
        waiting: list[tuple[float, int, socket.socket, bytes]] = []
        number = 0
        while True:
            pause_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            ready, _, _ = select.select([*self._other, self._ended], [], [], pause_s)
            if self._ended in ready:
                return
            for source in ready:
                frame = source.recv(1 << 17)
                if self._chance.random() < self._loss:
                    self.lost += 1
                else:
                    number += 1
                    heapq.heappush(waiting, (time.monotonic() + self._delay_s, number, self._other[source], frame))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, target, frame = heapq.heappop(waiting)
                try:
                    target.send(frame)
                except OSError:
                    pass  # a cable that is out loses it

    def close(self) -> None:
        """Repeating is harmless."""
        self._end.close()
        self._thread.join()
        for each in (*self._other, self._ended):
            each.close()


@contextmanager
def _new_namespace() -> Iterator[int]:
    """Its descriptor."""
    with _own_namespace():
        if _libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield namespace
    finally:
        os.close(namespace)


@contextmanager
def _within(namespace: int) -> Iterator[None]:
    with _own_namespace():
        _enter(namespace)
        yield


@contextmanager
def _own_namespace() -> Iterator[None]:
    """Brings the calling thread back to where it is."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _enter(own)
        os.close(own)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
