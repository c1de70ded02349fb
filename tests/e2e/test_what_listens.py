"""A cluster of this machine is reached from this machine alone."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from tests.e2e.lab import WITHIN_S, wait_until

from fluster import ActorServer, JobRequest, JobStatus, LocalCluster, current_cluster
from fluster.cluster.attempt import proc
from fluster.cluster.types import Entrypoint

_LISTENING = "0A"


class Greeter:
    def greet(self) -> str:
        return "hello"


def _serve() -> None:
    server = ActorServer(current_cluster())
    server.register("greeter", Greeter())
    server.serve()


def test_nothing_listens_beyond_loopback() -> None:
    with LocalCluster() as cluster:
        job = cluster.submit(JobRequest("actor", Entrypoint.from_callable(_serve)))
        wait_until(lambda: cluster.lookup_endpoints("greeter"), "its actor is registered", 2 * WITHIN_S)
        daemon = cluster._daemon.pid
        lock = cluster._state_dir / "workers/local-0/lock"
        worker = int(lock.read_text())
        pids = {daemon, worker, *proc.descendants(daemon), *proc.descendants(worker)}
        addresses = {address for pid in pids for address in _listened_on(pid)}
        # The controller's, the worker's own service's, the actor's.
        assert len(addresses) >= 3
        assert [each for each in addresses if not ipaddress.ip_address(each[0]).is_loopback] == []
        job.terminate()
        assert job.wait(timeout=WITHIN_S).status is JobStatus.STOPPED


def _listened_on(pid: int) -> set[tuple[str, int]]:
    """TCP addresses on which a process listens, and UDP ones on which it takes what comes from anybody."""
    try:
        inodes = {os.readlink(each)[8:-1] for each in Path(f"/proc/{pid}/fd").iterdir() if _is_socket(each)}
    except OSError:
        return set()
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[9] in inodes and (words[3] == _LISTENING or table.startswith("udp")):
                found.add(_address(words[1]))
    return found


def _is_socket(path: Path) -> bool:
    try:
        return os.readlink(path).startswith("socket:[")
    except OSError:
        return False


def _address(text: str) -> tuple[str, int]:
    """As the kernel's table has it: 32-bit words in the machine's order, hexadecimal."""
    host, port = text.split(":")
    words = [bytes.fromhex(host[i : i + 8])[::-1] for i in range(0, len(host), 8)]
    return str(ipaddress.ip_address(b"".join(words))), int(port, 16)
