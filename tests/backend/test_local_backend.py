"""Workers of this machine as processes of their own."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from fluster.cluster.backend.base import VMBackend
from fluster.cluster.backend.local import LocalBackend, stop_local_workers
from fluster.cluster.ids import AllocationId, VMId
from fluster.cluster.resources import ResourceConfig
from fluster.cluster.states import VMStatus
from fluster.cluster.worker import files
from fluster.errors import FlusterError
from fluster.rpc.client import ConnectClient
from fluster.rpc.gen.fluster.cluster.v1 import worker_pb as pb
from fluster.rpc.gen.fluster.cluster.v1.types_pb import LogStream, TaskState

WITHIN_S = 25.0
CPU = ResourceConfig.with_cpu(cpu=1, memory="1GB")


@asynccontextmanager
async def backend(state_dir: Path, lifeline_fd: int | None = None) -> AsyncIterator[LocalBackend]:
    made = LocalBackend(state_dir, lifeline_fd=lifeline_fd)
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def only_backend(state_dir: Path) -> AsyncIterator[LocalBackend]:
    """One that is not closed before its workers are gone."""
    async with backend(state_dir) as made:
        yield made
        for vm in await made.list_vms():
            await made.release(vm.vm_id)


def client_of(state_dir: Path, vm_id: str) -> ConnectClient:
    service = files.ServiceFile.read(state_dir / "workers" / vm_id)
    assert service is not None
    token = Path(service.token_file).read_text()
    return ConnectClient(service.address, "fluster.cluster.v1.WorkerService", token=token)


def pid_of(state_dir: Path, vm_id: str) -> int:
    service = files.ServiceFile.read(state_dir / "workers" / vm_id)
    assert service is not None
    return service.pid


def run_job(state_dir: Path, vm_id: str, code: str, job_id: str = "job") -> str:
    """Starts a job and returns the first line it prints."""
    from fluster.cluster.worker.messages import command_entrypoint

    with closing(client_of(state_dir, vm_id)) as client:
        request = pb.WorkerServiceRunJobRequest(job_id=job_id, entrypoint=command_entrypoint(["sh", "-c", code]))
        client.unary("RunJob", request, pb.WorkerServiceRunJobResponse)
        logs = client.stream(
            "StreamLogs",
            pb.WorkerServiceStreamLogsRequest(job_id=job_id, follow=True),
            pb.WorkerServiceStreamLogsResponse,
            idle_timeout_s=WITHIN_S,
        )
        with closing(logs):  # type: ignore[type-var]
            return next(piece.data.decode() for piece in logs if piece.stream is LogStream.STDOUT).strip()


def status(state_dir: Path, vm_id: str, job_id: str = "job") -> pb.WorkerServiceGetJobStatusResponse:
    with closing(client_of(state_dir, vm_id)) as client:
        request = pb.WorkerServiceGetJobStatusRequest(job_id=job_id)
        return client.unary("GetJobStatus", request, pb.WorkerServiceGetJobStatusResponse)


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(WITHIN_S):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.02)


async def test_allocate_vm_verify_address_returned(tmp_path: Path) -> None:
    async with only_backend(tmp_path) as local:
        protocol: VMBackend = local
        vm = await protocol.allocate(CPU, allocation_id=AllocationId("alloc-1"))
        assert vm.vm_id == "alloc-1"
        host, _, port = vm.address.rpartition(":")
        assert host == "127.0.0.1"
        assert int(port) > 0
        await local.wait_ready(vm.vm_id, WITHIN_S)
        ready = await local.get_status(vm.vm_id)
        assert (ready.status, ready.address, ready.hosts) == (VMStatus.READY, vm.address, (vm.address,))


async def test_worker_subprocess_starts_and_is_reachable(tmp_path: Path) -> None:
    async with only_backend(tmp_path) as local:
        vm = await local.allocate(CPU)
        await local.wait_ready(vm.vm_id, WITHIN_S)
        assert pid_of(tmp_path, vm.vm_id) != os.getpid()
        with closing(client_of(tmp_path, vm.vm_id)) as client:
            health = await asyncio.to_thread(
                client.unary,
                "HealthCheck",
                pb.WorkerServiceHealthCheckRequest(),
                pb.WorkerServiceHealthCheckResponse,
            )
        assert health.healthy
        assert health.worker_id == vm.vm_id


async def test_without_an_id_there_is_one_vm(tmp_path: Path) -> None:
    async with only_backend(tmp_path) as local:
        assert await local.allocate(CPU) == await local.allocate(CPU)
        assert [vm.vm_id for vm in await local.list_vms()] == ["local"]


async def test_the_same_id_is_the_same_vm(tmp_path: Path) -> None:
    async with only_backend(tmp_path) as local:
        asked = [local.allocate(CPU, allocation_id=AllocationId("a")) for _ in range(5)]
        assert len({vm.address for vm in await asyncio.gather(*asked)}) == 1
        await local.wait_ready(VMId("a"), WITHIN_S)


async def test_release_ends_the_worker_with_what_it_runs_and_may_be_repeated(tmp_path: Path) -> None:
    async with backend(tmp_path) as local:
        vm = await local.allocate(CPU)
        await local.wait_ready(vm.vm_id, WITHIN_S)
        worker = pid_of(tmp_path, vm.vm_id)
        job = int(await asyncio.to_thread(run_job, tmp_path, vm.vm_id, "echo $$; exec sleep 60"))
        await local.release(vm.vm_id)
        await until_gone(worker)
        await until_gone(job)
        assert (await local.get_status(vm.vm_id)).status is VMStatus.GONE
        assert await local.list_vms() == []
        await local.release(vm.vm_id)
        assert list((tmp_path / "workers").iterdir()) == []


async def test_an_unknown_vm_is_gone(tmp_path: Path) -> None:
    async with backend(tmp_path) as local:
        assert (await local.get_status(VMId("nobody"))).status is VMStatus.GONE
        await local.release(VMId("nobody"))
        with pytest.raises(FlusterError, match="nobody"):
            await local.wait_ready(VMId("nobody"), 1.0)


async def test_a_worker_that_is_killed_is_started_again_and_its_jobs_go_on(tmp_path: Path) -> None:
    async with only_backend(tmp_path) as local:
        vm = await local.allocate(CPU)
        await local.wait_ready(vm.vm_id, WITHIN_S)
        worker = pid_of(tmp_path, vm.vm_id)
        job = int(await asyncio.to_thread(run_job, tmp_path, vm.vm_id, "echo $$; exec sleep 60"))
        os.kill(worker, signal.SIGKILL)
        async with asyncio.timeout(WITHIN_S):
            while pid_of(tmp_path, vm.vm_id) == worker:
                await asyncio.sleep(0.02)
        await local.wait_ready(vm.vm_id, WITHIN_S)
        assert (await local.get_status(vm.vm_id)).address == vm.address
        assert (await asyncio.to_thread(status, tmp_path, vm.vm_id)).state is TaskState.RUNNING
        assert Path(f"/proc/{job}").exists()


async def test_workers_outlive_their_backend_and_are_found_again(tmp_path: Path) -> None:
    async with backend(tmp_path) as first:
        vm = await first.allocate(CPU, allocation_id=AllocationId("a"))
        await first.wait_ready(vm.vm_id, WITHIN_S)
        worker = pid_of(tmp_path, "a")
    assert Path(f"/proc/{worker}").exists()
    async with only_backend(tmp_path) as second:
        assert [each.vm_id for each in await second.list_vms()] == ["a"]
        again = await second.allocate(CPU, allocation_id=AllocationId("a"))
        assert (again.address, again.status) == (vm.address, VMStatus.READY)
        assert pid_of(tmp_path, "a") == worker


async def test_everything_ends_when_the_lifeline_is_cut(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    try:
        async with backend(tmp_path, lifeline_fd=read_end) as local:
            vm = await local.allocate(CPU)
            await local.wait_ready(vm.vm_id, WITHIN_S)
            worker = pid_of(tmp_path, vm.vm_id)
            job = int(await asyncio.to_thread(run_job, tmp_path, vm.vm_id, "echo $$; exec sleep 60"))
        os.close(write_end)
        write_end = -1
        await until_gone(job)
        await asyncio.to_thread(stop_local_workers, tmp_path)
        await until_gone(worker)
        assert not (tmp_path / "workers").exists()
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)


async def test_workers_whose_daemon_is_gone_are_stopped_with_what_they_left(tmp_path: Path) -> None:
    async with backend(tmp_path) as local:
        vm = await local.allocate(CPU)
        await local.wait_ready(vm.vm_id, WITHIN_S)
        job = int(await asyncio.to_thread(run_job, tmp_path, vm.vm_id, "echo $$; exec sleep 60"))
        worker = pid_of(tmp_path, vm.vm_id)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    await asyncio.to_thread(stop_local_workers, tmp_path)
    await until_gone(job)
    assert not (tmp_path / "workers").exists()


async def test_a_backend_without_a_directory_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    local = LocalBackend()
    vm = await local.allocate(CPU)
    await local.wait_ready(vm.vm_id, WITHIN_S)
    await local.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_worker_that_left_its_cluster_is_gone_and_not_started_again(tmp_path: Path) -> None:
    async with backend(tmp_path) as local:
        vm = await local.allocate(CPU)
        await local.wait_ready(vm.vm_id, WITHIN_S)
        # What a worker does when its controller lets it go.
        files.leave(tmp_path / "workers" / vm.vm_id)
        os.kill(pid_of(tmp_path, vm.vm_id), signal.SIGTERM)
        async with asyncio.timeout(WITHIN_S):
            while (await local.get_status(vm.vm_id)).status is not VMStatus.GONE:
                await asyncio.sleep(0.02)
            while (tmp_path / "workers" / vm.vm_id).exists():
                await asyncio.sleep(0.02)
        assert await local.list_vms() == []
