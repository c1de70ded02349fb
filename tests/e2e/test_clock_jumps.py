"""Somebody sets the clocks of machines, by hours and days, while jobs run: nothing comes early or late."""

from __future__ import annotations

import mmap
import signal
import struct
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import lab, programs
from tests.e2e.lab import Witness
from tests.e2e.outside import Server

from fluster import Cluster, Entrypoint, JobRequest, JobStatus, LogLine, ResourceConfig, RetryPolicy
from fluster.cluster.ids import JobId
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

HOUR_S, DAY_S = 3_600.0, 86_400.0
LEASE_S = 3.0
# Each Python process that finds this on its path reads the date from the machine's clock and a number in a file.
SHIFTED = """
import mmap, os, struct, time
with open(os.path.join(os.path.dirname(__file__), "offset"), "rb") as file:
    offset = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
real = time.time
time.time = lambda: real() + struct.unpack("d", offset[:])[0]
time.time_ns = lambda: int(time.time() * 1e9)
"""


class Clocks:
    """The clocks of all processes that are started from now on, and this one's."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        directory.mkdir()
        (directory / "sitecustomize.py").write_text(SHIFTED)
        (directory / "offset").write_bytes(bytes(8))
        with (directory / "offset").open("r+b") as file:
            self._offset = mmap.mmap(file.fileno(), 8)
        self.real = time.time
        patch.setenv("PYTHONPATH", str(directory))
        patch.setattr(time, "time", lambda: self.real() + self.offset_s)

    @property
    def offset_s(self) -> float:
        """How far they are from the true time."""
        return float(struct.unpack("d", self._offset[:])[0])

    def set(self, offset_s: float) -> None:
        """Sets them all."""
        self._offset[:] = struct.pack("d", offset_s)

    def close(self) -> None:
        self._offset.close()


@pytest.fixture
def clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clocks]:
    made = Clocks(tmp_path / "clocks", monkeypatch)
    yield made
    monkeypatch.undo()
    made.close()


def once_more(directory: Path, name: str, *, backoff_s: float) -> JobRequest:
    """A job whose second attempt succeeds; it may take half a minute."""
    return JobRequest(
        name,
        Entrypoint.from_callable(programs.fail_once, directory, name),
        lab.SMALL,
        retry=RetryPolicy(max_failures=1, max_preemptions=0, backoff_s=backoff_s),
        timeout_s=30.0,
    )


def waiting(client: Cluster) -> JobId:
    """A job that finds no room, for a minute."""
    room = ResourceConfig.with_cpu(cpu=1000, memory="100MB")
    return client.launch(JobRequest("waits", Entrypoint.from_command("true"), room, scheduling_timeout_s=60.0))


def kinds(client: Cluster, job_id: JobId) -> list[str]:
    """What the journal tells of a job."""
    return [each.kind for each in client.events(job_id)]


def join_tokens(client: Cluster) -> list[str]:
    """Those that are still good."""
    return [each.token_id for each in client._call("ListTokens", pb.ListTokensRequest(), pb.ListTokensResponse).tokens]


def test_setting_all_clocks_disturbs_no_lease_no_limit_no_pause_and_no_line(tmp_path: Path, clocks: Clocks) -> None:
    witness, began = Witness.at(tmp_path / "witness"), clocks.real()
    lines: list[LogLine] = []
    with (
        Server(tmp_path / "state", "--backend", "local", "--worker-lease", str(LEASE_S)) as server,
        server.client() as client,
    ):
        job = client.submit(witness.request())
        waits = waiting(client)
        witness.wait_for_run()
        client.register_endpoint("service", "127.0.0.1:1")
        token = pb.CreateTokenRequest(request_id=uuid.uuid4().hex, kind=pb.TokenKind.JOIN, uses=1, ttl_s=60)
        client._call("CreateToken", token, pb.CreateTokenResponse)
        followed = lab.in_thread(lambda: lines.extend(job.logs(follow=True)))
        for number, offset_s in enumerate((HOUR_S, -HOUR_S, 3 * DAY_S, -3 * DAY_S, 0.0)):
            clocks.set(offset_s)
            again = client.submit(once_more(tmp_path, f"again-{number}", backoff_s=0.2))
            dated = client.submit(programs.tell_time)
            info = again.wait(timeout=lab.WITHIN_S)
            assert (info.status, info.tasks[0].attempt) == (JobStatus.SUCCEEDED, 2), info
            assert (
                abs(dated.result(timeout=lab.WITHIN_S) - clocks.real() - offset_s) < lab.WITHIN_S
            )  # it was really set
            task = info.tasks[0]
            assert info.submitted_at is not None
            assert task.started_at is not None
            assert task.finished_at is not None
            assert began <= info.submitted_at <= task.started_at <= task.finished_at <= clocks.real() + 1.0
            assert task.finished_at - task.started_at >= 0.04  # it slept for 50 ms
        witness.let_end()
        count = job.result(timeout=lab.WITHIN_S)
        followed.result(lab.WITHIN_S)

        assert (job.info().tasks[0].attempt, len(witness.runs)) == (1, 1)
        assert [int(line.data) for line in lines] == list(range(count))
        times = [line.timestamp for line in lines]
        assert times == sorted(times)
        assert began - 1.0 <= times[0]
        assert times[-1] <= clocks.real() + 1.0
        assert times[-1] - times[0] > 0.2
        assert client.poll(waits).status is JobStatus.PENDING
        assert len(client.lookup_endpoints("service")) == 1
        assert len(join_tokens(client)) == 1


def test_a_controller_that_starts_again_with_its_clock_set_back_goes_on_where_it_was(
    tmp_path: Path, clocks: Clocks
) -> None:
    witness = Witness.at(tmp_path / "witness")
    with (
        Server(tmp_path / "state", "--backend", "local") as server,
        server.client() as client,
    ):
        running = client.submit(witness.request())
        witness.wait_for_run()
        paused = client.submit(once_more(tmp_path, "paused", backoff_s=2.0))
        lab.wait_until(lambda: "TaskRetried" in kinds(client, paused.job_id), "it is to be tried again")
        server.end(signal.SIGKILL)
        clocks.set(-2 * DAY_S)
        server.start()
        later = client.submit(int, 1)

        assert paused.wait(timeout=lab.WITHIN_S).status is JobStatus.SUCCEEDED
        assert later.result(timeout=lab.WITHIN_S) == 1
        newest_first = [job.job_id for job in client.list_jobs()]
        assert newest_first == [later.job_id, paused.job_id, running.job_id]
        times = [each.timestamp for each in client.events(paused.job_id)]
        assert times == sorted(times)
        witness.let_end()
        assert running.result(timeout=lab.WITHIN_S) > 0
        assert len(witness.runs) == 1
