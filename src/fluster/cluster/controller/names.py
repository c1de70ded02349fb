"""The names and addresses by which others may reach this machine."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

_SIOCGIFADDR = 0x8915  # netdevice(7)
_DOCUMENTATION = "192.0.2.1"
"""RFC 5737: nobody's. The route to it is the one to the rest of the world."""


def is_wildcard(host: str) -> bool:
    """Whether what is bound to this host listens on all addresses."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return not host


def reachable_host(host: str) -> str:
    """What others call a server bound to this host: the host, or this machine's address where it is bound to all."""
    if not is_wildcard(host):
        return host
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((_DOCUMENTATION, 9))  # of a datagram socket: looks the route up, sends nothing
        return str(probe.getsockname()[0])
    return next((each for each in _interface_addresses() if not each.startswith("127.")), "127.0.0.1")


def names_here(host: str) -> list[str]:
    """Names and addresses for the certificate of a server bound to this host."""
    own = [host] if not is_wildcard(host) else [reachable_host(host), *_interface_addresses()]
    names = [*own, socket.gethostname(), socket.getfqdn(), "localhost", "127.0.0.1", "::1"]
    return list(dict.fromkeys(name.lower() for name in names if _is_name(name)))


def _is_name(name: str) -> bool:
    """Whether a certificate can hold it."""
    return bool(name) and name.isascii() and len(name) <= 253 and not set(name) - _NAME_CHARACTERS


_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:")


def _interface_addresses() -> Iterator[str]:
    """The IPv4 address of each interface, and the global IPv6 ones, where the kernel tells."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with suppress(OSError):
                yield socket.inet_ntoa(fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, request)[20:24])
    with suppress(OSError), open("/proc/net/if_inet6") as table:
        for line in table:
            address = ipaddress.IPv6Address(bytes.fromhex(line.split()[0]))
            if not address.is_link_local:
                yield str(address)
