"""A worker's calls to its controller: a blocking client on a few threads of its own."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from fluster.cluster.worker.credentials import Credentials
from fluster.cluster.worker.delivery import sha256_of
from fluster.cluster.worker.outcome import open_result
from fluster.errors import NotPermitted
from fluster.rpc.client import ConnectClient
from fluster.rpc.gen.fluster.cluster.v1.controller_pb import (
    GetBlobRequest,
    GetBlobResponse,
    GetWheelRequest,
    GetWheelResponse,
    PushLogsRequest,
    PushLogsResponse,
    PutBlobRequest,
    PutBlobResponse,
    RegisterWorkerRequest,
    RegisterWorkerResponse,
    SyncWorkerRequest,
    SyncWorkerResponse,
)

_SERVICE = "fluster.cluster.v1.ControllerService"
_CALL_S = 30.0
_CHUNK = 1 << 20
# Two long polls, a request of logs, a registration and a few transfers.
_THREADS = 8

P = ParamSpec("P")
R = TypeVar("R")


class ControllerLink:
    """The controller at one address. Nothing is tried again here: when, and with what, is the callers' to decide."""

    def __init__(self, address: str, token: str, credentials: Credentials | None = None) -> None:
        trust = credentials.trust if credentials is not None else None
        self._credentials = credentials
        self._client = ConnectClient(address, _SERVICE, token=token, retry_s=0.0, known=True, trust=trust)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="fluster-link")
        self._registering: asyncio.Future[None] | None = None

    @property
    def address(self) -> str:
        """`http://host:port`."""
        return str(self._client.address)

    def use_token(self, token: str) -> None:
        """Of all calls from now on."""
        self._client.token = token

    async def register(self, request: RegisterWorkerRequest, token: str, *, then: str) -> RegisterWorkerResponse:
        """RegisterWorker with one token; when it is answered, all other calls go on with another.

        A certificate that comes with the answer is shown from then on.
        """
        done = asyncio.get_running_loop().create_future()
        self._registering = done
        self._client.token = token
        try:
            response = await self._in_thread(self._register, request)
            self._client.token = then
            return response
        finally:
            self._registering = None
            done.set_result(None)

    async def sync(self, request: SyncWorkerRequest, timeout_s: float) -> SyncWorkerResponse:
        """SyncWorker; the controller may hold it."""
        call = self._client.unary
        return await self._as_registered(call, "SyncWorker", request, SyncWorkerResponse, timeout_s=timeout_s)

    async def push_logs(self, request: PushLogsRequest) -> PushLogsResponse:
        """PushLogs."""
        call = self._client.unary
        return await self._as_registered(call, "PushLogs", request, PushLogsResponse, timeout_s=_CALL_S)

    async def get_wheel(self) -> tuple[str, str]:
        """GetWheel: name and hash of Fluster's own."""
        call = self._client.unary
        answer = await self._in_thread(call, "GetWheel", GetWheelRequest(), GetWheelResponse, timeout_s=_CALL_S)
        return answer.file_name, answer.sha256

    async def put_blob(self, path: Path) -> str:
        """Sends a file's content; its hash.

        Raises:
            BadOutcome: It is no regular file.
        """
        return await self._as_registered(self._put_blob, path)

    async def get_blob(self, sha256: str, path: Path) -> None:
        """Writes content to a file.

        Raises:
            ValueError: What came has another hash.
        """
        await self._as_registered(self._get_blob, sha256, path)

    def close(self) -> None:
        """Ends the calls that are waiting."""
        self._client.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def _as_registered(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The call; once more where its token was replaced while it was on its way."""
        token = self._client.token
        try:
            return await self._in_thread(call, *args, **kwargs)
        except NotPermitted:
            if self._registering is not None:
                await asyncio.wait((self._registering,))
            if self._client.token == token:
                raise
            return await self._in_thread(call, *args, **kwargs)

    async def _in_thread(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: call(*args, **kwargs))

    def _register(self, request: RegisterWorkerRequest) -> RegisterWorkerResponse:
        credentials = self._credentials
        request.certificate_request = credentials.request() if credentials is not None else b""
        response = self._client.unary("RegisterWorker", request, RegisterWorkerResponse, timeout_s=_CALL_S)
        if credentials is not None and response.certificate:
            credentials.take(response.certificate)
            self._client.close_idle()  # connections that showed none are worth nothing any more
        return response

    def _put_blob(self, path: Path) -> str:
        with open_result(path) as file:
            sha256 = sha256_of(file)
            size = file.seek(0, os.SEEK_END)
            offset = 0
            while True:
                file.seek(offset)
                request = PutBlobRequest(sha256=sha256, offset=offset, chunk=file.read(_CHUNK), total_size=size)
                offset = self._client.unary("PutBlob", request, PutBlobResponse, timeout_s=_CALL_S).next_offset
                if offset >= size:
                    return sha256

    def _get_blob(self, sha256: str, path: Path) -> None:
        digest = hashlib.sha256()
        request = GetBlobRequest(sha256=sha256)
        with open(path, "wb") as file:
            for message in self._client.stream("GetBlob", request, GetBlobResponse, idle_timeout_s=_CALL_S):
                digest.update(message.chunk)
                file.write(message.chunk)
        if digest.hexdigest() != sha256:
            raise ValueError(f"what came for {sha256} has another hash")
