"""The native actor protocol as bytes: the opening challenge, frames, limits. `docs/protocol.md` describes it."""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

VERSION: Final = 1
OPENING: Final = b"\xf1uster\x00"
"""First bytes of a native connection, followed by the version: no HTTP request and no TLS record begins so."""

SESSION_BYTES: Final = 16
NONCE_BYTES: Final = 32
PROOF_BYTES: Final = 32

HELLO: Final = struct.Struct(f"<{len(OPENING)}sBB{SESSION_BYTES}s{NONCE_BYTES}s")
"""Caller: opening, version, whether it resumes, session, nonce."""
CHALLENGE: Final = struct.Struct(f"<B{NONCE_BYTES}s{PROOF_BYTES}s")
"""Server: its version (another than the caller's ends the conversation), nonce, proof."""
ANSWER: Final = struct.Struct(f"<{PROOF_BYTES}sI")
"""Caller: proof, and how many call ids follow (u64 each): those without a reply, of a session that is resumed."""
VERDICT: Final = struct.Struct("<B")
"""Server: a `Verdict`; of a resumed session followed by one byte for each id: 1 if the call is known."""
MAX_RESUMED: Final = 1 << 16


class Verdict(IntEnum):
    """What the server makes of a caller."""

    REFUSED = 0
    OPENED = 1
    RESUMED = 2


HEADER: Final = struct.Struct("<IHBBQII")
"""Of a frame: bytes of the body, number of buffers, kind, flags, call id, acknowledged, milliseconds left (0: ever).

Then, with `Flag.SLAB`, a `SLAB`; a `BUFFER` for each buffer; the body; the buffers that travel in the stream.
"""
SLAB: Final = struct.Struct("<QQ")
"""Shared memory that holds the frame's other buffers: its number in this connection and direction, and its size.

The descriptor comes with the frame when the number is new.
"""
BUFFER: Final = struct.Struct("<QQ")
"""Bytes of a buffer, and where in the slab it begins."""
IN_STREAM: Final = (1 << 64) - 1
"""A buffer that is not in the slab."""
TARGET: Final = struct.Struct("<H")
"""The body of a call: bytes of the target, the target, the pickled `(args, kwargs)`."""


class Kind:
    """Of a frame. Plain numbers: comparing members of an enumeration costs ten times as much, many times a call."""

    CALL: Final = 1
    REPLY: Final = 2
    ERROR: Final = 3
    ITEM: Final = 4
    END: Final = 5
    CANCEL: Final = 6
    ACK: Final = 7
    FREE: Final = 8
    DROP: Final = 9
    CREDIT: Final = 10
    BYE: Final = 11


LAST_KIND: Final = Kind.BYE


class Flag:
    """Bits of a frame's flags."""

    SLAB: Final = 1
    STREAM: Final = 2
    NOT_RUN: Final = 4
    """Of an error: nothing of the call was run, and the registration it was for is gone."""


MAX_BUFFERS: Final = 4_096
DEFAULT_MAX_MESSAGE_BYTES: Final = 4 << 30
"""Of body and buffers together."""
MAX_BODY_BYTES: Final = (1 << 32) - 1
STREAM_WINDOW: Final = 16
"""Items of a stream that may be on their way."""


class ProtocolError(ConnectionError):
    """What came does not follow the protocol; the connection cannot go on."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What both proofs cover."""

    resumes: bool
    session: bytes
    nonce: bytes

    def to_bytes(self) -> bytes:
        """The caller's first message."""
        return HELLO.pack(OPENING, VERSION, self.resumes, self.session, self.nonce)

    @classmethod
    def from_bytes(cls, data: bytes) -> Hello:
        """From the caller's first message.

        Raises:
            ProtocolError: It is none, or of another version.
        """
        opening, version, resumes, session, nonce = HELLO.unpack(data)
        if opening != OPENING or version != VERSION or resumes not in (0, 1):
            raise ProtocolError(f"the caller speaks another protocol, or another version of it than {VERSION}")
        return cls(bool(resumes), session, nonce)


def server_proof(access_key: str, hello: Hello, nonce: bytes) -> bytes:
    """Shows the caller that the server has the key."""
    return _proof(access_key, b"fluster actor server", hello, nonce)


def caller_proof(access_key: str, hello: Hello, nonce: bytes) -> bytes:
    """Shows the server that the caller has the key."""
    return _proof(access_key, b"fluster actor caller", hello, nonce)


def _proof(access_key: str, role: bytes, hello: Hello, nonce: bytes) -> bytes:
    return hmac.digest(access_key.encode(), role + hello.to_bytes() + nonce, "sha256")


def socket_name(access_key: str) -> bytes:
    """Abstract Unix socket of the server with this key: who reaches it is on the same machine. Tells nothing of it."""
    return (
        b"\0fluster-actor-" + hashlib.sha256(b"fluster actor socket\0" + access_key.encode()).hexdigest()[:32].encode()
    )


def bearer_of(access_key: str) -> str:
    """What an HTTP caller of the server with this key presents."""
    return hmac.digest(access_key.encode(), b"fluster actor bearer", "sha256").hex()


def target_of(actor_id: str, name: str, method: str) -> bytes:
    """How a call says what it calls, with its length in front."""
    target = f"{actor_id}\n{name}\n{method}".encode()
    return TARGET.pack(len(target)) + target


def parse_target(target: bytes) -> tuple[str, str, str]:
    """Actor id, name and method.

    Raises:
        ProtocolError: It is something else.
    """
    try:
        actor_id, name, method = target.decode().split("\n")
    except ValueError:
        raise ProtocolError("a call's target must be actor id, name and method") from None
    return actor_id, name, method
