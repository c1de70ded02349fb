"""The backend whose machines are all this one: each VM is a worker process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fluster.cluster.attempt.files import write_atomically
from fluster.cluster.backend import processes
from fluster.cluster.ids import AllocationId, VMId
from fluster.cluster.observed import VMInfo
from fluster.cluster.resources import GpuConfig, ResourceConfig
from fluster.cluster.restarts import Restarts
from fluster.cluster.states import VMStatus
from fluster.cluster.validation import check_name
from fluster.cluster.worker import files, network
from fluster.cluster.worker.folder import delete
from fluster.errors import FlusterError, Unreachable
from fluster.rpc.client import ConnectClient
from fluster.rpc.gen.fluster.cluster.v1.worker_pb import (
    WorkerServiceHealthCheckRequest,
    WorkerServiceHealthCheckResponse,
)

_log = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_WORKERS, _ALLOCATION, _JOIN_TOKEN, _CONTROLLER = "workers", "allocation.json", "join.token", "controller.url"
_CACHE = "cache"
_ONLY_ONE = AllocationId("local")
_LOOK_S = 0.02
# From SIGTERM on a worker has its attempts' grace and some time of its own.
_END_GRACE_S = 15.0
_HEALTH_S = 5.0


@dataclass(frozen=True, slots=True)
class _Allocation:
    """What was asked for, kept in the worker's directory."""

    cpu: float
    memory_bytes: int
    gpus: int | str
    port: int
    job_users: str | None = None


@dataclass(slots=True)
class _Vm:
    directory: Path
    allocation: _Allocation
    keeper: asyncio.Task[None]


class LocalBackend:
    """Workers as processes of this machine, each in a session of its own.

    They outlive this process and are found again by their directories; one that dies is started again on its directory
    until its VM is released. All methods are called on one event loop.

    Args:
        state_dir: Workers live in `workers/<allocation id>` below it; `None`: a temporary one, gone with all workers
            at `close`.
        controller_url: What workers join; `None`: standalone workers, unless `join` says otherwise.
        join_token: Makes the token that the worker of an allocation joins with.
        python: Interpreter of the workers' daemons.
        job_python: Interpreter of functions that ask for none; `None`: the daemons'.
        lifeline_fd: Passed on to workers: once it reads end of file they end with all they run.
        lease_s: Workers end when nothing runs and there has been no controller for so long.
        job_users: Each worker's are one of these `FIRST-LAST`; empty: jobs run as the user of this process. Workers'
            directories then lie beside `state_dir`, which others may not pass, in one that they may.
    """

    def __init__(
        self,
        state_dir: Path | str | None = None,
        *,
        controller_url: str | None = None,
        join_token: Callable[[AllocationId], str] | None = None,
        python: str = sys.executable,
        job_python: str | None = None,
        lifeline_fd: int | None = None,
        lease_s: float = 300.0,
        job_users: Sequence[str] = (),
    ) -> None:
        self._temporary = tempfile.mkdtemp(prefix="fluster-local-") if state_dir is None else None
        base = Path(self._temporary or state_dir or "")
        self._workers = open_directory(base) if job_users else base / _WORKERS
        self._job_users = job_users
        self._controller_url = controller_url
        self._join_token = join_token
        self._python = python
        self._job_python = job_python
        self._lifeline_fd = lifeline_fd
        self._lease_s = lease_s
        self._vms: dict[VMId, _Vm] | None = None

    def join(self, controller_url: str, join_token: Callable[[AllocationId], str]) -> None:
        """Workers started from now on join that controller, unless another one was given before."""
        if self._controller_url is None:
            self._controller_url, self._join_token = controller_url, join_token

    async def allocate(self, resources: ResourceConfig, *, allocation_id: AllocationId | None = None) -> VMInfo:
        """Starts a worker that offers `resources`; returns before it is ready. Without an id there is one VM in all."""
        vm_id = VMId(check_name(allocation_id or _ONLY_ONE, "allocation_id"))
        vms = self._found()
        if vm_id not in vms:
            vms[vm_id] = self._keep(vm_id, self._write(vm_id, resources))
        return self._info(vm_id)

    async def release(self, vm_id: VMId) -> None:
        """Ends the worker with everything it runs; returns when nothing is left."""
        vm = self._found().get(vm_id)
        if vm is None:
            return
        files.release(vm.directory)
        await asyncio.to_thread(processes.end_worker, vm.directory, self._python, patience_s=0.0, grace_s=_END_GRACE_S)
        await _cancel(vm.keeper)
        await asyncio.to_thread(delete, vm.directory)
        self._found().pop(vm_id, None)

    async def get_status(self, vm_id: VMId) -> VMInfo:
        """How the VM stands; one that is unknown, or whose worker has left, is gone."""
        return self._info(vm_id)

    async def list_vms(self) -> list[VMInfo]:
        """Every VM with a directory here."""
        infos = [self._info(vm_id) for vm_id in self._found()]
        return [info for info in infos if info.status is not VMStatus.GONE]

    async def wait_ready(self, vm_id: VMId, timeout: float = 300.0) -> None:
        """Returns when the worker answers.

        Raises:
            TimeoutError: It did not within `timeout` seconds; the message ends with its log.
            FlusterError: It is gone.
        """
        try:
            async with asyncio.timeout(timeout):
                while not await self._answers(vm_id):
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise TimeoutError(
                f"the worker of {vm_id!r} did not answer in {timeout:g} s; {self._said(vm_id)}"
            ) from None

    async def close(self) -> None:
        """Lets go of the workers, which go on (those of a temporary directory are ended)."""
        vms = self._vms or {}
        if self._temporary is not None:
            for vm_id in list(vms):
                await self.release(vm_id)
            with contextlib.suppress(OSError):
                os.rmdir(self._workers)
            os.rmdir(self._temporary)
        for vm in vms.values():
            await _cancel(vm.keeper)
        self._vms = {}

    def _found(self) -> dict[VMId, _Vm]:
        """The VMs; the first time those that an earlier process left."""
        if self._vms is None:
            self._workers.mkdir(mode=self._mode, parents=True, exist_ok=True)
            os.chmod(self._workers, self._mode)  # whatever the umask
            self._vms = {}
            for name in sorted(os.listdir(self._workers)):
                if (allocation := _read_allocation(self._workers / name)) is not None:
                    self._vms[VMId(name)] = self._keep(VMId(name), allocation)
        return self._vms

    def _write(self, vm_id: VMId, resources: ResourceConfig) -> _Allocation:
        gpus: int | str = resources.device.count if isinstance(resources.device, GpuConfig) else 0
        if not gpus and not self._found():
            gpus = "auto"  # this machine's GPUs, if any, are the first worker's
        port, users = network.free_port(_HOST), self._free_users()
        allocation = _Allocation(resources.cpu, resources.memory_bytes, gpus, port, users)
        directory = self._workers / vm_id
        directory.mkdir(mode=self._mode, exist_ok=True)
        # Last: a directory without it was never a VM.
        write_atomically(directory / _ALLOCATION, json.dumps(asdict(allocation)).encode())
        return allocation

    @property
    def _mode(self) -> int:
        return 0o711 if self._job_users else 0o700

    def _free_users(self) -> str | None:
        """Job users that no other worker has."""
        if not self._job_users:
            return None
        taken = {vm.allocation.job_users for vm in self._found().values()}
        free = next((each for each in self._job_users if each not in taken), None)
        if free is None:
            raise FlusterError("all job users of this machine are other workers'")
        return free

    def _keep(self, vm_id: VMId, allocation: _Allocation) -> _Vm:
        directory = self._workers / vm_id
        return _Vm(directory, allocation, asyncio.create_task(self._keep_running(vm_id, directory, allocation)))

    async def _keep_running(self, vm_id: VMId, directory: Path, allocation: _Allocation) -> None:
        """Starts the worker, or finds the one that runs; starts it again when it dies."""
        restarts = Restarts()
        while not (files.is_released(directory) or files.has_left(directory)):
            try:
                pid = processes.holder(directory)
                if pid is not None and self._obeys_another(directory):
                    _log.info("the worker of %s is started again: its controller has another address now", vm_id)
                    await processes.stop(pid, _END_GRACE_S)
                    pid = None
                if pid is None:
                    command = self._command(vm_id, directory, allocation)
                    pid = processes.start(command, directory, lifeline_fd=self._lifeline_fd)
                    _log.info("started the worker of %s as process %s", vm_id, pid)
                await processes.wait_gone(pid)
            except OSError as error:
                _log.warning("the worker of %s cannot be started now: %s", vm_id, error)
            if files.is_released(directory) or files.has_left(directory):
                break
            _log.warning("the worker of %s ended; it is started again", vm_id)
            await asyncio.sleep(restarts.pause_s(time.monotonic()))
        if not files.is_released(directory):
            # It was let go by its controller, which therefore asks for nothing more.
            await asyncio.to_thread(delete, directory)
            self._found().pop(vm_id, None)

    def _obeys_another(self, directory: Path) -> bool:
        """Whether the worker that runs was told to join a controller at another address."""
        try:
            return (directory / _CONTROLLER).read_text() != self._controller_url
        except FileNotFoundError:
            return False

    def _command(self, vm_id: VMId, directory: Path, allocation: _Allocation) -> list[str]:
        command = [self._python, "-P", "-m", "fluster.cluster.worker", "serve", "--state-dir", str(directory)]
        command += ["--python", self._job_python] if self._job_python is not None else []
        command += ["--worker-id", vm_id, "--host", _HOST, "--port", str(allocation.port)]
        command += ["--cpu", str(allocation.cpu), "--memory", str(allocation.memory_bytes)]
        command += ["--gpus", str(allocation.gpus)]
        if allocation.job_users is not None:
            command += ["--job-users", allocation.job_users, "--cache-dir", str(self._workers / _CACHE)]
        if self._controller_url is not None:
            command += ["--controller", self._controller_url, "--allocation-id", vm_id]
            command += ["--exit-when-idle", str(self._lease_s)]
            write_atomically(directory / _CONTROLLER, self._controller_url.encode())
            if self._join_token is not None:
                token_file = directory / _JOIN_TOKEN
                write_atomically(token_file, self._join_token(AllocationId(vm_id)).encode())
                command += ["--token-file", str(token_file)]
        if self._lifeline_fd is not None:
            command += ["--lifeline-fd", str(self._lifeline_fd)]
        return command

    def _info(self, vm_id: VMId) -> VMInfo:
        vm = self._found().get(vm_id)
        if vm is None or files.has_left(vm.directory):
            return VMInfo(vm_id, "", VMStatus.GONE)
        service = files.ServiceFile.read(vm.directory)
        serves = service is not None and service.pid == processes.holder(vm.directory)
        address = service.address if service is not None and serves else network.joined(_HOST, vm.allocation.port)
        resources = ResourceConfig(cpu=vm.allocation.cpu, memory=vm.allocation.memory_bytes)
        return VMInfo(vm_id, address, VMStatus.READY if serves else VMStatus.STARTING, resources, (address,))

    async def _answers(self, vm_id: VMId) -> bool:
        vm, info = self._found().get(vm_id), self._info(vm_id)
        if vm is None or info.status is VMStatus.GONE:
            raise FlusterError(f"there is no VM {vm_id!r}: it was released, or its worker has left")
        return info.status is VMStatus.READY and await asyncio.to_thread(_is_healthy, vm.directory)

    def _said(self, vm_id: VMId) -> str:
        try:
            lines = (self._workers / vm_id / processes.LOG).read_text(errors="replace").splitlines()
        except OSError:
            return "it has no log"
        return "its log ends: " + "\n".join(lines[-5:])


def stop_local_workers(state_dir: Path | str, python: str = sys.executable, *, patience_s: float = 2.0) -> None:
    """Ends every worker that a `LocalBackend` left running below `state_dir`, with all they run. Blocks.

    Args:
        state_dir: The backend's.
        python: Interpreter of worker daemons.
        patience_s: For workers whose lifeline has ended, which they see by themselves.
    """
    for workers in (Path(state_dir) / _WORKERS, open_directory(Path(state_dir))):
        for directory in sorted(workers.glob("*")):
            processes.end_worker(directory, python, patience_s=patience_s, grace_s=_END_GRACE_S)
            delete(directory)
        with contextlib.suppress(OSError):
            os.rmdir(workers)


def open_directory(state_dir: Path) -> Path:
    """Where workers live whose jobs have users of their own."""
    return state_dir.with_name(f"{state_dir.name}-workers")


def kept_job_users(state_dir: Path) -> set[str | None]:
    """Those of the workers that are there from before; `None`: one whose jobs have no users of their own."""
    places = (state_dir / _WORKERS, open_directory(state_dir))
    found = (_read_allocation(directory) for workers in places for directory in workers.glob("*"))
    return {allocation.job_users for allocation in found if allocation is not None}


def _read_allocation(directory: Path) -> _Allocation | None:
    try:
        return _Allocation(**json.loads((directory / _ALLOCATION).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _is_healthy(directory: Path) -> bool:
    service = files.ServiceFile.read(directory)
    if service is None:
        return False
    try:
        token = Path(service.token_file).read_text().strip()
        client = ConnectClient(service.address, "fluster.cluster.v1.WorkerService", token=token, retry_s=0.0)
        with contextlib.closing(client):
            answer = client.unary(
                "HealthCheck", WorkerServiceHealthCheckRequest(), WorkerServiceHealthCheckResponse, timeout_s=_HEALTH_S
            )
    except (Unreachable, TimeoutError, OSError):
        return False
    return answer.healthy


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
