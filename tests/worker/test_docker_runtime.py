"""Attempts as containers: the same limits, logs, causes and adoption as for processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import cloudpickle
import pytest

from fluster.cluster.attempt import files
from fluster.cluster.attempt.lease import LeaseFile
from fluster.cluster.docker import labels
from fluster.cluster.docker.mounts import Mount
from fluster.cluster.worker.container_config import NOBODY, container_config
from fluster.cluster.worker.docker_runtime import DockerRuntime
from fluster.cluster.worker.outcome import read_outcome
from fluster.cluster.worker.remains import read_running
from fluster.cluster.worker.runtime import AttemptStart, ExitRecord, Gone, ImageFailed, Limits, Running, get_runtime

WITHIN_S = 60.0
MB = 1_000_000


@asynccontextmanager
async def runtime(
    image: str, name: str = "", lease: Path | None = None, *, mounts: Sequence[Mount] = ()
) -> AsyncIterator[DockerRuntime]:
    name = name or uuid.uuid4().hex[:8]
    made = DockerRuntime(name, image=image, mounts=mounts, time_limit_grace_s=0.5, lease=lease)
    try:
        yield made
        assert await made.engine.containers({labels.WORKER: made._name}) == []
    finally:
        await made.close()
        for each in await made.engine.containers({labels.WORKER: made._name}):
            await made.engine.remove(each["Id"])


def attempt(root: Path, *argv: str, uid: str = "a", **more: object) -> AttemptStart:
    directory = root / uid
    for each in (directory, directory / "work", directory / "tmp"):
        each.mkdir(mode=0o700)
    return AttemptStart(
        uid=uid,
        directory=directory,
        command=argv or None,
        environment={"TMPDIR": str(directory / "tmp")},
        working_directory=directory / "work",
        **more,  # type: ignore[arg-type]
    )


async def ended(docker: DockerRuntime, start: AttemptStart) -> ExitRecord:
    await docker.start(start)
    async with asyncio.timeout(WITHIN_S):
        end = await docker.wait(start.uid)
    assert isinstance(end, ExitRecord)
    return end


async def said(start: AttemptStart, text: bytes) -> None:
    """Waits until the attempt has printed this."""
    async with asyncio.timeout(WITHIN_S):
        while text not in (start.directory / files.STDOUT).read_bytes():
            await asyncio.sleep(0.02)


@pytest.mark.docker
async def test_a_command_prints_to_its_files_as_nobody_without_privileges_and_exits_with_its_code(
    docker_image: str, tmp_path: Path
) -> None:
    async with runtime(docker_image) as docker:
        script = (
            "id -u; pwd; grep -E 'CapEff|NoNewPrivs' /proc/self/status; echo err >&2; ls /var/run/docker.sock; exit 7"
        )
        start = attempt(tmp_path, "sh", "-c", script)
        end = await ended(docker, start)
        assert (end.exit_code, end.signal, end.start_error) == (7, None, None)
        out = (start.directory / files.STDOUT).read_text().split()
        user = os.geteuid() or NOBODY
        assert out == [str(user), str(start.working_directory), "CapEff:", "0" * 16, "NoNewPrivs:", "1"]
        assert "err\n" in (start.directory / files.STDERR).read_text()


@pytest.mark.docker
async def test_a_callable_gives_its_result_and_finds_its_files(docker_image: str, tmp_path: Path) -> None:
    def work() -> str:
        Path("made").write_text("here")
        return f"{os.getcwd()} {sys.version_info[:2]}"

    async with runtime(docker_image) as docker:
        start = attempt(tmp_path)
        (start.directory / files.ENTRYPOINT).write_bytes(cloudpickle.dumps((work, (), {})))
        end = await ended(docker, start)
        assert end.exit_code == 0, (start.directory / files.STDERR).read_text()
        outcome = read_outcome(start.directory / files.RESULT)
        assert outcome is not None
        assert (start.directory / "work" / "made").read_text() == "here"


@pytest.mark.docker
async def test_attempts_see_the_mounts_of_their_operator(docker_image: str, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    mounts = [Mount.parse(f"{shared}:/mnt/shared"), Mount.parse(f"{shared}:/mnt/given:ro")]
    async with runtime(docker_image, mounts=mounts) as docker:
        end = await ended(
            docker, attempt(tmp_path, "sh", "-c", "touch /mnt/shared/a && ls /mnt/given/a && ! touch /mnt/given/b")
        )
        assert end.exit_code == 0
    assert os.listdir(shared) == ["a"]


@pytest.mark.docker
async def test_memory_over_the_limit_a_signal_and_the_time_limit_are_told_apart(
    docker_image: str, tmp_path: Path
) -> None:
    async with runtime(docker_image) as docker:
        hog = attempt(tmp_path, "python3", "-c", "x = b'x' * 10**9", uid="hog", limits=Limits(memory_bytes=100 * MB))
        child = "python3 -c \"x = b'x' * 10**9\"; exit 0"
        harmless = attempt(tmp_path, "sh", "-c", child, uid="harmless", limits=Limits(memory_bytes=100 * MB))
        killed = attempt(tmp_path, "sh", "-c", "kill -SEGV $$", uid="killed")
        slow = attempt(tmp_path, "sleep", "60", uid="slow", limits=Limits(time_s=1.0))
        ends = await asyncio.gather(*(ended(docker, each) for each in (hog, harmless, killed, slow)))
        assert (ends[0].out_of_memory, ends[0].peak_memory_bytes) == (True, 100 * MB)
        assert (ends[1].out_of_memory, ends[1].exit_code) == (False, 0)
        assert (ends[2].out_of_memory, ends[2].signal) == (False, signal.SIGSEGV)
        assert (ends[3].timed_out, ends[3].stop_requested) == (True, False)


@pytest.mark.docker
async def test_what_cannot_be_executed_says_so_with_the_code_of_a_shell(docker_image: str, tmp_path: Path) -> None:
    async with runtime(docker_image) as docker:
        missing = await ended(docker, attempt(tmp_path, "no-such-program", uid="missing"))
        assert missing.exit_code == 127
        assert "'no-such-program' was not found in the image" in (missing.start_error or "")
        assert not missing.fluster_fault


@pytest.mark.docker
async def test_stop_ends_all_of_the_container_escapees_too(docker_image: str, tmp_path: Path) -> None:
    async with runtime(docker_image) as docker:
        start = attempt(
            tmp_path, "sh", "-c", "trap '' TERM; setsid nohup sleep 4711 & echo up; while :; do sleep 1; done"
        )
        assert isinstance(await docker.start(start), Running)
        await said(start, b"up")
        await docker.stop("a", 0.3)
        async with asyncio.timeout(WITHIN_S):
            end = await docker.wait("a")
        assert isinstance(end, ExitRecord)
        assert (end.stop_requested, end.signal) == (True, signal.SIGKILL)


@pytest.mark.docker
async def test_a_restarted_worker_adopts_and_misses_nothing_that_was_printed(docker_image: str, tmp_path: Path) -> None:
    async with runtime(docker_image, "w1") as first:
        start = attempt(tmp_path, "sh", "-c", "for i in $(seq 300); do echo $i; sleep 0.01; done; exit 5")
        await first.start(start)
        await said(start, b"10\n")
        await first.close()
        second = DockerRuntime("w1", image=docker_image)
        await second.prepare()
        assert isinstance(await second.adopt("a", start.directory), Running)
        async with asyncio.timeout(WITHIN_S):
            end = await second.wait("a")
        assert isinstance(end, ExitRecord)
        assert end.exit_code == 5
        assert (start.directory / files.STDOUT).read_text().split() == [str(number) for number in range(1, 301)]
        await second.close()


@pytest.mark.docker
async def test_an_attempt_whose_shim_was_killed_is_gone_with_its_container(docker_image: str, tmp_path: Path) -> None:
    async with runtime(docker_image) as docker:
        start = attempt(tmp_path, "sh", "-c", "echo up; sleep 60")
        await docker.start(start)
        await said(start, b"up")
        record = read_running(start.directory)
        assert record is not None
        os.kill(record.shim, signal.SIGKILL)
        async with asyncio.timeout(WITHIN_S):
            assert isinstance(await docker.wait("a"), Gone)


@pytest.mark.docker
async def test_the_lease_ends_what_nobody_watches_over_any_more(docker_image: str, tmp_path: Path) -> None:
    import time

    lease = LeaseFile(tmp_path / "lease")
    lease.create(time.CLOCK_MONOTONIC)
    lease.renew(time.clock_gettime(time.CLOCK_MONOTONIC) + 3.0)
    async with runtime(docker_image, lease=lease.path) as docker:
        end = await ended(docker, attempt(tmp_path, "sleep", "60"))
        assert end.lease_ended


@pytest.mark.docker
async def test_containers_whose_directory_is_gone_are_swept(docker_image: str) -> None:
    async with runtime(docker_image) as docker:
        config = {
            "Image": docker_image,
            "Cmd": ["sleep", "60"],
            "Labels": {labels.WORKER: docker._name, labels.DIRECTORY: "/gone"},
        }
        await docker.engine.create(f"fluster-{docker._name}-stray", config)
        await docker.prepare()


@pytest.mark.docker
async def test_an_image_that_does_not_exist_and_a_python_that_differs_are_found_before_anything_runs(
    docker_image: str,
) -> None:
    async with runtime(docker_image) as docker:
        with pytest.raises(ImageFailed, match="'fluster/no-such-image:1' cannot be pulled"):
            await docker.images.provide_image("fluster/no-such-image:1")
        assert (await docker.images.provide_image(docker_image)).startswith("sha256:")
        minor = f"{sys.version_info.major}.{sys.version_info.minor}"
        assert await docker.images.python_version(docker_image, "python3") == minor
        with pytest.raises(ImageFailed, match=r"no interpreter 'python9\.9'"):
            await docker.images.python_version(docker_image, "python9.9")


def test_gpus_are_asked_for_by_the_indices_that_were_handed_out(tmp_path: Path) -> None:
    start = replace(attempt(tmp_path, "true"), environment={"CUDA_VISIBLE_DEVICES": "1,3"}, gpus=(1, 3))
    requests = container_config(start, "image", "w", cpu_quota=False)["HostConfig"]["DeviceRequests"]
    assert requests == [{"Driver": "nvidia", "DeviceIDs": ["1", "3"], "Capabilities": [["gpu"]]}]


def test_nothing_of_the_machine_is_mounted_but_the_attempts_own_directories_and_the_job_side(tmp_path: Path) -> None:
    start = attempt(tmp_path)
    host = container_config(start, "image", "w", cpu_quota=False)["HostConfig"]
    for bind in host["Binds"]:
        source, target = bind.split(":")[:2]
        assert source.startswith(str(start.directory)) or (target.startswith("/fluster/site/") and bind.endswith(":ro"))
    assert not any("docker.sock" in bind for bind in host["Binds"])
    assert "Privileged" not in host


def test_the_runtimes_have_names() -> None:
    assert [get_runtime(name).name for name in ("auto", "docker")] == ["process", "docker"]
