"""Workers in containers of this machine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from fluster.cluster.backend.base import VMBackend
from fluster.cluster.backend.docker import UID, DockerBackend, cluster_name, remove_cluster, stop_docker_workers
from fluster.cluster.docker import labels
from fluster.cluster.docker.engine import Engine
from fluster.cluster.docker.mounts import Mount
from fluster.cluster.ids import AllocationId, VMId
from fluster.cluster.resources import ResourceConfig
from fluster.cluster.states import VMStatus
from fluster.cluster.worker.messages import command_entrypoint
from fluster.errors import FlusterError
from fluster.rpc.client import ConnectClient
from fluster.rpc.gen.fluster.cluster.v1 import worker_pb as pb
from fluster.rpc.gen.fluster.cluster.v1.types_pb import LogStream

pytestmark = pytest.mark.docker

WITHIN_S = 40.0
CPU = ResourceConfig.with_cpu(cpu=0.5, memory="200MB")


@asynccontextmanager
async def backend(
    image: str, state_dir: Path | None = None, *, mounts: Sequence[Mount] = (), python: str | None = None
) -> AsyncIterator[DockerBackend]:
    made = DockerBackend(state_dir, image=image, mounts=mounts, python=python)
    try:
        yield made
    finally:
        await made.close()
        await remove_cluster(Engine(), made.cluster)
        assert await left_of(made.cluster) == []


async def left_of(cluster: str) -> list[object]:
    engine = Engine()
    return [*await engine.containers({labels.CLUSTER: cluster}), *await engine.networks({labels.CLUSTER: cluster})]


async def ready(docker: VMBackend, name: str = "a") -> VMId:
    vm = await docker.allocate(CPU, allocation_id=AllocationId(name))
    await docker.wait_ready(vm.vm_id, WITHIN_S)
    return vm.vm_id


async def run_job(docker: DockerBackend, vm_id: VMId, code: str) -> str:
    """Starts a job through the worker's own service, and gives the first line it prints."""
    container = f"fluster-{docker.cluster}-{vm_id}"
    token = await Engine().read_file(container, "/var/lib/fluster/worker/worker.token")
    assert token is not None
    address = (await docker.get_status(vm_id)).address

    def run() -> str:
        client = ConnectClient(f"http://{address}", "fluster.cluster.v1.WorkerService", token=token.decode())
        with closing(client):
            request = pb.WorkerServiceRunJobRequest(job_id="job", entrypoint=command_entrypoint(["sh", "-c", code]))
            client.unary("RunJob", request, pb.WorkerServiceRunJobResponse)
            logs = client.stream(
                "StreamLogs",
                pb.WorkerServiceStreamLogsRequest(job_id="job", follow=True),
                pb.WorkerServiceStreamLogsResponse,
                idle_timeout_s=WITHIN_S,
            )
            with closing(logs):  # type: ignore[type-var]
                return next(piece.data.decode() for piece in logs if piece.stream is LogStream.STDOUT).strip()

    return await asyncio.to_thread(run)


async def test_a_vm_is_a_container_whose_worker_runs_jobs_without_privileges(docker_image: str) -> None:
    async with backend(docker_image) as docker:
        started = await docker.allocate(CPU, allocation_id=AllocationId("a"))
        assert (started.vm_id, started.status) == ("a", VMStatus.STARTING)
        again = await docker.allocate(CPU, allocation_id=AllocationId("a"))
        await docker.wait_ready(started.vm_id, WITHIN_S)
        info = await docker.get_status(started.vm_id)
        assert (info.status, info.address, info.hosts) == (VMStatus.READY, again.address, (again.address,))
        assert info.address.startswith("198.1")
        assert info.resources == ResourceConfig(cpu=0.5, memory=200_000_000)

        said = await run_job(
            docker, started.vm_id, "echo $(id -u; grep -E 'CapEff|NoNewPrivs' /proc/self/status); sleep 60"
        )
        assert said.split() == [str(UID), "CapEff:", "0" * 16, "NoNewPrivs:", "1"]
        found = await Engine().inspect(f"fluster-{docker.cluster}-a")
        assert found is not None
        host = found["HostConfig"]
        assert (host["NanoCpus"], host["Memory"], host["PidsLimit"]) == (500_000_000, 200_000_000 + (256 << 20), 32_768)
        assert not host["Binds"]
        assert not found["Mounts"]

        await docker.release(started.vm_id)
        assert (await docker.get_status(started.vm_id)).status is VMStatus.GONE
        await docker.release(started.vm_id)
        assert await docker.list_vms() == []


async def test_workers_see_the_mounts_of_their_operator_and_functions_have_the_interpreter_that_was_named(
    docker_image: str, tmp_path: Path
) -> None:
    for name in ("shared", "given"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    mounts = [Mount.parse(f"{tmp_path / 'shared'}:/mnt/shared"), Mount.parse(f"{tmp_path / 'given'}:/mnt/given:ro")]
    async with backend(docker_image, mounts=mounts, python="/usr/local/bin/python") as docker:
        vm_id = await ready(docker)
        said = await run_job(
            docker, vm_id, "touch /mnt/shared/a; touch /mnt/given/a 2>/dev/null || echo cannot; sleep 60"
        )
        assert said == "cannot"
        assert os.listdir(tmp_path / "shared") == ["a"]
        assert os.listdir(tmp_path / "given") == []
        found = await Engine().inspect(f"fluster-{docker.cluster}-a")
        assert found is not None
        assert "--python /usr/local/bin/python" in " ".join(found["Config"]["Entrypoint"])


def test_what_no_container_may_see_is_no_mount_of_a_backend(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="would show"):
        DockerBackend(tmp_path / "state", mounts=[Mount.parse(f"{tmp_path}:/data")])
    with pytest.raises(ValueError, match=r"would show .*docker\.sock"):
        DockerBackend(mounts=[Mount.parse("/run:/data")], engine=Engine(Path("/run/docker.sock")))


async def test_containers_outlive_their_backend_are_found_again_and_end_with_their_state_directory(
    docker_image: str, tmp_path: Path
) -> None:
    async with backend(docker_image, tmp_path) as first:
        await ready(first)
        await first.close()
        second = DockerBackend(tmp_path, image=docker_image)
        assert [vm.vm_id for vm in await second.list_vms()] == ["a"]
        assert (await second.allocate(CPU, allocation_id=AllocationId("a"))).status is VMStatus.READY
        await asyncio.to_thread(stop_docker_workers, tmp_path)
        assert await left_of(cluster_name(tmp_path)) == []


async def test_a_container_that_was_killed_is_gone_and_its_remains_are_removed(docker_image: str) -> None:
    async with backend(docker_image) as docker:
        vm_id = await ready(docker)
        name = f"fluster-{docker.cluster}-a"
        before = await Engine().inspect(name)
        await Engine().signal(name, "SIGKILL")
        await Engine().wait(name)
        assert (await docker.get_status(vm_id)).status is VMStatus.GONE
        assert await Engine().inspect(name) is None
        with pytest.raises(FlusterError, match="its container has ended"):
            await docker.wait_ready(vm_id, 1.0)
        await docker.allocate(CPU, allocation_id=AllocationId("a"))
        after = await Engine().inspect(name)
        assert before is not None
        assert after is not None
        assert before["Id"] != after["Id"]


async def test_a_machine_that_stands_still_is_given_back_all_the_same(docker_image: str) -> None:
    async with backend(docker_image) as docker:
        vm = await docker.allocate(CPU, allocation_id=AllocationId("a"))
        await Engine()._json("POST", f"/containers/fluster-{docker.cluster}-a/pause")
        await docker.release(vm.vm_id)
        assert await docker.list_vms() == []


async def test_a_worker_that_does_not_start_is_explained_by_its_log(docker_image: str) -> None:
    async with backend(docker_image) as docker:
        await docker.allocate(CPU, allocation_id=AllocationId("slow"))
        with pytest.raises(TimeoutError, match=r"did not answer in 0\.1 s; its log ends: "):
            await docker.wait_ready(VMId("slow"), 0.1)


async def test_an_image_that_does_not_exist_is_named(tmp_path: Path) -> None:
    async with backend("nowhere/no-such-image:1") as docker:
        with pytest.raises(FlusterError, match="No such image: nowhere/no-such-image:1"):
            await docker.allocate(CPU)
        assert await docker.list_vms() == []
