"""Content between a client and the controller: in the message while it is small, else as a blob named by its hash."""

from __future__ import annotations

import hashlib
from typing import Literal

from protobuf import Oneof

from fluster.errors import RemoteFault, Unreachable
from fluster.rpc.client import ConnectClient, Patience
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1.types_pb import Payload

INLINE_BYTES = 64 * 1024
CHUNK_BYTES = 2 * 1024 * 1024
_MAX_SETBACKS = 10
RETRY_S = 30.0
"""How long calls that matter wait for a controller that restarts."""


def send(rpc: ConnectClient, content: bytes, *, inline_bytes: int = INLINE_BYTES) -> Payload:
    """What a message carries for this content; sends it ahead when it is more than `inline_bytes`."""
    sha256 = hashlib.sha256(content).hexdigest()
    if len(content) <= inline_bytes:
        return Payload(content=Oneof[Literal["inline"], bytes]("inline", content), sha256=sha256)
    _put(rpc, content, sha256)
    return Payload(content=Oneof[Literal["blob"], str]("blob", sha256), sha256=sha256)


def put(rpc: ConnectClient, content: bytes) -> str:
    """Sends what is not there yet of content that others may have sent before; its hash.

    Raises:
        ResourceExhausted: The controller has no room for it.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    _put(rpc, content, sha256, offset=_there(rpc, sha256, len(content)))
    return sha256


def is_there(rpc: ConnectClient, sha256: str, size: int) -> bool:
    """Whether the controller has a blob; if so it keeps it long enough for a launch to refer to it."""
    return _there(rpc, sha256, size) == size


def receive(rpc: ConnectClient, payload: Payload) -> bytes:
    """The content of a payload.

    Raises:
        RemoteFault: What came does not have its hash.
    """
    match payload.content:
        case Oneof(field="inline", value=bytes() as content):
            pass
        case Oneof(field="blob", value=str() as sha256):
            content = _get(rpc, sha256)
        case _:
            raise RemoteFault("the controller's answer names neither content nor blob")
    if hashlib.sha256(content).hexdigest() != payload.sha256:
        raise RemoteFault(f"what came is not the content with the sha256 {payload.sha256}")
    return content


def _there(rpc: ConnectClient, sha256: str, size: int) -> int:
    """How much of a blob the controller has, from its beginning."""
    nothing = pb.PutBlobRequest(sha256=sha256, total_size=size)
    return rpc.unary("PutBlob", nothing, pb.PutBlobResponse, retry_s=RETRY_S).next_offset


def _put(rpc: ConnectClient, content: bytes, sha256: str, offset: int = 0) -> None:
    total = len(content)
    setbacks = 0
    while offset < total:
        request = pb.PutBlobRequest(
            sha256=sha256, offset=offset, chunk=content[offset : offset + CHUNK_BYTES], total_size=total
        )
        following = rpc.unary("PutBlob", request, pb.PutBlobResponse, retry_s=RETRY_S).next_offset
        # A controller that restarted may lack what it had, and another sender of the same content may be further.
        setbacks += following <= offset
        if setbacks > _MAX_SETBACKS or following > total:
            raise RemoteFault(f"the controller asks for byte {following} of a blob of {total} after byte {offset}")
        offset = following


def _get(rpc: ConnectClient, sha256: str) -> bytes:
    received, total = bytearray(), -1
    patience = Patience(RETRY_S)
    while len(received) != total:
        request = pb.GetBlobRequest(sha256=sha256, offset=len(received))
        try:
            for message in rpc.stream("GetBlob", request, pb.GetBlobResponse, idle_timeout_s=RETRY_S):
                received += message.chunk
                total = message.total_size
                patience = Patience(RETRY_S)
        except Unreachable as error:
            patience.pause(error)
            continue
        if len(received) != total:
            raise RemoteFault(f"the controller sent {len(received)} bytes of a blob of {total}")
    return bytes(received)
