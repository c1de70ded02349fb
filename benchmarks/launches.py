"""Acknowledged launches a second over HTTP: 64 clients, one controller process, every commit synced.

    python benchmarks/launches.py [--clients 64] [--seconds 5] [--fill 10000] [--json]

Each client keeps one connection and launches its next job when the last one is acknowledged. Beside it, in the same
run: the same clients with a call that does nothing (the ceiling of the HTTP and RPC layers here), and the cost of one
synced write. Clients and controller share the machine, so what clients cost counts against the figure; they speak
HTTP by hand to cost little.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from protobuf import Oneof

from fluster import Cluster
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

SERVICE = "fluster.cluster.v1.ControllerService"
PLACE = "@" * 32
"""Stands for the request id in a prepared request."""


@dataclass(slots=True)
class Count:
    """What came of a run."""

    acknowledged: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.acknowledged / self.seconds

    def show(self) -> dict[str, float]:
        """The figures."""
        cuts = statistics.quantiles(self.latencies, n=100)
        return {
            "per_second": round(self.rate, 1),
            "calls": self.acknowledged,
            "p50_ms": round(cuts[49] * 1000, 2),
            "p99_ms": round(cuts[98] * 1000, 2),
        }


@contextmanager
def controller(profile: str | None) -> Iterator[tuple[str, str, int]]:
    """Address, token and pid of a controller without workers: what is launched waits."""
    with tempfile.TemporaryDirectory(prefix="fluster-bench-") as directory:
        command = [sys.executable, "-m", "fluster.cluster.controller", "serve"]
        command += ["--state-dir", directory, "--backend", "none", "--port", "0"]
        if profile:
            command[1:1] = ["-m", "cProfile", "-o", profile]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
            try:
                assert process.stdout is not None
                said = json.loads(process.stdout.readline())
                yield said["address"], Path(said["token_file"]).read_text().strip(), process.pid
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(30)


def job_spec() -> types_pb.JobSpec:
    """A small job as `Cluster.submit` sends it: a pickled function of some 600 bytes."""
    import hashlib

    pickled = os.urandom(600)
    payload = types_pb.Payload(
        content=Oneof[Literal["inline"], bytes]("inline", pickled), sha256=hashlib.sha256(pickled).hexdigest()
    )
    return types_pb.JobSpec(
        name="bench",
        entrypoint=types_pb.EntrypointSpec(kind=Oneof[Literal["callable"], types_pb.Payload]("callable", payload)),
        resources=types_pb.ResourceSpec(cpu=1.0, memory_bytes=2 * 10**9, memory="2GB", replicas=1),
        environment=types_pb.EnvironmentSpec(env_vars={"LEVEL": "info"}, submitter_python="3.11"),
        retry=types_pb.RetrySpec(max_preemptions=100, backoff_s=1.0, max_backoff_s=60.0),
        priority=types_pb.Priority.NORMAL,
        num_tasks=1,
    )


def request_of(address: str, token: str, method: str, body: bytes) -> bytes:
    """A whole HTTP request."""
    head = (
        f"POST /{SERVICE}/{method} HTTP/1.1\r\nHost: {address.removeprefix('http://')}\r\n"
        f"Content-Type: application/proto\r\nContent-Length: {len(body)}\r\nConnect-Protocol-Version: 1\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    )
    return head.encode() + body


def run(address: str, clients: int, until: Callable[[Count, float], bool], make: Callable[[int], bytes]) -> Count:
    """Each client sends its next request when it has its answer."""
    host, port = address.removeprefix("http://").split(":")
    count, number = Count(), 0
    with selectors.DefaultSelector() as selector:
        sockets = [socket.create_connection((host, int(port))) for _ in range(clients)]
        try:
            started = time.perf_counter()
            for each in sockets:
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(each, selectors.EVENT_READ, [time.perf_counter(), b""])
                each.sendall(make(number))
                number += 1
            waiting = clients
            while waiting:
                for key, _ in selector.select():
                    connection: Any = key.fileobj
                    key.data[1] += connection.recv(65536)
                    if not is_whole(key.data[1]):
                        continue
                    now = time.perf_counter()
                    if not key.data[1].startswith(b"HTTP/1.1 200"):
                        raise RuntimeError(key.data[1].decode(errors="replace"))
                    count.acknowledged += 1
                    count.latencies.append(now - key.data[0])
                    if until(count, now - started):
                        waiting -= 1
                        selector.unregister(connection)
                        continue
                    key.data[:] = [now, b""]
                    connection.sendall(make(number))
                    number += 1
            count.seconds = time.perf_counter() - started
        finally:
            for each in sockets:
                each.close()
    return count


def is_whole(response: bytes) -> bool:
    """Whether an HTTP response has come to its end."""
    head, separator, body = response.partition(b"\r\n\r\n")
    if not separator:
        return False
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    return len(body) >= int(length) if length else body.endswith(b"0\r\n\r\n")  # else it comes in chunks


def synced_write_s() -> float:
    """Median seconds of appending a page to a file and syncing it: what a commit costs at least here."""
    times = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(200):
            started = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def processor_s(pid: int) -> float:
    """Processor seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--fill", type=int, default=0, help="jobs that wait already before it is measured")
    parser.add_argument("--profile", help="write a profile of the controller here (it is slower then)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures: dict[str, Any] = {"clients": options.clients, "synced_write_ms": round(synced_write_s() * 1000, 3)}
    with controller(options.profile) as (address, token, pid):
        empty = request_of(address, token, "ListTokens", b"")
        body = pb.LaunchJobRequest(request_id=PLACE, spec=job_spec()).to_binary()
        launch = request_of(address, token, "LaunchJob", body)
        assert launch.count(PLACE.encode()) == 1
        ids = iter(range(10**9))

        def next_launch(_: int) -> bytes:
            return launch.replace(PLACE.encode(), f"{next(ids):032d}".encode())

        def for_seconds(_: Count, elapsed: float) -> bool:
            return bool(elapsed >= options.seconds)

        if options.fill:
            run(address, options.clients, lambda count, _: count.acknowledged >= options.fill, next_launch)
        before = processor_s(pid)
        ceiling = run(address, options.clients, for_seconds, lambda _: empty)
        figures["empty_call"] = {**ceiling.show(), "controller_us": _us(pid, before, ceiling)}
        before = processor_s(pid)
        launched = run(address, options.clients, for_seconds, next_launch)
        figures["launch"] = {**launched.show(), "controller_us": _us(pid, before, launched)}
        with Cluster(address, token=token) as cluster:
            there = len(cluster.list_jobs())
        if there != next(ids):
            raise RuntimeError(f"{there} jobs are there, {next(ids) - 1} were acknowledged")
    if options.json:
        print(json.dumps(figures))
    else:
        print(f"{options.clients} clients, synced write {figures['synced_write_ms']} ms")
        for name in ("empty_call", "launch"):
            print(f"{name:12}" + "  ".join(f"{key} {value}" for key, value in figures[name].items()))


def _us(pid: int, before: float, count: Count) -> float:
    return round((processor_s(pid) - before) / count.acknowledged * 1e6, 1)


if __name__ == "__main__":
    main()
