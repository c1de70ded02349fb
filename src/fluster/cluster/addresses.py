"""Which addresses an endpoint may have: one host that others can mean, one real port, nothing else."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

from fluster.cluster.refusal import refuse

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):(?P<port>[0-9]{1,5})")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
# Anything whose last part looks like a number is read as an IPv4 address by resolvers: "2852039166", "0x7f.1".
_NUMERIC = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
METADATA_HOSTS = frozenset({"metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"})
"""Names by which clouds serve credentials to a machine."""
METADATA_ADDRESSES = frozenset({"169.254.169.254", "fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192"})
"""Addresses of the same of AWS, GCP, Azure (169.254.169.254, with their IPv6 forms), Alibaba and Oracle."""


def check_endpoint_address(value: object) -> str:
    """An endpoint's "host:port" (an IPv6 host in brackets) that a peer could call.

    Raises:
        ValueError: It is something else: no port, a URL, credentials, or a host that means another thing on each
            machine (unspecified, link-local, multicast) or a cloud's metadata service.
    """
    parse_endpoint_address(value)
    return str(value)


def parse_endpoint_address(value: object) -> tuple[str, int]:
    """Host (an IPv6 one without brackets) and port; refuses what `check_endpoint_address` does."""
    found = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise refuse("an endpoint's address", "'host:port', without scheme, user or path", value)
    port = int(found["port"])
    if not 1 <= port <= 65_535:
        raise refuse("an endpoint's port", "from 1 to 65535", port)
    host = found["host"].strip("[]")
    reason = _unusable(host, bracketed=found["host"].startswith("["))
    if reason:
        raise refuse("an endpoint's host", f"one that others can reach, and this is {reason}", value)
    return host, port


def _unusable(host: str, *, bracketed: bool) -> str | None:
    """Why a host cannot be an endpoint's; `None` when it can."""
    try:
        ip = ip_address(host)
    except ValueError:
        return "not an IPv6 address" if bracketed else _unusable_name(host.rstrip(".").lower())
    if bracketed != isinstance(ip, IPv6Address):
        return "not the way to write this address"
    return _unusable_ip(getattr(ip, "ipv4_mapped", None) or ip)


def _unusable_name(name: str) -> str | None:
    labels = name.split(".")
    if not all(_LABEL.fullmatch(label) for label in labels):
        return "not a host name"
    if _NUMERIC.fullmatch(labels[-1]):
        return "not an IPv4 address in its usual form"
    return "a cloud's metadata service" if name in METADATA_HOSTS else None


def _unusable_ip(ip: IPv4Address | IPv6Address) -> str | None:
    if str(ip) in METADATA_ADDRESSES:
        return "a cloud's metadata service"
    if ip.is_unspecified or (isinstance(ip, IPv4Address) and int(ip) < 2**24):
        return "the unspecified address"
    if ip.is_link_local:
        return "a link-local address"
    if ip.is_multicast or (isinstance(ip, IPv4Address) and ip.is_reserved):
        return "a multicast or reserved address"
    return None
