"""Messages with a choice in them, built so that type checkers see which."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

from protobuf import Oneof

from fluster.rpc.gen.fluster.cluster.v1.types_pb import Command, EntrypointSpec, Payload


def inline_payload(content: bytes) -> Payload:
    """The bytes in place."""
    choice: Oneof[Literal["inline"], bytes] = Oneof("inline", content)
    return Payload(content=choice, sha256=hashlib.sha256(content).hexdigest())


def blob_payload(sha256: str) -> Payload:
    """The bytes by their hash; they have been sent before."""
    choice: Oneof[Literal["blob"], str] = Oneof("blob", sha256)
    return Payload(content=choice, sha256=sha256)


def callable_entrypoint(payload: Payload) -> EntrypointSpec:
    """A pickled callable."""
    choice: Oneof[Literal["callable"], Payload] = Oneof("callable", payload)
    return EntrypointSpec(kind=choice)


def command_entrypoint(argv: Iterable[str]) -> EntrypointSpec:
    """A command line."""
    choice: Oneof[Literal["command"], Command] = Oneof("command", Command(argv=list(argv)))
    return EntrypointSpec(kind=choice)
