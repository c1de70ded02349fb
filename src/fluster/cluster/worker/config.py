"""How a worker's daemon is run."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from fluster.cluster.worker.cache import DEFAULT_CAP_BYTES


def default_state_dir() -> Path:
    """Of a worker started by hand."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "fluster" / "worker"


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What `worker serve` is told.

    Attributes:
        controller: Its address; `None`: a standalone worker.
        token_file: Holds a join token, for a worker the controller does not know yet; of a standalone worker the
            token its callers show (made when there is none).
        ca_file: The authority that vouches for the controller; `None`: what the join token names, else the system's.
        state_dir: Kept: who this worker is, and its attempts.
        runtime: "auto": processes, and containers for attempts that ask for an image; or "process", or "docker".
        image: Of attempts in containers that ask for none; `None`: a public Python image.
        mounts: Directories of this machine that containers see, each as `Mount.parse` takes it.
        python: Interpreter of callables that ask for none; `None`: the daemon's own.
        cpu, memory_bytes: What is offered; `None`: the machine's.
        gpus: How many, or "auto" to look.
        cpu_quota: Attempts get no more than their cpu even when cores are idle.
        max_jobs: How many attempts at a time; `None`: 10 of a standalone worker, 1,000 under a controller.
        worker_id: `None`: made once and kept.
        allocation_id: Of the backend that started this worker.
        lifeline_fd: Once it reads end of file everything of this worker ends at once.
        exit_when_idle_s: End when nothing runs and there has been no controller for so long, and for a lease; `None`:
            wait for one forever.
        cache_dir: Of environments and workspaces; `None`: this user's on this machine, shared by its workers.
        cache_cap_bytes: What environments may take there; those in use are kept beyond it.
        host, port: Of the worker's own service; port 0: any.
        job_users: `FIRST-LAST`: attempts run as these users, each as one of its own; `None`: as the worker's own user.
        job_groups: Names or numbers of groups that these are in as well.
        insecure_plaintext_network: The host may be one that the network reaches.
        advertise_host: Where its jobs can be reached; `None`: as the controller sees this machine.
    """

    controller: str | None = None
    token_file: Path | None = None
    ca_file: Path | None = None
    state_dir: Path = field(default_factory=default_state_dir)
    runtime: str = "auto"
    image: str | None = None
    mounts: tuple[str, ...] = ()
    python: str | None = None
    cpu: float | None = None
    memory_bytes: int | None = None
    gpus: int | str = "auto"
    cpu_quota: bool = False
    max_jobs: int | None = None
    worker_id: str | None = None
    allocation_id: str = ""
    lifeline_fd: int | None = None
    exit_when_idle_s: float | None = None
    cache_dir: Path | None = None
    cache_cap_bytes: int = DEFAULT_CAP_BYTES
    host: str = "127.0.0.1"
    port: int = 0
    job_users: str | None = None
    job_groups: tuple[str, ...] = ()
    insecure_plaintext_network: bool = False
    advertise_host: str | None = None
