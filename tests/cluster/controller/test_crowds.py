"""Many at once: launches in one second, endpoints of one task, readers that do not read.

`FLUSTER_CROWD`: launches in one second, and fifty times the readers; else a fifth of what `make chaos` has.
"""

from __future__ import annotations

import os
import re
import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import pytest
from tests.cluster.controller.remote import (
    SERVE,
    SERVICE,
    Api,
    FakeWorker,
    Site,
    job_spec,
    join_token,
    launch,
    new_id,
    process,
    wait_for,
)

from fluster import Cluster
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

LAUNCHES = int(os.environ.get("FLUSTER_CROWD", "2000"))
CONNECTIONS = 100
STUCK = LAUNCHES // 50
MB = 1 << 20
_END_OF_HEAD = b"\r\n\r\n"
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
pytestmark = pytest.mark.timeout(60 + LAUNCHES // 100)


def request(api: Api, method: str, kind: bytes, body: bytes) -> bytes:
    """A whole HTTP request."""
    head = [
        f"POST /{SERVICE}/{method} HTTP/1.1",
        f"Host: {api.address.removeprefix('http://')}",
        f"Content-Type: {kind.decode()}",
        f"Content-Length: {len(body)}",
        "Connect-Protocol-Version: 1",
        f"Authorization: Bearer {api.token}",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def connected(api: Api, *, receive_bytes: int | None = None) -> socket.socket:
    """A connection to the controller."""
    host, port = api.address.removeprefix("http://").split(":")
    made = socket.socket()
    if receive_bytes is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    made.settimeout(30)
    made.connect((host, int(port)))
    return made


@contextmanager
def controller(directory: Path) -> Iterator[tuple[Api, int]]:
    """One in a process of its own: its administrator, and its pid."""
    with process([*SERVE, "--state-dir", str(directory / "state"), "--port", "0"], directory / "stderr") as (
        started,
        _,
        api,
    ):
        yield api, started.pid


# Launches.


def test_a_flood_of_launches_in_one_second_is_acknowledged_or_refused_and_none_is_lost(tmp_path: Path) -> None:
    """Each on its own, as many clients would send them: all are on their way before the first is answered."""
    each = LAUNCHES // CONNECTIONS
    spec = job_spec("one-of-many", cpu=100_000.0)
    with controller(tmp_path) as (api, _), ExitStack() as stack:
        connections = [stack.enter_context(connected(api)) for _ in range(CONNECTIONS)]
        flood = [b"".join(launch_request(api, spec) for _ in range(each)) for _ in connections]
        answers = exchanged(connections, flood, each)
        with Cluster(api.address, token=api.token) as cluster:
            there = len(cluster.list_jobs(name_prefix="one-of-many"))
    assert sum(answers.values()) == LAUNCHES
    assert set(answers) <= {200, 429}
    assert there == answers[200] > 0


def launch_request(api: Api, spec: types_pb.JobSpec) -> bytes:
    """One of its own."""
    message = pb.LaunchJobRequest(request_id=new_id(), spec=spec)
    return request(api, "LaunchJob", b"application/proto", message.to_binary())


def exchanged(connections: list[socket.socket], requests: list[bytes], answers_each: int) -> Counter[int]:
    """Sends and receives on all connections at once; how often each HTTP status came."""
    statuses: Counter[int] = Counter()
    with selectors.DefaultSelector() as selector:
        for connection, content in zip(connections, requests, strict=True):
            connection.setblocking(False)
            exchange = _Exchange(content, answers_each)
            selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE, exchange)
        while selector.get_map():
            for key, events in selector.select(30):
                exchange, connection = key.data, cast(socket.socket, key.fileobj)
                if events & selectors.EVENT_WRITE and not exchange.send(connection):
                    selector.modify(connection, selectors.EVENT_READ, exchange)
                if events & selectors.EVENT_READ:
                    statuses.update(exchange.receive(connection))
                    if not exchange.left:
                        selector.unregister(connection)
    return statuses


class _Exchange:
    """What one connection still has to send and to receive."""

    def __init__(self, content: bytes, answers: int) -> None:
        self._content = memoryview(content)
        self._received = b""
        self.left = answers

    def send(self, connection: socket.socket) -> bool:
        """Whether there is more to send."""
        self._content = self._content[connection.send(self._content) :]
        return bool(self._content)

    def receive(self, connection: socket.socket) -> list[int]:
        """Statuses of the answers that are whole now."""
        more = connection.recv(1 << 16)
        assert more, "the controller hung up"
        self._received += more
        found = []
        while (end := self._received.find(_END_OF_HEAD)) >= 0:
            head = self._received[:end]
            length = _LENGTH.search(head)
            if length is not None:
                end += len(_END_OF_HEAD) + int(length[1])
            else:  # in chunks
                end = self._received.find(_LAST_CHUNK, end) + len(_LAST_CHUNK)
            if end < len(head) or len(self._received) < end:
                break
            found.append(int(head.split(b" ", 2)[1]))
            self._received = self._received[end:]
        self.left -= len(found)
        return found


# Endpoints.


def test_a_thousand_endpoints_are_registered_and_go_with_their_attempt_in_one_commit(alone: Site) -> None:
    worker = alone.worker()
    _, uid, task = alone.task(worker)
    for number in range(1_000):
        address = f"127.0.0.1:{number + 1}"
        task(pb.RegisterEndpointRequest(request_id=new_id(), name=f"e{number % 500}", address=address))
    registered = alone.admin(pb.ListEndpointsRequest()).endpoints
    assert len({each.endpoint_id for each in registered}) == 1_000
    assert len(alone.admin(pb.LookupEndpointsRequest(name="e7")).endpoints) == 2

    worker.end(uid)

    running = alone.server._running
    assert running is not None
    state = running.controller.state
    assert alone.admin(pb.ListEndpointsRequest()).endpoints == []
    indexes = (state.endpoints, state.endpoints_by_name, state.endpoints_by_attempt, state.endpoint_seen)
    assert [len(each) for each in indexes] == [0, 0, 0, 0]
    assert running.controller.store.load().endpoints == []


# Readers that do not read.


def test_a_crowd_of_followers_that_never_read_hold_up_nobody_and_little_memory(tmp_path: Path) -> None:
    with controller(tmp_path) as (api, pid), ExitStack() as stack:
        worker = FakeWorker(api.address, "w")
        stack.callback(worker.close)
        worker.join(join_token(api))
        worker.sync()
        job_id = launch(api, replicas=3)
        uids = worker.accept(3)
        printed = [b"%07d %s" % (number, b"x" * 100) for number in range(2_000)]
        sizes = {uid: worker.push(uid, b"".join(line + b"\n" for line in printed)) for uid in uids}
        before = resident_bytes(pid)
        message = pb.FetchLogsRequest(job_id=job_id, follow=True).to_binary()
        body = b"\0" + len(message).to_bytes(4, "big") + message
        stuck = []
        for _ in range(STUCK):
            stuck.append(stack.enter_context(connected(api, receive_bytes=4096)))
            stuck[-1].sendall(request(api, "FetchLogs", b"application/connect+proto", body))
            assert stuck[-1].recv(1) == b"H"  # it is served, as far as it reads

        followed = follow(api, job_id)
        for number in range(10):  # while they are stuck, the job goes on and others ask
            sizes[uids[0]] = worker.push(uids[0], b"more %d\n" % number, offset=sizes[uids[0]])
            began = time.monotonic()
            launch(api, cpu=100_000.0)
            assert time.monotonic() - began < 5.0
        for uid in uids:
            worker.end(uid)
        lines = [line for message in followed for line in message.lines]
        assert len(lines) == 3 * len(printed) + 10
        assert [line.data for line in lines if line.task == 1] == printed
        assert resident_bytes(pid) - before < STUCK * 2 * MB + 50 * MB
        connections = open_sockets(pid)
        for connection in stuck:
            connection.close()
        wait_for(lambda: open_sockets(pid) <= connections - STUCK, "those who hung up to be forgotten")


def follow(api: Api, job_id: str) -> Iterator[pb.FetchLogsResponse]:
    """A reader that reads."""
    return api.stream(pb.FetchLogsRequest(job_id=job_id, follow=True))


def resident_bytes(pid: int) -> int:
    """Memory that a process has now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_sockets(pid: int) -> int:
    """Sockets that a process has now."""
    found = 0
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            found += os.readlink(entry.path).startswith("socket:")
        except OSError:
            continue
    return found
