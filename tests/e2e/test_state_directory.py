"""A controller's state directory that others want, that was copied, or that is full."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import lab
from tests.e2e.lab import Witness
from tests.e2e.outside import Server, joined_worker

from fluster import Cluster, Entrypoint, JobRequest, JobStatus, ResourceExhausted
from fluster.cluster.ids import JobId

pytestmark = pytest.mark.timeout(120)  # controllers are started often
LITTLE = 64 << 10


def test_a_frozen_controller_holds_its_directory_until_one_that_takes_over_kills_it(tmp_path: Path) -> None:
    witness = Witness.at(tmp_path / "witness")
    with (
        Server(tmp_path / "state") as frozen,
        frozen.client() as client,
        joined_worker(client, tmp_path / "a"),
    ):
        job_id = client.launch(witness.request())
        process = witness.wait_for_run()
        frozen.process.send_signal(signal.SIGSTOP)

        words = [sys.executable, "-m", "fluster", "controller", "serve", "--port", "0", "--state-dir"]
        refused = subprocess.run([*words, str(frozen.state_dir)], capture_output=True, text=True, timeout=lab.WITHIN_S)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert f"in use by another controller (pid {frozen.process.pid} on " in refused.stderr

        port = client.address.rpartition(":")[2]
        with Server(frozen.state_dir, "--port", port, "--take-over") as second, second.client() as other:
            assert frozen.wait() == -signal.SIGKILL
            assert second.epoch == frozen.epoch + 1
            witness.let_end()
            count = other.result(job_id, timeout=lab.WITHIN_S)
            assert lab.printed(other, job_id) == list(range(count))
            assert (other.poll(job_id).tasks[0].attempt, witness.runs) == (1, [process.pid])


@pytest.mark.parametrize("starts", [1, 2], ids=["as often", "less often"])
def test_workers_obey_no_controller_on_a_copy_that_was_not_started_more_often(tmp_path: Path, starts: int) -> None:
    """It knows nothing of the job that runs: a worker that obeyed would end it."""
    witness, stray = Witness.at(tmp_path / "witness"), Witness.at(tmp_path / "stray")
    with Server(tmp_path / "state") as original, original.client() as client, joined_worker(client, tmp_path / "a"):
        original.end()
        shutil.copytree(original.state_dir, tmp_path / "copy")
        for _ in range(starts - 1):
            restart(original, client)
            original.end()
        restart(original, client)
        job = client.submit(witness.request())
        process = witness.wait_for_run()
        original.end()

        port = client.address.rpartition(":")[2]
        with Server(tmp_path / "copy", "--port", port) as copy, copy.client() as other:
            assert copy.epoch == original.epoch - starts + 1
            stray_id = other.launch(stray.request())
            refused = f"this worker obeys epoch {original.epoch}; this controller is of epoch {copy.epoch}"
            if starts == 1:
                refused = f"this worker obeys another controller of epoch {copy.epoch}"
            lab.wait_until(lambda: refused in (tmp_path / "a" / "worker.log").read_text(), "it was refused")
            assert other.poll(stray_id).status is JobStatus.PENDING
            assert process.runs

        original.start()
        witness.let_end()
        count = job.result(timeout=lab.WITHIN_S)
        assert lab.printed(client, job.job_id) == list(range(count))
        assert (job.info().tasks[0].attempt, witness.runs) == (1, [process.pid])
        assert stray.runs == []


def restart(server: Server, client: Cluster) -> None:
    """Serves again, and its worker has noticed."""
    began_at = time.time()
    server.start()
    lab.wait_until(
        lambda: any((each.last_seen_at or 0.0) > began_at for each in client.workers()), "its worker is back"
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for little more than an empty state."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(path)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(file: Path) -> None:
    """Takes the room there is, but for a little."""
    disk = os.statvfs(file.parent)
    with file.open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, disk.f_bavail * disk.f_frsize - LITTLE)


def launch_until_refused(client: Cluster) -> dict[str, JobId]:
    """Acknowledged jobs by name: what the database had in reserve is used up at last."""
    acknowledged: dict[str, JobId] = {}
    while (name := f"job-{len(acknowledged)}") and (job_id := launch(client, name)):
        acknowledged[name] = job_id
    return acknowledged


def launch(client: Cluster, name: str) -> JobId | None:
    """`None`: the disk is full."""
    try:
        return client.launch(small(name))
    except ResourceExhausted as error:
        assert "disk is full" in str(error)  # noqa: PT017
        return None


def small(name: str) -> JobRequest:
    return JobRequest(name, Entrypoint.from_command("true"), lab.SMALL, request_id=name)


@pytest.mark.root
def test_a_full_disk_refuses_launches_loses_nothing_and_goes_on_when_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    witness = Witness.at(tmp_path / "witness")
    with (
        Server(small_disk / "state") as server,
        server.client() as client,
        joined_worker(client, tmp_path / "a"),
    ):
        job = client.submit(witness.request())
        process = witness.wait_for_run()
        fill(small_disk / "filler")
        acknowledged = launch_until_refused(client)
        refused = f"job-{len(acknowledged)}"
        witness.let_end()
        lab.wait_until(lambda: not process.runs, "running work ends")
        assert server.process.poll() is None

        (small_disk / "filler").unlink()
        count = job.result(timeout=lab.WITHIN_S)
        assert lab.printed(client, job.job_id) == list(range(count))
        assert (job.info().tasks[0].attempt, witness.runs) == (1, [process.pid])
        acknowledged[refused] = lab.wait_until(lambda: launch(client, refused), "room was found")
        infos = client.wait(list(acknowledged.values()), timeout=lab.WITHIN_S)
        assert {info.name: info.job_id for info in infos} == acknowledged
        assert {info.status for info in infos} == {JobStatus.SUCCEEDED}
        listed = client.list_jobs(name_prefix="job-")
        assert {info.name: info.job_id for info in listed} == acknowledged
