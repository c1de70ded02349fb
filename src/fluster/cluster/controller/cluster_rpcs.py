"""RPCs about the cluster itself: workers, allocations, blobs."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from connectrpc.code import Code
from connectrpc.errors import ConnectError

from fluster.cluster.controller import convert, view
from fluster.cluster.controller.blobs import BlobNotFound
from fluster.cluster.controller.context import Controller
from fluster.cluster.own_wheel import build_own_wheel
from fluster.cluster.validation import refuse
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

_CHUNK_BYTES = 1024 * 1024


class Machines:
    """Handlers of what tells of workers and allocations."""

    def __init__(self, controller: Controller) -> None:
        self._c = controller

    def workers(self) -> pb.ListWorkersResponse:
        """All that are not gone, by id."""
        state = self._c.state
        rows = [state.workers[worker_id] for worker_id in sorted(state.workers)]
        return pb.ListWorkersResponse(workers=[view.worker_message(state, row) for row in rows])

    def allocations(self) -> pb.ListAllocationsResponse:
        """All that are not gone, by id."""
        rows = sorted(self._c.state.allocations.values(), key=lambda row: row.allocation_id)
        return pb.ListAllocationsResponse(allocations=[view.allocation_message(row) for row in rows])


class Blobs:
    """Handlers of content by hash."""

    def __init__(self, controller: Controller) -> None:
        self._c = controller
        self._wheel: tuple[str, str, bytes] | None = None
        self._building = asyncio.Lock()

    async def get_wheel(self) -> pb.GetWheelResponse:
        """Fluster's own wheel, made the first time somebody asks, and there long enough to be fetched."""
        async with self._building:
            name, sha256 = await asyncio.to_thread(self._provide_wheel)
        return pb.GetWheelResponse(file_name=name, sha256=sha256)

    def _provide_wheel(self) -> tuple[str, str]:
        if self._wheel is None:
            self._wheel = _build_wheel()
        name, sha256, content = self._wheel
        self._c.blobs.put(sha256, 0, content, len(content))
        return name, sha256

    async def put(self, request: pb.PutBlobRequest) -> pb.PutBlobResponse:
        """One chunk; the blob exists once all its bytes are on disk and their hash is right."""
        convert.check_sha256(request.sha256)
        size = await asyncio.to_thread(
            self._c.blobs.put, request.sha256, request.offset, request.chunk, request.total_size
        )
        return pb.PutBlobResponse(next_offset=size)

    async def get(self, request: pb.GetBlobRequest) -> AsyncIterator[pb.GetBlobResponse]:
        """The content from an offset, in chunks."""
        convert.check_sha256(request.sha256)
        try:
            total = self._c.blobs.size(request.sha256)
        except BlobNotFound as error:
            info = pb.ErrorInfo(reason="blob_not_found", metadata={"sha256": request.sha256})
            raise ConnectError(Code.NOT_FOUND, str(error), details=[info]) from None
        if not 0 <= request.offset <= total:
            raise refuse("offset", f"0 to {total}", request.offset)
        with self._c.blobs.open(request.sha256, request.offset) as file:
            while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
                yield pb.GetBlobResponse(chunk=chunk, total_size=total)
        if total == request.offset:
            yield pb.GetBlobResponse(total_size=total)


def _build_wheel() -> tuple[str, str, bytes]:
    """Name, hash and content."""
    with tempfile.TemporaryDirectory(prefix="fluster-wheel-") as directory:
        path = build_own_wheel(Path(directory))
        content = path.read_bytes()
    return path.name, hashlib.sha256(content).hexdigest(), content
