"""A caller that speaks the native protocol byte by byte, as well or as badly as a test wants."""

from __future__ import annotations

import pickle
import secrets
import socket
import struct
from types import TracebackType
from typing import Any, Self

from fluster.actor.link import receive_exactly
from fluster.actor.protocol import (
    ANSWER,
    CHALLENGE,
    HEADER,
    NONCE_BYTES,
    SESSION_BYTES,
    VERDICT,
    Hello,
    Kind,
    caller_proof,
    server_proof,
    socket_name,
    target_of,
)


class Raw:
    """One connection.

    Attributes:
        sock: The socket.
        sent: All that was sent.
    """

    def __init__(self, address: str, access_key: str, *, unix: bool = False) -> None:
        self.access_key = access_key
        self.sent = b""
        self.sock: socket.socket
        if unix:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(10.0)
            self.sock.connect(socket_name(access_key))
        else:
            host, _, port = address.rpartition(":")
            self.sock = socket.create_connection((host, int(port)), timeout=10.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sent += data
        self.sock.sendall(data)

    def challenged(self, hello: Hello | None = None) -> tuple[Hello, bytes]:
        """Says hello; gives that and the nonce of the server, which proved the key."""
        hello = hello or Hello(False, secrets.token_bytes(SESSION_BYTES), secrets.token_bytes(NONCE_BYTES))
        self.send(hello.to_bytes())
        version, nonce, proof = CHALLENGE.unpack(receive_exactly(self.sock, CHALLENGE.size))
        assert version == 1
        assert proof == server_proof(self.access_key, hello, nonce)
        return hello, nonce

    def open(self, hello: Hello | None = None, open_calls: tuple[int, ...] = ()) -> int:
        """The whole greeting; gives the verdict."""
        hello, nonce = self.challenged(hello)
        proof = caller_proof(self.access_key, hello, nonce)
        self.send(ANSWER.pack(proof, len(open_calls)) + struct.pack(f"<{len(open_calls)}Q", *open_calls))
        (verdict,) = VERDICT.unpack(receive_exactly(self.sock, VERDICT.size))
        return int(verdict)

    def call(self, call_id: int, method: str, *args: Any, name: str = "worker") -> None:
        body = target_of("", name, method) + pickle.dumps((args, {}), 5)
        self.send(HEADER.pack(len(body), 0, Kind.CALL, 0, call_id, 0, 0) + body)

    def reply(self) -> tuple[int, int, bytes]:
        """Kind, call id and body of the next frame, which has no buffers."""
        header = HEADER.unpack(receive_exactly(self.sock, HEADER.size))
        return header[2], header[4], receive_exactly(self.sock, header[0])

    def ended(self) -> bool:
        """Whether the server closes the connection, sending nothing more than a refusal, within the timeout."""
        try:
            return len(self.sock.recv(4_096)) <= CHALLENGE.size and self.sock.recv(4_096) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False
