"""A parameter store: an actor that holds large arrays, workers that fetch them and bring changes.

    python examples/parameter_store.py [--megabytes 100] [--workers 2]

Between processes of one machine arrays travel through shared memory, not through a socket. With NumPy installed the
parameters are an `ndarray`, else a `bytearray`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from fluster import (
    ActorServer,
    Cluster,
    ClusterResolver,
    Entrypoint,
    JobRequest,
    LocalCluster,
    ResourceConfig,
    current_cluster,
)

numpy: Any = None
try:
    numpy = importlib.import_module("numpy")
except ModuleNotFoundError:
    pass

MB = 1_000_000


def zeros(size_bytes: int) -> Any:
    """Parameters to begin with."""
    return bytearray(size_bytes) if numpy is None else numpy.zeros(size_bytes, dtype=numpy.uint8)


def large(array: Any) -> Any:
    """As what an array travels beside the message instead of inside it; an `ndarray` does so by itself."""
    if numpy is not None:
        return array
    from pickle import PickleBuffer

    return PickleBuffer(array)


class ParameterStore:
    """Holds named arrays. What it gives and gets are copies: nobody changes what another one has."""

    def __init__(self) -> None:
        self._arrays: dict[str, Any] = {}
        self._versions: dict[str, int] = {}

    def put(self, name: str, array: Any) -> int:
        """Keeps an array; gives its version."""
        self._arrays[name] = array
        self._versions[name] = self._versions.get(name, 0) + 1
        return self._versions[name]

    def get(self, name: str) -> Any:
        """The array as it is now."""
        return large(self._arrays[name])

    def version(self, name: str) -> int:
        """Of the array; 0 if there is none."""
        return self._versions.get(name, 0)


def serve() -> None:
    """What the store's job runs, until it is stopped."""
    server = ActorServer(current_cluster())
    server.register("parameters", ParameterStore())
    server.serve()


def train(worker: int) -> tuple[float, float]:
    """Fetches the parameters, changes them and brings them back; gives the seconds each took."""
    store = ClusterResolver(current_cluster()).lookup("parameters", ParameterStore).call()
    began = time.perf_counter()
    weights = store.get("weights")
    fetched = time.perf_counter()
    weights[worker] = worker + 1  # it is this process's own copy, and can be changed
    changed = time.perf_counter()
    store.put(f"weights-of-{worker}", large(weights))
    return fetched - began, time.perf_counter() - changed


def run(cluster: Cluster, size_bytes: int, workers: int) -> None:
    """Launches the store, fills it, and has workers use it one after the other."""
    memory = 4 * size_bytes + 500 * MB
    store_job = cluster.submit(
        JobRequest("parameter-store", Entrypoint.from_callable(serve), ResourceConfig.with_cpu(cpu=0.5, memory=memory))
    )
    try:
        pool = ClusterResolver(cluster).lookup("parameters", ParameterStore)
        pool.wait_for_size(1, timeout=60)
        store = pool.call()
        print(f"version {store.put('weights', large(zeros(size_bytes)))} of {size_bytes / MB:.0f} MB is there")
        for worker in range(workers):
            request = JobRequest(
                f"trainer-{worker}",
                Entrypoint.from_callable(train, worker),
                ResourceConfig.with_cpu(cpu=0.5, memory=memory),
            )
            got_s, put_s = cluster.submit(request).result(timeout=60)
            print(
                f"worker {worker}: fetched at {size_bytes / 1e9 / got_s:.1f} GB/s,"
                f" brought back at {size_bytes / 1e9 / put_s:.1f} GB/s"
            )
        changed = [int(store.get(f"weights-of-{worker}")[worker]) for worker in range(workers)]
        print(f"what each worker changed: {changed}")
    finally:
        store_job.terminate()
        store_job.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(description="A parameter store for large arrays.")
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args(argv)
    with LocalCluster(cpu=2) as cluster:
        run(cluster, arguments.megabytes * MB, arguments.workers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
