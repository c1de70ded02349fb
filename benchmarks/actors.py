"""Calls to actors and their start, beside the machine's limits and, where they are installed, Ray and Dask.

    python -m benchmarks.actors [--ray-python PATH] [--dask-python PATH] [--tcp] [--rounds 5] [--json]

Run it in the repository's root. Every actor is a process of its own. All contestants take turns, and each figure is the
median of its rounds: what else the machine does hits all of them, so the ratios are what counts. With `--tcp` Fluster
takes every actor for one on another host; without, one row does. Arrays need numpy in this interpreter.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.peers import (
    Calculator,
    Peer,
    Target,
    Work,
    asked,
    compare,
    gigabytes_per_second,
    median_s,
    nothing,
    options,
    peer,
    per_second,
    random_floats,
    say,
    sends_of,
    show,
)

from fluster import (
    ActorServer,
    Cluster,
    ClusterResolver,
    Entrypoint,
    JobRequest,
    LocalCluster,
    ResourceConfig,
    WorkerPool,
    current_cluster,
)

MESSAGE = 64
"""Bytes of a ping, about those of a small call."""
OUTSTANDING = 1000
ARRAYS = {1: 8.0, 10: 2.5, 100: 1.1}
"""Megabytes, and how many times as fast as a warm Ray to be."""
SMALL = ResourceConfig.with_cpu(cpu=0.1, memory="1GB")

ECHO = f"""
import socket, sys
with socket.socket(fileno=int(sys.argv[1])) as connection:
    while message := connection.recv({MESSAGE}):
        connection.sendall(message)
"""


def serve_calculator(name: str) -> None:
    """A job: one actor, until it is told to end."""
    server = ActorServer(current_cluster())
    server.register(name, Calculator())
    server.serve()


# Fluster


class Contestant:
    """Fluster: a cluster, one actor reached each way, and a pool of one worker."""

    def __init__(self, cluster: Cluster, pool: WorkerPool, *, only_tcp: bool) -> None:
        self._cluster = cluster
        self._pool = pool
        self._numbers = itertools.count()
        self.tcp = self._reach(same_host=False)
        self.near = self.tcp if only_tcp else self._reach(same_host=True)

    def _reach(self, *, same_host: bool) -> Any:
        """A proxy of a new actor whose connection is made already."""
        name = f"calculator-{next(self._numbers)}"
        self._cluster.launch(JobRequest(name, Entrypoint.from_callable(serve_calculator, name), SMALL))
        with taken_for(same_host):
            actors = ClusterResolver(self._cluster).lookup(name)
            actors.wait_for_size(1)
            proxy: Any = actors.call()
            proxy.add(1, 2)
        return proxy

    def call(self, proxy: Any) -> float:
        """Median microseconds of a call that is waited for."""
        return 1e6 * median_s(lambda: proxy.add(1, 2), 2000)

    def futures(self) -> float:
        """Calls a second, all under way before the first is waited for."""

        def run() -> None:
            for future in [self.near.add.submit(i, i) for i in range(OUTSTANDING)]:
                future.result()

        return per_second(run, OUTSTANDING)

    def mapped(self) -> float:
        """Tasks a second of one worker."""

        def run() -> None:
            for future in self._pool.map(nothing, range(OUTSTANDING)):
                future.result()

        return per_second(run, OUTSTANDING)

    def array(self, megabytes: int) -> float:
        """Gigabytes a second of an argument."""
        return gigabytes_per_second(self.near.length, megabytes)

    def start(self) -> float:
        """Milliseconds from the launch of a job with an actor to the answer to its first call."""
        name = f"started-{next(self._numbers)}"
        started = time.perf_counter()
        job = self._cluster.submit(JobRequest(name, Entrypoint.from_callable(serve_calculator, name), SMALL))
        actors = ClusterResolver(self._cluster).lookup(name)
        actors.wait_for_size(1)
        proxy: Any = actors.call()
        proxy.add(1, 2)
        taken = time.perf_counter() - started
        job.terminate()
        job.wait()
        return 1e3 * taken


@contextmanager
def taken_for(same_host: bool) -> Iterator[None]:
    """Whether actors that are connected to meanwhile are tried as ones of this host."""
    line: Any = importlib.import_module("fluster.actor.line")
    before, line.SAME_HOST = line.SAME_HOST, same_host
    try:
        yield
    finally:
        line.SAME_HOST = before


# The machine's limits


@contextmanager
def echo(connections: tuple[socket.socket, socket.socket]) -> Iterator[socket.socket]:
    """One end of a connection; at the other end a process sends everything back."""
    ours, theirs = connections
    command = [sys.executable, "-c", ECHO, str(theirs.fileno())]
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        try:
            yield ours
        finally:
            ours.close()
            process.wait(10)


def over_tcp() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    for end in (ours, theirs):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs


def ping_pong_us(connection: socket.socket) -> float:
    """Median microseconds of a message there and back."""
    message = os.urandom(MESSAGE)

    def ping() -> None:
        connection.sendall(message)
        left = MESSAGE
        while left:
            left -= len(connection.recv(left))

    return 1e6 * median_s(ping, 2000)


def memcpy(megabytes: int) -> float:
    """Gigabytes a second of copying an array to memory that was used before."""
    numpy: Any = importlib.import_module("numpy")
    array = random_floats(megabytes)
    target = numpy.ones_like(array)
    return megabytes / 1e3 / median_s(lambda: numpy.copyto(target, array), sends_of(megabytes))


# What is compared


def works(fluster: Contestant, echoes: dict[str, socket.socket], ray: Peer | None, dask: Peer | None) -> list[Work]:
    """All rows."""
    rows = [small_calls(fluster, echoes, ray, dask), outstanding(fluster, ray, dask)]
    if importlib.util.find_spec("numpy"):
        rows += [arrays(fluster, ray, megabytes, target) for megabytes, target in ARRAYS.items()]
    else:
        say("Arrays are left out: no numpy in this interpreter")
    start = Work("actor start to the answer to its first call", "ms", {"Fluster": fluster.start})
    start.measures.update(asked(ray, "Ray", "start"))
    return [*rows, start]


def small_calls(fluster: Contestant, echoes: dict[str, socket.socket], ray: Peer | None, dask: Peer | None) -> Work:
    """One call after the other."""
    near = {} if fluster.near is fluster.tcp else {"Fluster, same host": lambda: fluster.call(fluster.near)}
    measures: dict[str, Callable[[], float]] = {
        "64 bytes there and back over a Unix socket": lambda: ping_pong_us(echoes["unix"]),
        "64 bytes there and back over TCP": lambda: ping_pong_us(echoes["tcp"]),
        **near,
        "Fluster, TCP": lambda: fluster.call(fluster.tcp),
        **asked(ray, "Ray", "call", 300),
        **asked(dask, "Dask", "call", 100),
    }
    targets = (
        Target("Fluster, same host", "Ray", 20),
        Target("Fluster, TCP", "Ray", 8),
        Target("Fluster, same host", "64 bytes there and back over a Unix socket", 1 / 3),
        Target("Fluster, TCP", "64 bytes there and back over TCP", 1 / 4),
    )
    return Work("small synchronous call, median", "us", measures, targets)


def outstanding(fluster: Contestant, ray: Peer | None, dask: Peer | None) -> Work:
    """Many calls under way."""
    measures: dict[str, Callable[[], float]] = {
        "Fluster, futures": fluster.futures,
        "Fluster, WorkerPool.map on one worker": fluster.mapped,
        **asked(ray, "Ray", "outstanding", OUTSTANDING),
        **asked(dask, "Dask (200)", "outstanding", 200),
    }
    targets = (Target("Fluster, futures", "Ray", 20), Target("Fluster, WorkerPool.map on one worker", "Ray", 100))
    return Work(f"{OUTSTANDING:,} calls outstanding", "calls/s", measures, targets)


def arrays(fluster: Contestant, ray: Peer | None, megabytes: int, target: float) -> Work:
    """One argument of so many megabytes."""
    measures: dict[str, Callable[[], float]] = {
        "copy in memory": lambda: memcpy(megabytes),
        "Fluster": lambda: fluster.array(megabytes),
        **asked(ray, "Ray, warm", "array", megabytes),
    }
    targets = (Target("Fluster", "Ray, warm", target), Target("Fluster", "copy in memory", 1 / 2))
    return Work(f"argument of {megabytes} MB", "GB/s", measures, targets)


def main() -> None:
    """Measures and prints."""
    parser = options(__doc__, rounds=5)
    parser.add_argument("--tcp", action="store_true", help="Fluster never takes an actor for one of this host")
    given = parser.parse_args()
    with ExitStack() as stack:
        ray = stack.enter_context(peer("ray", given.ray_python))
        dask = stack.enter_context(peer("dask", given.dask_python))
        echoes = {
            "unix": stack.enter_context(echo(socket.socketpair())),
            "tcp": stack.enter_context(echo(over_tcp())),
        }
        cluster = stack.enter_context(LocalCluster(cpu=8))
        pool = stack.enter_context(WorkerPool(cluster, 1, SMALL))
        pool.wait_for_workers()
        fluster = Contestant(cluster, pool, only_tcp=given.tcp)
        if ray is not None:
            ray.ask("touch")
        compared = compare(works(fluster, echoes, ray, dask), rounds=given.rounds, seconds=given.seconds)
    show(compared, as_json=given.json)


if __name__ == "__main__":
    main()
