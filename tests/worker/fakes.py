"""A controller of a few lines: hands out what the test wants, notes what the worker says. Real RPC, real sockets."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fluster.errors import NotPermitted
from fluster.rpc.gate import bearer
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1.controller_connect import ControllerService, ControllerServiceASGIApplication
from fluster.rpc.gen.fluster.cluster.v1.types_pb import ExitReport, LogStream
from fluster.rpc.serve import RpcServer, connect_options

JOIN = "flj_test_" + "0" * 64
WITHIN_S = 20.0


class FakeController(ControllerService):
    def __init__(self, *, lease_s: float = 30.0, epoch: int = 1) -> None:
        self.lease_s = lease_s
        self.epoch = epoch
        self.incarnation = "controller"
        self.desired: dict[str, pb.DesiredAttempt] = {}
        self.version = 1
        self.leave = False
        self.reregister = False
        self.drop_ended = True
        self.registered: list[pb.RegisterWorkerRequest] = []
        self.syncs: list[pb.SyncWorkerRequest] = []
        self.ends: dict[str, ExitReport] = {}
        self.logs: dict[tuple[str, LogStream], bytearray] = {}
        self.log_requests: list[pb.PushLogsRequest] = []
        self.logs_at_end: dict[str, bytes] = {}
        self.blobs: dict[str, bytearray] = {}
        self.refuse: Callable[[str, Any], None] = lambda _method, _request: None
        self.changed = asyncio.Condition()
        self.server: RpcServer | None = None

    @property
    def address(self) -> str:
        assert self.server is not None
        return f"http://127.0.0.1:{self.server.port}"

    async def serve(self, port: int = 0) -> None:
        def authenticate(headers: Mapping[str, str]) -> object | None:
            return bearer(headers)

        application = ControllerServiceASGIApplication(self, **connect_options())
        self.server = RpcServer([application], authenticate, port=port)
        await self.server.start()

    async def stop(self) -> None:
        assert self.server is not None
        await self.server.stop()

    async def want(self, uid: str, spec: pb.AttemptSpec | None = None, *, stop: bool = False) -> None:
        known = self.desired.get(uid)
        self.desired[uid] = pb.DesiredAttempt(
            attempt_uid=uid, stop=stop, spec=spec or (known.spec if known is not None else None)
        )
        await self.change()

    async def unwant(self, uid: str) -> None:
        del self.desired[uid]
        await self.change()

    async def change(self) -> None:
        async with self.changed:
            self.version += 1
            self.changed.notify_all()

    async def until(self, accept: Callable[[], Any]) -> None:
        async with asyncio.timeout(WITHIN_S), self.changed:
            await self.changed.wait_for(accept)

    async def end_of(self, uid: str) -> ExitReport:
        await self.until(lambda: uid in self.ends)
        return self.ends[uid]

    def observed(self, uid: str) -> pb.ObservedAttempt | None:
        """As last reported."""
        last = self.syncs[-1].observed if self.syncs else []
        return next((each for each in last if each.attempt_uid == uid), None)

    def log_of(self, uid: str, stream: LogStream = LogStream.STDOUT) -> bytes:
        return bytes(self.logs.get((uid, stream), b""))

    # RPCs.

    async def register_worker(self, request: pb.RegisterWorkerRequest, ctx: Any) -> pb.RegisterWorkerResponse:
        self.refuse("RegisterWorker", request)
        self.registered.append(request)
        self.reregister = False
        async with self.changed:
            self.changed.notify_all()
        return pb.RegisterWorkerResponse(
            worker_id=request.worker_id,
            controller_epoch=self.epoch,
            controller_incarnation=self.incarnation,
            lease_s=self.lease_s,
        )

    async def sync_worker(self, request: pb.SyncWorkerRequest, ctx: Any) -> pb.SyncWorkerResponse:
        self.refuse("SyncWorker", request)
        if self.reregister:
            return pb.SyncWorkerResponse(
                controller_epoch=self.epoch,
                controller_incarnation=self.incarnation,
                lease_s=self.lease_s,
                reregister=True,
            )
        if self.syncs and self.syncs[-1].incarnation == request.incarnation and request.seq <= self.syncs[-1].seq:
            return pb.SyncWorkerResponse(
                controller_epoch=self.epoch,
                controller_incarnation=self.incarnation,
                lease_s=self.lease_s,
                superseded=True,
            )
        async with self.changed:
            self.syncs.append(request)
            for each in request.observed:
                if each.exit is not None and each.attempt_uid not in self.ends:
                    self.ends[each.attempt_uid] = each.exit
                    self.logs_at_end[each.attempt_uid] = self.log_of(each.attempt_uid)
                if each.exit is not None and self.drop_ended and each.attempt_uid in self.desired:
                    del self.desired[each.attempt_uid]
                    self.version += 1
            self.changed.notify_all()

            def answer_now() -> bool:
                return self.syncs[-1] is not request or self.version != request.desired_version or self.reregister

            try:
                await asyncio.wait_for(self.changed.wait_for(answer_now), request.wait_s)
            except TimeoutError:
                pass
        known = {each.attempt_uid for each in request.observed}
        return pb.SyncWorkerResponse(
            controller_epoch=self.epoch,
            controller_incarnation=self.incarnation,
            lease_s=self.lease_s,
            superseded=self.syncs[-1] is not request,
            reregister=self.reregister,
            leave=self.leave,
            desired=[
                pb.DesiredAttempt(attempt_uid=uid, stop=each.stop, spec=None if uid in known else each.spec)
                for uid, each in self.desired.items()
            ],
            desired_version=self.version,
        )

    async def push_logs(self, request: pb.PushLogsRequest, ctx: Any) -> pb.PushLogsResponse:
        self.refuse("PushLogs", request)
        self.log_requests.append(request)
        touched = {}
        for chunk in request.chunks:
            log = self.logs.setdefault((chunk.attempt_uid, chunk.stream), bytearray())
            if chunk.offset > len(log):
                log += b"\0" * (chunk.offset - len(log))
            log[chunk.offset : chunk.offset + len(chunk.data)] = chunk.data
            touched[chunk.attempt_uid, chunk.stream] = len(log)
        async with self.changed:
            self.changed.notify_all()
        return pb.PushLogsResponse(
            positions=[pb.LogPosition(attempt_uid=uid, stream=stream, size=n) for (uid, stream), n in touched.items()]
        )

    async def put_blob(self, request: pb.PutBlobRequest, ctx: Any) -> pb.PutBlobResponse:
        self.refuse("PutBlob", request)
        blob = self.blobs.setdefault(request.sha256, bytearray())
        blob[request.offset :] = request.chunk
        if len(blob) == request.total_size:
            assert hashlib.sha256(blob).hexdigest() == request.sha256
        return pb.PutBlobResponse(next_offset=len(blob))

    async def get_blob(self, request: pb.GetBlobRequest, ctx: Any) -> AsyncIterator[pb.GetBlobResponse]:
        self.refuse("GetBlob", request)
        blob = self.blobs[request.sha256]
        for offset in range(request.offset, len(blob), 1 << 20):
            yield pb.GetBlobResponse(chunk=bytes(blob[offset : offset + (1 << 20)]), total_size=len(blob))


def refuse_always(*methods: str) -> Callable[[str, Any], None]:
    def refuse(method: str, request: Any) -> None:
        if method in methods:
            raise NotPermitted("not you")

    return refuse


@asynccontextmanager
async def controller(*, lease_s: float = 30.0, epoch: int = 1) -> AsyncIterator[FakeController]:
    fake = FakeController(lease_s=lease_s, epoch=epoch)
    await fake.serve()
    try:
        yield fake
    finally:
        await fake.stop()
