"""A controller as it is seen from the network: typed calls, JSON by hand, and a worker whose every word a test says."""

from __future__ import annotations

import hashlib
import http.client
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from protobuf import Message, Oneof

from fluster.cluster.controller.core.state import Settings
from fluster.cluster.controller.server import ControllerServer
from fluster.cluster.ids import WorkerId
from fluster.cluster.tokens import new_secret, secret_sha256, worker_token
from fluster.rpc.client import ConnectClient
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

SERVICE = "fluster.cluster.v1.ControllerService"
WITHIN_S = 10.0
SERVE = [sys.executable, "-m", "fluster.cluster.controller", "serve"]


def wait_for(condition: Callable[[], Any], what: str, within_s: float = WITHIN_S) -> Any:
    """What the condition gives once that is true."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {within_s} s"
        time.sleep(0.005)
    return found


@dataclass(slots=True)
class Reply:
    """A plain HTTP answer."""

    status: int
    body: dict[str, Any]
    text: str

    @property
    def code(self) -> str:
        return str(self.body.get("code"))

    @property
    def message(self) -> str:
        return str(self.body.get("message"))


class Api:
    """Calls under one token. `api(pb.ListJobsRequest())` gives a `ListJobsResponse`."""

    def __init__(self, address: str, token: str | None) -> None:
        self.address = address
        self.token = token
        self._rpc = ConnectClient(address, SERVICE, token=token)

    def __call__(self, request: Message, *, timeout_s: float = 10.0) -> Any:
        method, response_type = _method_of(request)
        return self._rpc.unary(method, request, response_type, timeout_s=timeout_s, retry_s=0)

    def stream(self, request: Message, *, idle_timeout_s: float = WITHIN_S) -> Iterator[Any]:
        method, response_type = _method_of(request)
        return self._rpc.stream(method, request, response_type, idle_timeout_s=idle_timeout_s, retry_s=0)

    def post(self, request: Message, *, as_json: bool = True) -> Reply:
        """The same over plain HTTP, to see the answer as it is."""
        body = request.to_json().encode() if as_json else request.to_binary()
        content_type = "application/json" if as_json else "application/proto"
        return self.post_bytes(_method_of(request)[0], body, content_type)

    def post_bytes(self, method: str, body: bytes, content_type: str = "application/json", **more: str) -> Reply:
        connection = http.client.HTTPConnection(self.address.removeprefix("http://"), timeout=WITHIN_S)
        headers = {"content-type": content_type, **more}
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.token}"
        try:
            connection.request("POST", f"/{SERVICE}/{method}", body, headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        text = content.decode(errors="replace")
        as_object = response.headers.get("content-type", "").startswith("application/json")
        return Reply(response.status, json.loads(text) if as_object else {}, text)

    def close(self) -> None:
        self._rpc.close()


def _method_of(request: Message) -> tuple[str, Any]:
    method = type(request).__name__.removesuffix("Request")
    return method, getattr(pb, f"{method}Response")


def new_id() -> str:
    return secrets.token_hex(8)


def inline(content: bytes) -> types_pb.Payload:
    return types_pb.Payload(
        content=Oneof[Literal["inline"], bytes]("inline", content), sha256=hashlib.sha256(content).hexdigest()
    )


def blob(sha256: str) -> types_pb.Payload:
    return types_pb.Payload(content=Oneof[Literal["blob"], str]("blob", sha256), sha256=sha256)


def command(*argv: str) -> types_pb.EntrypointSpec:
    return types_pb.EntrypointSpec(
        kind=Oneof[Literal["command"], types_pb.Command]("command", types_pb.Command(argv=list(argv)))
    )


def callable_of(payload: types_pb.Payload) -> types_pb.EntrypointSpec:
    return types_pb.EntrypointSpec(kind=Oneof[Literal["callable"], types_pb.Payload]("callable", payload))


def job_spec(name: str = "job", *, cpu: float = 1.0, replicas: int = 1, **fields: Any) -> types_pb.JobSpec:
    return types_pb.JobSpec(
        name=name,
        entrypoint=fields.pop("entrypoint", None) or command("true"),
        resources=fields.pop("resources", None)
        or types_pb.ResourceSpec(cpu=cpu, memory_bytes=1_000_000, replicas=replicas),
        **fields,
    )


def launch(api: Api, spec: types_pb.JobSpec | None = None, *, namespace: str = "", **fields: Any) -> str:
    """Launches a job, gives its id."""
    request = pb.LaunchJobRequest(request_id=new_id(), namespace=namespace, spec=spec or job_spec(**fields))
    return str(api(request).job_id)


def info(api: Api, job_id: str) -> types_pb.JobInfo:
    job = api(pb.GetJobStatusRequest(job_id=job_id)).job
    assert isinstance(job, types_pb.JobInfo)
    return job


def terminate(api: Api, job_id: str) -> None:
    api(pb.TerminateJobRequest(request_id=new_id(), job_id=job_id))


@dataclass(slots=True)
class FakeWorker:
    """A worker that runs nothing: what it reports is what a test says. `observed` is its whole set."""

    address: str
    worker_id: str
    secret: str = field(default_factory=new_secret)
    incarnation: str = field(default_factory=new_id)
    cpu: float = 4.0
    host: str = "127.0.0.1"
    max_jobs: int = 1_000
    seq: int = 0
    epoch: int = 0
    controller: str = ""
    version: int = 0
    observed: dict[str, pb.ObservedAttempt] = field(default_factory=dict)
    specs: dict[str, pb.AttemptSpec] = field(default_factory=dict)
    _apis: list[Api] = field(default_factory=list)

    @property
    def token(self) -> str:
        return worker_token(WorkerId(self.worker_id), self.secret)

    def api(self, token: str | None = None) -> Api:
        made = Api(self.address, token or self.token)
        self._apis.append(made)
        return made

    def close(self) -> None:
        for each in self._apis:
            each.close()

    def resources(self) -> types_pb.WorkerResources:
        return types_pb.WorkerResources(
            cpu=self.cpu, memory_bytes=16 * 10**9, disk_bytes=10**12, max_jobs=self.max_jobs, cgroup="none"
        )

    def registration(self, **fields: Any) -> pb.RegisterWorkerRequest:
        return pb.RegisterWorkerRequest(
            **{
                "request_id": new_id(),
                "worker_id": self.worker_id,
                "credential_sha256": secret_sha256(self.secret),
                "incarnation": self.incarnation,
                "address": f"{self.host}:7078",
                "advertise_host": self.host,
                "resources": self.resources(),
                "host_id": "boot-1",
                **fields,
            }
        )

    def join(self, token: str, **fields: Any) -> pb.RegisterWorkerResponse:
        response = self.api(token)(self.registration(**fields))
        assert isinstance(response, pb.RegisterWorkerResponse)
        self.epoch, self.controller = response.controller_epoch, response.controller_incarnation
        return response

    def request(self, *, wait_s: float = 0.0, **fields: Any) -> pb.SyncWorkerRequest:
        self.seq += 1
        return pb.SyncWorkerRequest(
            **{
                "incarnation": self.incarnation,
                "seq": self.seq,
                "known_epoch": self.epoch,
                "known_incarnation": self.controller,
                "observed": list(self.observed.values()),
                "resources": self.resources(),
                "wait_s": wait_s,
                "desired_version": self.version,
                **fields,
            }
        )

    def sync(self, *, wait_s: float = 0.0, **fields: Any) -> pb.SyncWorkerResponse:
        """One exchange; what is desired no more is forgotten, as a worker does."""
        response = self.api()(self.request(wait_s=wait_s, **fields), timeout_s=wait_s + 10.0)
        assert isinstance(response, pb.SyncWorkerResponse)
        if not (response.superseded or response.reregister):
            self.version = response.desired_version
            desired = {each.attempt_uid for each in response.desired}
            self.observed = {uid: each for uid, each in self.observed.items() if uid in desired}
            self.specs |= {each.attempt_uid: each.spec for each in response.desired if each.spec is not None}
        return response

    def accept(self, count: int = 1) -> list[str]:
        """Reports attempts running that are desired and were not before, until there were so many."""
        deadline = time.monotonic() + WITHIN_S
        accepted: list[str] = []
        while len(accepted) < count:
            assert time.monotonic() < deadline, f"{len(accepted)} of {count} attempts were desired"
            new = [each.attempt_uid for each in self.sync(wait_s=0.2).desired if each.attempt_uid not in self.observed]
            for uid in new:
                self.report(uid, master_port=29_500)
            accepted += new
        self.sync()
        return accepted

    def report(
        self, uid: str, state: types_pb.TaskState = types_pb.TaskState.RUNNING, **fields: Any
    ) -> pb.ObservedAttempt:
        if state is types_pb.TaskState.RUNNING:
            fields.setdefault("started_at", time.time())
        self.observed[uid] = pb.ObservedAttempt(attempt_uid=uid, state=state, **fields)
        return self.observed[uid]

    def end(self, uid: str, exit_code: int = 0, **fields: Any) -> pb.SyncWorkerResponse:
        """Reports the end of an attempt."""
        if exit_code:
            fields.setdefault("cause", types_pb.Cause.EXIT)
            fields.setdefault("error_message", f"exit code {exit_code}")
        self.report(uid, exit=types_pb.ExitReport(exit_code=exit_code, finished_at=time.time(), **fields))
        return self.sync()

    def push(self, uid: str, data: bytes, *, offset: int = 0, stream: str = "STDOUT", at: float = 1.0) -> int:
        """Sends a piece of a log; says how far the stream has come."""
        chunk = pb.LogChunk(
            attempt_uid=uid, stream=types_pb.LogStream[f"{stream}"], offset=offset, data=data, timestamp=at
        )
        return int(self.api()(pb.PushLogsRequest(chunks=[chunk])).positions[0].size)


def join_token(api: Api, **fields: Any) -> str:
    request = pb.CreateTokenRequest(request_id=new_id(), kind=pb.TokenKind.JOIN, **fields)
    return str(api(request).token)


@dataclass(slots=True)
class Site:
    """A controller with its administrator, and workers that join it."""

    server: ControllerServer
    admin: Api
    workers: list[FakeWorker] = field(default_factory=list)
    apis: list[Api] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.server.address

    def worker(self, worker_id: str | None = None, **fields: Any) -> FakeWorker:
        """One that has joined."""
        made = FakeWorker(self.address, worker_id or f"w-{new_id()}", **fields)
        self.workers.append(made)
        made.join(join_token(self.admin))
        made.sync()
        return made

    def api(self, token: str | None) -> Api:
        made = Api(self.address, token)
        self.apis.append(made)
        return made

    def user(self, name: str, **fields: Any) -> Api:
        """What speaks with a new token of the user."""
        request = pb.CreateTokenRequest(request_id=new_id(), kind=pb.TokenKind.USER, user=name, **fields)
        return self.api(self.admin(request).token)

    def task(self, worker: FakeWorker, **fields: Any) -> tuple[str, str, Api]:
        """A job that runs on the worker: its id, its attempt's uid, and what speaks with that attempt's token."""
        job_id = launch(self.admin, **fields)
        (uid,) = worker.accept()
        return job_id, uid, self.api(worker.specs[uid].token)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        for api in (*self.apis, self.admin):
            api.close()


@contextmanager
def site(settings: Settings | None = None, **options: Any) -> Iterator[Site]:
    server = ControllerServer(settings=settings, **options)
    server.start()
    made = Site(server, Api(server.address, server.token))
    try:
        yield made
    finally:
        made.close()
        server.shutdown()


@contextmanager
def process(command: list[str], errors: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any], Api]]:
    """A controller's process, what it announced, and its administrator."""
    with open(errors, "w") as stderr:
        started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    with started:
        try:
            assert started.stdout is not None
            said = json.loads(started.stdout.readline())
            with closing(Api(said["address"], Path(said["token_file"]).read_text().strip())) as api:
                yield started, said, api
        finally:
            started.kill()
