"""Which of this machine's addresses others use."""

from __future__ import annotations

import ipaddress
import socket

from fluster.rpc.connection import Address


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_towards(controller: str) -> str:
    """This machine's address on its way to the controller; loopback where the controller is on loopback."""
    address = Address.parse(controller)
    if is_loopback(address.host):
        return "127.0.0.1"
    try:
        family, _, _, _, target = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # of a datagram socket: looks the route up, sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


def free_port(host: str) -> int:
    """A port that was free a moment ago."""
    with socket.create_server((host, 0)) as probe:
        return int(probe.getsockname()[1])


def joined(host: str, port: int) -> str:
    """`host:port`, the host in brackets where it has colons itself."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
