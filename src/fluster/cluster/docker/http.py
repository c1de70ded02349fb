"""HTTP/1.1 over a Unix socket, as far as a Docker Engine speaks it: one request a connection, bodies as they come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from fluster.errors import Unreachable

_PIECE_BYTES = 1 << 16
_LINE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Response:
    """An answer whose body is still to be read.

    Attributes:
        headers: By lower-case name.
    """

    status: int
    headers: dict[str, str]
    _reader: asyncio.StreamReader

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            async for piece in self._chunks():
                yield piece
            return
        left = int(self.headers.get("content-length", -1))
        while left and (piece := await self._reader.read(_PIECE_BYTES if left < 0 else min(left, _PIECE_BYTES))):
            left -= len(piece) if left > 0 else 0
            yield piece

    async def body(self) -> bytes:
        """All of the body."""
        return b"".join([piece async for piece in self.pieces()])

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int((await self._reader.readline()).split(b";")[0] or b"0", 16):
            while size:
                piece = await self._reader.read(min(size, _PIECE_BYTES))
                if not piece:
                    raise asyncio.IncompleteReadError(piece, size)
                size -= len(piece)
                yield piece
            await self._reader.readline()


@contextlib.asynccontextmanager
async def request(
    socket: Path, method: str, target: str, body: bytes = b"", content_type: str = "application/json"
) -> AsyncIterator[Response]:
    """Sends a request and gives the answer; the connection ends with the block.

    Raises:
        Unreachable: Nobody answers on the socket, or the answer broke off.
    """
    address = f"unix://{socket}"
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket), limit=_LINE_BYTES)
    except OSError as error:
        raise Unreachable(f"no Docker Engine answers on {socket}: {error.strerror}", address=address) from error
    try:
        head = f"{method} {target} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Content-Type: {content_type}\r\n\r\n".encode() + body)
        await writer.drain()
        yield await _response(reader)
    except (OSError, EOFError, ValueError) as error:
        raise Unreachable(f"the Docker Engine on {socket} broke off its answer: {error!r}", address=address) from error
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _response(reader: asyncio.StreamReader) -> Response:
    version, _, rest = (await reader.readline()).decode("latin-1").partition(" ")
    if not version.startswith("HTTP/1."):
        raise EOFError("no answer")
    headers = {}
    while line := (await reader.readline()).decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Response(int(rest.split(" ")[0]), headers, reader)
