"""The backend whose machines are containers of this machine: each VM runs a worker of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from fluster.cluster.attempt.files import write_atomically
from fluster.cluster.docker import labels
from fluster.cluster.docker.engine import Engine, EngineError, Json
from fluster.cluster.docker.image import provide_worker_image
from fluster.cluster.docker.mounts import Mount, check_mounts
from fluster.cluster.docker.network import ContainerNetwork, provide_network
from fluster.cluster.ids import AllocationId, VMId
from fluster.cluster.observed import VMInfo
from fluster.cluster.resources import GpuConfig, ResourceConfig
from fluster.cluster.states import VMStatus
from fluster.cluster.validation import check_name
from fluster.errors import FlusterError

_log = logging.getLogger(__name__)

_CLUSTER_FILE = "docker-cluster"
_ONLY_ONE = AllocationId("docker")
UID = 1000
"""The user of worker images: nobody on this machine, as a rule."""
_HOME = "/var/lib/fluster"
_STATE_DIR = f"{_HOME}/worker"
_PORT = 7078
_DAEMON_BYTES = 256 * 1024 * 1024
"""On top of what attempts may have: for the worker's own processes."""
_MAX_PIDS = 32_768
_END_GRACE_S = 15.0
"""From SIGTERM on a worker has its attempts' grace and some time of its own."""
_LOOK_S = 0.1
_HEALTH_S = 2.0
_GONE = (None, "exited", "dead", "removing")


class DockerBackend:
    """Workers in containers, without privileges, on a network of their own. All methods are called on one event loop.

    Containers outlive this process and are found again by their labels. One that ended is no machine any more: what is
    left of it is removed, and the controller asks for another one.

    Args:
        state_dir: Keeps the name under which this cluster's containers are found again; `None`: a name for the moment,
            everything of which is gone at `close`.
        image: What workers run; default: one is built with this Fluster, on a public Python image.
        controller_url: What workers join; `None`: standalone workers, unless `join` says otherwise.
        join_token: Makes the token that the worker of an allocation joins with.
        lease_s: Workers end when nothing runs and there has been no controller for so long.
        python: Interpreter, in the image, of functions that ask for none; default: the worker's own.
        mounts: Directories of this machine that all workers see, as the user 1000.
        engine: Default: this machine's.

    Raises:
        ValueError: A mount cannot be had; the text says why.
    """

    def __init__(
        self,
        state_dir: Path | str | None = None,
        *,
        image: str | None = None,
        controller_url: str | None = None,
        join_token: Callable[[AllocationId], str] | None = None,
        lease_s: float = 300.0,
        python: str | None = None,
        mounts: Sequence[Mount] = (),
        engine: Engine | None = None,
    ) -> None:
        self._temporary = state_dir is None
        self.cluster = secrets.token_hex(6) if state_dir is None else cluster_name(Path(state_dir))
        self._engine = engine or Engine()
        self._image = image
        self._controller_url = controller_url
        self._join_token = join_token
        self._lease_s = lease_s
        self._python = python
        self._mounts = tuple(mounts)
        check_mounts(self._mounts, [self._engine.socket, *([] if state_dir is None else [Path(state_dir)])])
        self._network: ContainerNetwork | None = None
        self._preparing = asyncio.Lock()
        self._answered: set[str] = set()

    def join(self, controller_url: str, join_token: Callable[[AllocationId], str]) -> None:
        """Workers started from now on join that controller, unless another one was given before."""
        if self._controller_url is None:
            self._controller_url, self._join_token = controller_url, join_token

    async def allocate(self, resources: ResourceConfig, *, allocation_id: AllocationId | None = None) -> VMInfo:
        """Starts a container whose worker offers `resources`; returns before it is ready."""
        vm_id = VMId(check_name(allocation_id or _ONLY_ONE, "allocation_id"))
        found = await self._look(vm_id)
        if found is None:
            image, network = await self._prepare()
            try:
                await self._create(vm_id, resources, image, network)
            except EngineError as error:
                if error.status != 409:  # the same request, a moment ago
                    raise
            found = await self._look(vm_id)
        if found is not None and found["State"]["Status"] == "created":
            await self._start(vm_id)
        return await self.get_status(vm_id)

    async def release(self, vm_id: VMId) -> None:
        """Ends the worker with everything it runs, and removes its container; returns when nothing is left."""
        name = self._name(vm_id)
        found = await self._engine.inspect(name)
        if found is None:
            return
        if found["State"]["Running"]:
            await self._engine.unpause(name)
            with contextlib.suppress(EngineError):  # it ended this moment, or has no state yet
                await self._engine.put_files(name, _STATE_DIR, {"released": b""}, uid=UID, gid=UID)
            await self._engine.stop(name, _END_GRACE_S)
        await self._engine.remove(name)

    async def get_status(self, vm_id: VMId) -> VMInfo:
        """How the VM stands; one that is unknown, or whose container has ended, is gone."""
        found = await self._look(vm_id)
        return VMInfo(vm_id, "", VMStatus.GONE) if found is None else await self._info(vm_id, found)

    async def list_vms(self) -> list[VMInfo]:
        """Every VM of this cluster, those that are ending included."""
        there = await self._engine.containers({labels.CLUSTER: self.cluster, labels.ALLOCATION: ""})
        infos = [await self.get_status(VMId(each["Labels"][labels.ALLOCATION])) for each in there]
        return [info for info in infos if info.status is not VMStatus.GONE]

    async def wait_ready(self, vm_id: VMId, timeout: float = 300.0) -> None:
        """Returns when the worker answers.

        Raises:
            TimeoutError: It did not within `timeout` seconds; the message ends with its log.
            FlusterError: It is gone.
        """
        try:
            async with asyncio.timeout(timeout):
                while (info := await self.get_status(vm_id)).status is not VMStatus.READY:
                    if info.status is VMStatus.GONE:
                        raise FlusterError(f"there is no VM {vm_id!r}: it was released, or its container has ended")
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            said = await self._engine.last_lines(self._name(vm_id)) or "nothing"
            raise TimeoutError(
                f"the worker of {vm_id!r} did not answer in {timeout:g} s; its log ends: {said}"
            ) from None

    async def close(self) -> None:
        """Lets go of the containers, which go on (those of a backend without a state directory are removed)."""
        if self._temporary:
            await remove_cluster(self._engine, self.cluster)

    async def network(self) -> ContainerNetwork:
        """The network of this cluster's containers; made unless it is there."""
        if self._network is None:
            self._network = await provide_network(self._engine, self.cluster)
        return self._network

    # Containers

    def _name(self, vm_id: VMId) -> str:
        return f"fluster-{self.cluster}-{vm_id.replace('/', '-')}"

    async def _look(self, vm_id: VMId) -> Json | None:
        """The VM's container, unless it has ended: then what is left of it is removed."""
        name = self._name(vm_id)
        found = await self._engine.inspect(name)
        if found is None:
            return None
        if found["State"]["Status"] in _GONE:
            said = await self._engine.last_lines(name)
            _log.warning("the container of %s ended with %s: %s", vm_id, found["State"]["ExitCode"], said)
        elif found["Config"]["Labels"].get(labels.CONTROLLER) != (self._controller_url or ""):
            _log.warning("the worker of %s belongs to a controller at another address; it is replaced", vm_id)
        else:
            return found
        self._answered.discard(found["Id"])
        await self._engine.remove(found["Id"])
        return None

    async def _prepare(self) -> tuple[str, ContainerNetwork]:
        async with self._preparing:  # several machines are asked for at one time, and all want one image
            if self._image is None:
                self._image = await provide_worker_image(self._engine)
            return self._image, await self.network()

    async def _create(self, vm_id: VMId, resources: ResourceConfig, image: str, network: ContainerNetwork) -> None:
        await self._engine.create(self._name(vm_id), self._config(vm_id, resources, image, network))

    async def _start(self, vm_id: VMId) -> None:
        name = self._name(vm_id)
        if self._join_token is not None and self._controller_url is not None:
            # As a file: what is in a container's variables or command line, everybody with access to the engine sees.
            token = self._join_token(AllocationId(vm_id)).encode()
            await self._engine.put_files(name, _HOME, {"join.token": token}, uid=UID, gid=UID)
        await self._engine.start(name)
        _log.info("started the worker of %s as container %s", vm_id, name)

    def _config(self, vm_id: VMId, resources: ResourceConfig, image: str, network: ContainerNetwork) -> Json:
        memory = resources.memory_bytes + _DAEMON_BYTES
        return {
            "Image": image,
            "Entrypoint": self._command(vm_id, resources),
            "Cmd": [],
            "User": f"{UID}:{UID}",
            "WorkingDir": _HOME,
            "Env": [f"HOME={_HOME}"],
            "Labels": {
                labels.CLUSTER: self.cluster,
                labels.ALLOCATION: vm_id,
                labels.CONTROLLER: self._controller_url or "",
                labels.CPU: repr(resources.cpu),
                labels.MEMORY: str(resources.memory_bytes),
            },
            "HostConfig": {
                "NetworkMode": network.name,
                # Adopts and collects orphans, and passes SIGTERM on: Python as the first process does neither.
                "Init": True,
                "NanoCpus": int(min(resources.cpu, os.cpu_count() or 1) * 1e9),
                "Memory": memory,
                "MemorySwap": memory,
                "PidsLimit": _MAX_PIDS,
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges"],
                "ShmSize": resources.memory_bytes // 2,
                "Mounts": [each.for_engine() for each in self._mounts],
                "LogConfig": {"Type": "json-file", "Config": {"max-size": "5m", "max-file": "2"}},
                "DeviceRequests": gpu_requests(_gpus(resources)),
            },
        }

    def _command(self, vm_id: VMId, resources: ResourceConfig) -> list[str]:
        command = ["python3", "-P", "-m", "fluster.cluster.worker", "serve", "--state-dir", _STATE_DIR]
        command += ["--worker-id", vm_id, "--host", "0.0.0.0", "--port", str(_PORT), "--insecure-plaintext-network"]
        command += ["--cpu", str(resources.cpu), "--memory", str(resources.memory_bytes)]
        command += ["--gpus", str(_gpus(resources) or 0)]
        command += ["--python", self._python] if self._python is not None else []
        if self._controller_url is not None:
            command += ["--controller", self._controller_url, "--allocation-id", vm_id]
            command += ["--exit-when-idle", str(self._lease_s), "--token-file", f"{_HOME}/join.token"]
        return command

    async def _info(self, vm_id: VMId, found: Json) -> VMInfo:
        tags, networks = found["Config"]["Labels"], found["NetworkSettings"]["Networks"]
        host = next((each["IPAddress"] for each in networks.values() if each.get("IPAddress")), "")
        if found["Id"] not in self._answered and host and await _answers(host, _PORT):
            self._answered.add(found["Id"])
        status = VMStatus.READY if found["Id"] in self._answered else VMStatus.STARTING
        address = f"{host}:{_PORT}" if host else ""
        resources = ResourceConfig(cpu=float(tags[labels.CPU]), memory=int(tags[labels.MEMORY]))
        return VMInfo(vm_id, address, status, resources, (address,))


def _gpus(resources: ResourceConfig) -> int:
    return resources.device.count if isinstance(resources.device, GpuConfig) else 0


def gpu_requests(count: int) -> list[Json]:
    """What makes an engine with NVIDIA's toolkit give a container so many GPUs."""
    return [{"Driver": "nvidia", "Count": count, "Capabilities": [["gpu"]]}] if count else []


async def _answers(host: str, port: int) -> bool:
    """Whether the worker's own service says that it is well."""
    try:
        async with asyncio.timeout(_HEALTH_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                status = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return b" 200 " in status


def cluster_name(state_dir: Path) -> str:
    """What the containers of the cluster with this state directory are called by; made once."""
    path = state_dir / _CLUSTER_FILE
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = secrets.token_hex(6)
        write_atomically(path, name.encode(), durable=True)
        return name


async def remove_cluster(engine: Engine, cluster: str) -> None:
    """Ends and removes all containers and networks of a cluster; returns when nothing is left."""
    there = await engine.containers({labels.CLUSTER: cluster})
    await asyncio.gather(*(engine.remove(each["Id"]) for each in there))
    for network in await engine.networks({labels.CLUSTER: cluster}):
        await engine.remove_network(network["Id"])


def stop_docker_workers(state_dir: Path | str) -> None:
    """Ends everything that a `DockerBackend` left running for this state directory. Blocks.

    Raises:
        FlusterError: The engine does not answer: containers may be left.
    """
    named = Path(state_dir) / _CLUSTER_FILE
    if named.exists():
        asyncio.run(remove_cluster(Engine(), cluster_name(Path(state_dir))))
        named.unlink()


def has_docker_workers(state_dir: Path) -> bool:
    """Whether a `DockerBackend` with this state directory may have left something running."""
    return (state_dir / _CLUSTER_FILE).exists()
