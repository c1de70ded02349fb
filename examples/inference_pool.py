"""Serves a model from several actors: requests go round them, new weights go to all of them.

    python examples/inference_pool.py [--servers 3] [--requests 300]

The model is a line, so that you can see at once which weights answered. Each server is a job of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence

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

SMALL = ResourceConfig.with_cpu(cpu=0.5, memory="256MB")


class Model:
    """Answers ``slope * x + offset``. One call at a time, as a model on an accelerator would."""

    def __init__(self, slope: float, offset: float) -> None:
        self.slope, self.offset = slope, offset
        self.version = 1

    def predict(self, x: float) -> tuple[float, int]:
        """The answer, and which process gave it."""
        return self.slope * x + self.offset, os.getpid()

    def update(self, slope: float, offset: float) -> int:
        """Takes new weights; gives their version."""
        self.slope, self.offset = slope, offset
        self.version += 1
        return self.version


def serve() -> None:
    """What each job runs, until it is stopped."""
    server = ActorServer(current_cluster())
    server.register("model", Model(slope=2.0, offset=1.0))
    server.serve()


def run(cluster: Cluster, servers: int, requests: int) -> None:
    """Launches the servers, asks them, gives them new weights, asks them again."""
    request = JobRequest("model-server", Entrypoint.from_callable(serve), SMALL)
    jobs = cluster.launch_group([request] * servers)
    try:
        pool = ClusterResolver(cluster).lookup("model", Model)
        pool.wait_for_size(servers, timeout=60)

        # Each `call()` goes to the next server; `submit` does not wait for the answer.
        futures = [pool.call().predict.submit(float(x)) for x in range(requests)]  # type: ignore[attr-defined]
        answers = [future.result() for future in futures]
        assert [y for y, _ in answers] == [2.0 * x + 1.0 for x in range(requests)]
        shares = Counter(pid for _, pid in answers)
        print(f"{requests} requests, by server: {sorted(shares.values())}")

        versions = [future.result() for future in pool.broadcast().update(3.0, -1.0)]
        print(f"new weights on {len(versions)} servers: versions {versions}")
        after = [pool.call().predict(10.0)[0] for _ in range(servers)]
        print(f"f(10) on each server: {after}")
    finally:
        for job in jobs:
            cluster.terminate(job)
        cluster.wait(jobs)


def main(argv: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(description="Serves a model from several actors.")
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--requests", type=int, default=300)
    arguments = parser.parse_args(argv)
    with LocalCluster(cpu=max(2, arguments.servers)) as cluster:
        run(cluster, arguments.servers, arguments.requests)
    return 0


if __name__ == "__main__":
    sys.exit(main())
