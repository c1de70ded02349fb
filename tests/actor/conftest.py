"""Servers and callers for the tests of actors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.actor.actors import Worker

from fluster import ActorPool, ActorServer, Cluster, FixedResolver
from fluster.actor import line

ROOT = Path(__file__).parents[2]


class Here:
    """A server of this process with one `Worker`, and a caller of it."""

    def __init__(self, max_concurrency: int = 1, **options: Any) -> None:
        self.worker = Worker()
        self.server = ActorServer(None, max_concurrency=max_concurrency, **options)
        self.server.register("worker", self.worker)
        self.server.serve_background()
        self.resolver = FixedResolver({"worker": self.server.address}, access_key=self.server.access_key)

    @property
    def pool(self) -> ActorPool[Any]:
        return self.resolver.lookup("worker")

    def call(self, timeout: float | None = 20.0) -> Any:
        return self.pool.call(timeout)

    def close(self) -> None:
        self.worker.gate.set()
        self.worker.kept.clear()
        self.resolver.close()
        self.server.shutdown(grace_period=2.0)


class There:
    """A server in a process of its own, and a caller of it."""

    def __init__(self, max_concurrency: int = 1, port: int = 0, python: str = sys.executable) -> None:
        arguments = [python, "-m", "tests.actor.actors", str(port), str(max_concurrency)]
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=dict(os.environ)
        )
        assert self.process.stdout is not None
        self.address, self.access_key = self.process.stdout.readline().split()
        self.resolver = FixedResolver({"worker": self.address}, access_key=self.access_key)

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def pool(self) -> ActorPool[Any]:
        return self.resolver.lookup("worker")

    def call(self, timeout: float | None = 20.0) -> Any:
        return self.pool.call(timeout)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        if number == signal.SIGSTOP:
            status = Path(f"/proc/{self.process.pid}/stat")
            eventually(lambda: status.read_bytes().rpartition(b")")[2].split()[0] == b"T")

    def close(self) -> None:
        self.resolver.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture
def here() -> Iterator[Here]:
    server = Here()
    yield server
    server.close()


@pytest.fixture
def here_4() -> Iterator[Here]:
    server = Here(max_concurrency=4)
    yield server
    server.close()


@pytest.fixture
def there() -> Iterator[There]:
    server = There()
    yield server
    server.close()


@pytest.fixture(params=["unix", "tcp"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Callers of this process use the Unix socket and shared memory, or TCP."""
    monkeypatch.setattr(line, "SAME_HOST", request.param == "unix")
    return str(request.param)


@pytest.fixture
def tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "SAME_HOST", False)


@pytest.fixture(scope="session")
def shared_cluster(shared_cluster: Cluster) -> Cluster:
    """That of all tests, once it has what renews leases."""
    with ActorServer(shared_cluster) as server:
        server.register("first", Worker())
    shared_cluster._rpc.close_idle()
    return shared_cluster


def eventually(condition: Callable[[], Any], within_s: float = 10.0) -> None:
    """Waits until the condition holds."""
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, "it did not come to that in time"
        time.sleep(0.005)
