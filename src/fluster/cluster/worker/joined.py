"""A worker that belongs to a controller."""

from __future__ import annotations

import asyncio
import os

from fluster.cluster.attempt import proc
from fluster.cluster.worker import files, machine, network
from fluster.cluster.worker.credentials import Credentials
from fluster.cluster.worker.ending import StopReason
from fluster.cluster.worker.link import ControllerLink
from fluster.cluster.worker.logs import LogShipper
from fluster.cluster.worker.manager import JobManager
from fluster.cluster.worker.parts import OwnApi, Parts
from fluster.cluster.worker.ship import ToController
from fluster.cluster.worker.state import lease_clock, steady_clock
from fluster.cluster.worker.sync import Sync
from fluster.cluster.worker.variables import Surroundings
from fluster.rpc.gen.fluster.cluster.v1.controller_pb import RegisterWorkerRequest
from fluster.rpc.gen.fluster.cluster.v1.types_pb import WorkerResources

# What cpu and memory do not bound is bounded by processes: each attempt has two.
_MAX_JOBS = 1000
_LOOK_S = 3600.0


async def serve_joined(parts: Parts, controller: str) -> None:
    """Returns when this worker is told to end, or let go by its controller.

    Raises:
        NotPermitted: The controller accepts neither credential nor join token.
        AlreadyExists: Another worker has this one's name.
    """
    config, state = parts.config, parts.state
    files.come_back(config.state_dir)
    credentials = Credentials(config, controller)
    link = ControllerLink(controller, state.identity.token, credentials)
    parts.stack.callback(link.close)
    advertise_host = config.advertise_host or network.address_towards(controller)
    port = config.port or network.free_port(config.host)
    clock = lease_clock(same_machine=network.is_loopback(advertise_host))
    state.tell_lease(clock)
    sync = Sync(
        link,
        state,
        _about(parts, network.joined(config.host, port), advertise_host),
        join_token=credentials.join_token,
        clock=steady_clock(clock),
        idle_exit_s=config.exit_when_idle_s,
    )
    shipper = LogShipper(link.push_logs)
    manager = JobManager(
        parts.runtime,
        parts.max_jobs(_MAX_JOBS),
        state_dir=config.state_dir,
        surroundings=Surroundings(
            state.identity.worker_id,
            link.address,
            advertise_host,
            dict(os.environ),
            has_gpus=parts.gpus.count > 0,
            ca_file=credentials.ca_file,
        ),
        gpus=parts.gpus,
        python=config.python,
        delivery=ToController(link, shipper),
        on_change=sync.changed,
        may_start=sync.has_lease,
        cache_dir=config.cache_dir,
        cache_cap_bytes=config.cache_cap_bytes,
        users=parts.users,
    )
    parts.stack.push_async_callback(manager.close)
    renewing = parts.spawn(_keep_certificate(credentials, sync))
    syncing, shipping = parts.spawn(sync.run(manager)), parts.spawn(shipper.run())
    api = OwnApi(config, state, manager, joined=True)
    parts.stack.push_async_callback(api.stop)
    serving = parts.spawn(_serve_own_api(api, port, sync))
    await parts.ending.wait(manager, parts.warm, shipping, serving, renewing, until=syncing)
    await _end(parts, manager, has_left=syncing.done() and sync.has_left)


async def _serve_own_api(api: OwnApi, port: int, sync: Sync) -> None:
    await api.start(port)
    sync.serves_at(api.address)
    print(api.announcement(), flush=True)


async def _keep_certificate(credentials: Credentials, sync: Sync) -> None:
    """Has the certificate renewed in time, where this worker shows one."""
    while True:
        await asyncio.sleep(_LOOK_S)
        if credentials.shows_one and await asyncio.to_thread(credentials.due):
            sync.introduce_again()


async def _end(parts: Parts, manager: JobManager, *, has_left: bool) -> None:
    """Attempts go on, unless whoever provides the machine or holds the lifeline wants it otherwise."""
    state_dir = parts.config.state_dir
    if parts.ending.by_lifeline:
        await manager.end_all(StopReason.LEAVING, grace_s=0.0)
    elif files.is_released(state_dir):
        await manager.end_all(StopReason.LEAVING)
        has_left = True
    if has_left:
        files.leave(state_dir)


def _about(parts: Parts, address: str, advertise_host: str) -> RegisterWorkerRequest:
    config = parts.config
    return RegisterWorkerRequest(
        address=address,
        advertise_host=advertise_host,
        allocation_id=config.allocation_id,
        host_id=proc.boot_id(),
        resources=WorkerResources(
            cpu=config.cpu if config.cpu is not None else machine.cpu_count(),
            memory_bytes=config.memory_bytes if config.memory_bytes is not None else machine.memory_bytes(),
            disk_bytes=machine.free_disk_bytes(config.state_dir),
            gpu_count=parts.gpus.count,
            gpu_variant=parts.gpus.variant,
            max_jobs=parts.max_jobs(_MAX_JOBS),
            cgroup=parts.runtime.enforcement,
        ),
    )
