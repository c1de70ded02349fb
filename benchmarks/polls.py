"""What idle workers cost their controller: thousands of long polls that are held and say nothing new.

    python benchmarks/polls.py [--workers 5000] [--seconds 40] [--hold 20] [--json]

Each worker has one connection and one poll on it, held for 20 s, as the daemons do it; polls are spread over time. The
figure is processor time of the controller's process, all of it, as a share of one core.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.launches import controller, is_whole, processor_s, request_of, run

from fluster import Cluster
from fluster.cluster.ids import WorkerId
from fluster.cluster.tokens import new_secret, secret_sha256, worker_token
from fluster.rpc.client import ConnectClient
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

RESOURCES = types_pb.WorkerResources(cpu=8.0, memory_bytes=32 * 10**9, max_jobs=1_000, cgroup="v2")


def register(address: str, token: str, count: int) -> tuple[list[bytes], str]:
    """Lets so many workers join; the token of each, and the incarnation of the controller that they obey."""
    client = ConnectClient(address, "fluster.cluster.v1.ControllerService", token=token)
    asked = pb.CreateTokenRequest(request_id="bench", kind=pb.TokenKind.JOIN, uses=count)
    join = client.unary("CreateToken", asked, pb.CreateTokenResponse).token
    client.token = join
    secrets = [new_secret() for _ in range(count)]

    def registration(number: int) -> pb.RegisterWorkerRequest:
        return pb.RegisterWorkerRequest(
            request_id=f"{number}",
            worker_id=f"w-{number}",
            credential_sha256=secret_sha256(secrets[number]),
            incarnation="i",
            resources=RESOURCES,
        )

    def request(number: int) -> bytes:
        return request_of(address, join, "RegisterWorker", registration(number % count).to_binary())

    controller = client.unary("RegisterWorker", registration(0), pb.RegisterWorkerResponse).controller_incarnation
    client.close()
    run(address, 32, lambda done, _: done.acknowledged >= count, request)
    tokens = [worker_token(WorkerId(f"w-{number}"), secrets[number]).encode() for number in range(count)]
    return tokens, controller


class Workers:
    """Connections of workers that ask again as soon as they are answered."""

    def __init__(self, address: str, tokens: list[bytes], controller: str, hold_s: float) -> None:
        self._address = address
        self._controller = controller
        self._hold_s = hold_s
        self._selector = selectors.DefaultSelector()
        self._tokens = tokens
        self._seqs = [0] * len(tokens)
        self._versions = [0] * len(tokens)
        self.answers = 0

    def start(self) -> None:
        """All connect, and send their first polls spread over the time of one."""
        host, port = self._address.removeprefix("http://").split(":")
        began = time.perf_counter()
        for number in range(len(self._tokens)):
            connection = socket.create_connection((host, int(port)))
            self._selector.register(connection, selectors.EVENT_READ, [number, b""])
            self._ask(connection, number)
            while time.perf_counter() - began < self._hold_s * number / len(self._tokens):
                self.serve(0.005)

    def serve(self, seconds: float) -> None:
        """Answers are read, and asked again, for so long."""
        until = time.perf_counter() + seconds
        while (left := until - time.perf_counter()) > 0:
            for key, _ in self._selector.select(left):
                connection: Any = key.fileobj
                key.data[1] += connection.recv(65_536)
                if is_whole(key.data[1]):
                    self._hear(key.data[0], key.data[1])
                    key.data[1] = b""
                    self._ask(connection, key.data[0])

    def close(self) -> None:
        """All hang up."""
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _ask(self, connection: socket.socket, number: int) -> None:
        self._seqs[number] += 1
        body = pb.SyncWorkerRequest(
            incarnation="i",
            seq=self._seqs[number],
            known_epoch=1,
            known_incarnation=self._controller,
            resources=RESOURCES,
            wait_s=self._hold_s,
            desired_version=self._versions[number],
        )
        token = self._tokens[number].decode()
        connection.sendall(request_of(self._address, token, "SyncWorker", body.to_binary()))

    def _hear(self, number: int, answer: bytes) -> None:
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode(errors="replace"))
        if self._versions[number] == 0:
            chunk = answer.partition(b"\r\n\r\n")[2].partition(b"\r\n")
            self._versions[number] = pb.SyncWorkerResponse.from_binary(chunk[2][: int(chunk[0], 16)]).desired_version
        self.answers += 1


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=5_000)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--hold", type=float, default=20.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with controller(None) as (address, token, pid):
        workers = Workers(address, *register(address, token, options.workers), options.hold)
        try:
            workers.start()
            workers.serve(1.0)
            before, answers, began = processor_s(pid), workers.answers, time.perf_counter()
            workers.serve(options.seconds)
            took = time.perf_counter() - began
            used, polls = processor_s(pid) - before, workers.answers - answers
            with Cluster(address, token=token) as cluster:
                ready = sum(worker.status == "ready" for worker in cluster.workers())
        finally:
            workers.close()
    if ready != options.workers:
        raise RuntimeError(f"{ready} of {options.workers} workers are ready")
    figures = {
        "workers": options.workers,
        "polls_per_second": round(polls / took, 1),
        "percent_of_a_core": round(100 * used / took, 2),
        "us_per_poll": round(used / max(1, polls) * 1e6, 1),
    }
    print(json.dumps(figures) if options.json else "  ".join(f"{key} {value}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
