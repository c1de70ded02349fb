"""Servers of this process, which a `FixedResolver` knows without being told their keys."""

from __future__ import annotations

OWN_SERVERS: dict[str, str] = {}
"""Access keys by address."""
