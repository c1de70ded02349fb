"""The worker's process: puts its parts together, and ends as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import select
from pathlib import Path

from fluster.cluster.attempt import lease
from fluster.cluster.docker.engine import find_socket
from fluster.cluster.docker.mounts import Mount, check_mounts
from fluster.cluster.worker import network
from fluster.cluster.worker.config import WorkerConfig
from fluster.cluster.worker.docker_runtime import DockerRuntime
from fluster.cluster.worker.either_runtime import EitherRuntime
from fluster.cluster.worker.ending import StopReason
from fluster.cluster.worker.gpu import GpuInventory, find_gpus
from fluster.cluster.worker.jobusers import UserRange
from fluster.cluster.worker.joined import serve_joined
from fluster.cluster.worker.lifecycle import GRACE_S
from fluster.cluster.worker.manager import JobManager
from fluster.cluster.worker.parts import Ending, OwnApi, Parts, spawn
from fluster.cluster.worker.process_runtime import ProcessRuntime
from fluster.cluster.worker.runtime import Runtime
from fluster.cluster.worker.state import WorkerState
from fluster.cluster.worker.trial import usable_users
from fluster.cluster.worker.variables import Surroundings

_STANDALONE_JOBS = 10


def run(config: WorkerConfig) -> int:
    """Serves until told to end; the exit code.

    SIGTERM and SIGINT end a standalone worker with its jobs; a joined worker's attempts go on, for it to adopt when it
    is started again on its state directory.

    Raises:
        AlreadyExists: Another worker runs on the state directory, or has this one's name.
        NotPermitted: The controller accepts neither credential nor join token.
        ValueError: An option breaks its rule.
    """
    if config.runtime not in ("auto", "process", "docker"):
        raise ValueError(f"unknown runtime {config.runtime!r}; known are auto, process, docker")
    if not (network.is_loopback(config.host) or config.insecure_plaintext_network):
        raise ValueError(
            f"{config.host} is reachable from the network, and tokens would cross it in plain text; bind to loopback,"
            " or give --insecure-plaintext-network where the network itself is trusted"
        )
    if config.lifeline_fd is not None and _is_cut(config.lifeline_fd):
        return 0  # whoever wanted it went while it was starting, and has removed the directory that it would make again
    users = None if config.job_users is None else usable_users(config)
    asyncio.run(_serve(config, users))
    return 0


def _is_cut(lifeline_fd: int) -> bool:
    looking = select.poll()
    looking.register(lifeline_fd, select.POLLIN)  # nothing is ever written to it: what can be read is its end
    return bool(looking.poll(0))


def end(state_dir: Path) -> None:
    """Ends everything that a worker, itself gone, left running on its state directory.

    Raises:
        AlreadyExists: The worker is there.
    """
    asyncio.run(_end(state_dir))


async def _serve(config: WorkerConfig, users: UserRange | None) -> None:
    async with contextlib.AsyncExitStack() as stack:
        # Unlocked by the end of this process alone: whoever waits for the lock waits for the process.
        state = WorkerState(config.state_dir, worker_id=config.worker_id)
        ending = Ending(config)
        runtime = _runtime(config)
        warm = spawn(stack, runtime.prepare())
        gpus = await asyncio.to_thread(find_gpus, config.gpus) if config.gpus != 0 else GpuInventory()
        parts = Parts(config, stack, state, ending, runtime, gpus, warm, users)
        if config.controller is None:
            await _serve_alone(parts)
        else:
            await serve_joined(parts, config.controller)


async def _serve_alone(parts: Parts) -> None:
    config = parts.config
    has_gpus = parts.gpus.count > 0
    around = Surroundings(parts.state.identity.worker_id, base=dict(os.environ), has_gpus=has_gpus)
    manager = JobManager(
        parts.runtime,
        parts.max_jobs(_STANDALONE_JOBS),
        state_dir=config.state_dir,
        surroundings=around,
        gpus=parts.gpus,
        python=config.python,
        cache_dir=config.cache_dir,
        cache_cap_bytes=config.cache_cap_bytes,
        users=parts.users,
    )
    parts.stack.push_async_callback(manager.close)
    await manager.open()
    api = OwnApi(config, parts.state, manager, joined=False)
    parts.stack.push_async_callback(api.stop)
    await api.start(config.port)
    print(api.announcement(), flush=True)
    await parts.ending.wait(manager, parts.warm)
    await manager.end_all(StopReason.REQUESTED, grace_s=0.0 if parts.ending.by_lifeline else GRACE_S)


async def _end(state_dir: Path) -> None:
    with contextlib.closing(WorkerState(state_dir)):
        manager = JobManager(_runtime(WorkerConfig(state_dir=state_dir)), state_dir=state_dir)
        try:
            await manager.end_all(StopReason.LEAVING, grace_s=0.0)
        finally:
            await manager.close()


def _mounts(config: WorkerConfig) -> list[Mount]:
    if config.mounts and config.runtime == "process":
        raise ValueError("--mount is for containers, and --runtime process has none")
    mounts = [Mount.parse(each) for each in config.mounts]
    if mounts:
        check_mounts(mounts, [find_socket(), config.state_dir])
    return mounts


def _runtime(config: WorkerConfig) -> Runtime:
    # The same for a restarted worker: its attempts' control groups bear it.
    name = hashlib.sha256(os.fsencode(config.state_dir.resolve())).hexdigest()[:12]
    lease_file = None if config.controller is None else config.state_dir / lease.NAME
    containers = DockerRuntime(
        name,
        image=config.image,
        mounts=_mounts(config),
        cpu_quota=config.cpu_quota,
        lease=lease_file,
        lifeline_fd=config.lifeline_fd,
    )
    if config.runtime == "docker":
        return containers
    processes = ProcessRuntime(
        name, python=config.python, cpu_quota=config.cpu_quota, lifeline_fd=config.lifeline_fd, lease=lease_file
    )
    return processes if config.runtime == "process" else EitherRuntime(processes, containers)
