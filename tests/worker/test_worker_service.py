"""A standalone worker's API over real RPC, served from a thread of the test's own process."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import cloudpickle
import pytest

from fluster.cluster.worker.manager import JobManager
from fluster.cluster.worker.messages import (
    blob_payload,
    callable_entrypoint,
    command_entrypoint,
    inline_payload,
)
from fluster.cluster.worker.process_runtime import ProcessRuntime
from fluster.cluster.worker.server import WorkerServer
from fluster.cluster.worker.service import WorkerServicer
from fluster.errors import AlreadyExists, FailedPrecondition, JobNotFound, NotPermitted
from fluster.rpc.client import ConnectClient
from fluster.rpc.gen.fluster.cluster.v1 import worker_pb as pb
from fluster.rpc.gen.fluster.cluster.v1.types_pb import (
    Cause,
    EntrypointSpec,
    EnvironmentSpec,
    LogStream,
    Outcome,
    TaskState,
)

WITHIN_S = 20.0


class Client:
    def __init__(self, server: WorkerServer, token: str | None = None) -> None:
        self.rpc = ConnectClient(
            server.address, "fluster.cluster.v1.WorkerService", token=server.token if token is None else token
        )

    def run(self, job_id: str, entrypoint: EntrypointSpec, **more: object) -> pb.WorkerServiceRunJobResponse:
        request = pb.WorkerServiceRunJobRequest(job_id=job_id, entrypoint=entrypoint, **more)  # type: ignore[arg-type]
        return self.rpc.unary("RunJob", request, pb.WorkerServiceRunJobResponse)

    def status(self, job_id: str) -> pb.WorkerServiceGetJobStatusResponse:
        request = pb.WorkerServiceGetJobStatusRequest(job_id=job_id)
        return self.rpc.unary("GetJobStatus", request, pb.WorkerServiceGetJobStatusResponse)

    def until(
        self, job_id: str, accept: Callable[[pb.WorkerServiceGetJobStatusResponse], bool]
    ) -> pb.WorkerServiceGetJobStatusResponse:
        deadline = time.monotonic() + WITHIN_S
        while not accept(status := self.status(job_id)):
            assert time.monotonic() < deadline, status
            time.sleep(0.01)
        return status

    def ended(self, job_id: str) -> pb.WorkerServiceGetJobStatusResponse:
        return self.until(job_id, lambda status: status.state >= TaskState.SUCCEEDED)

    def logs(self, job_id: str, **more: object) -> Iterator[pb.WorkerServiceStreamLogsResponse]:
        request = pb.WorkerServiceStreamLogsRequest(job_id=job_id, **more)  # type: ignore[arg-type]
        return self.rpc.stream("StreamLogs", request, pb.WorkerServiceStreamLogsResponse, idle_timeout_s=WITHIN_S)

    def kill(self, job_id: str, *, force: bool = False) -> None:
        request = pb.WorkerServiceKillJobRequest(job_id=job_id, force=force)
        self.rpc.unary("KillJob", request, pb.WorkerServiceKillJobResponse)

    def health(self) -> pb.WorkerServiceHealthCheckResponse:
        request = pb.WorkerServiceHealthCheckRequest()
        return self.rpc.unary("HealthCheck", request, pb.WorkerServiceHealthCheckResponse)


@contextmanager
def serving(max_concurrent_jobs: int = 10) -> Iterator[WorkerServer]:
    runtime = ProcessRuntime(f"test-{os.getpid()}", subreaper=False)
    server = WorkerServer(JobManager(runtime, max_concurrent_jobs))
    server.start()
    try:
        yield server
    finally:
        server.shutdown()


@pytest.fixture
def client() -> Iterator[Client]:
    with serving() as server:
        client = Client(server)
        with closing(client.rpc):
            yield client


def test_a_job_runs_and_its_status_tells_how_it_ended(client: Client) -> None:
    accepted = client.run("job", command_entrypoint(["sh", "-c", "exit 4"]))
    assert (accepted.job_id, accepted.state) == ("job", TaskState.PENDING)
    ended = client.ended("job")
    assert (ended.state, ended.exit_code, ended.cause) == (TaskState.FAILED, 4, Cause.EXIT)
    assert ended.finished_at >= ended.started_at > 0


def test_a_callable_gives_its_outcome(client: Client) -> None:
    client.run("job", callable_entrypoint(inline_payload(cloudpickle.dumps((max, (3, 5), {})))))
    kind = Outcome.from_binary(client.ended("job").result).kind
    assert kind is not None
    assert kind.field == "value"
    assert cloudpickle.loads(kind.value) == 5


def test_logs_follow_a_running_job_and_go_on_from_an_offset(client: Client) -> None:
    code = "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.stdin.read()"
    client.run("job", command_entrypoint([sys.executable, "-c", code]))
    seen = {LogStream.STDOUT: b"", LogStream.STDERR: b""}
    for piece in client.logs("job", follow=True):
        seen[piece.stream] += piece.data
    assert seen == {LogStream.STDOUT: b"out\n", LogStream.STDERR: b"err\n"}
    rest = list(client.logs("job", stdout_offset=2, stderr_offset=100))
    assert [(piece.offset, piece.data) for piece in rest] == [(2, b"t\n")]


def test_kill_ends_a_job(client: Client) -> None:
    client.run("job", command_entrypoint(["sleep", "60"]))
    client.until("job", lambda status: status.state is TaskState.RUNNING)
    assert client.health().running_jobs == 1
    client.kill("job")
    assert client.ended("job").state is TaskState.STOPPED
    assert client.health().running_jobs == 0


def test_health_check_tells_who_answers(client: Client) -> None:
    health = client.health()
    assert health.healthy
    assert health.worker_id == "standalone"
    assert health.version
    assert health.uptime_s >= 0


def test_every_call_needs_the_token(client: Client) -> None:
    with serving() as server:
        for token in ("", "wrong", server.token[:-1]):
            stranger = Client(server, token)
            with closing(stranger.rpc):
                for call in _each_call(stranger):
                    with pytest.raises(NotPermitted):
                        call()


def _each_call(client: Client) -> tuple[Callable[[], object], ...]:
    return (
        lambda: client.run("job", command_entrypoint(["true"])),
        lambda: client.status("job"),
        lambda: list(client.logs("job")),
        lambda: client.kill("job"),
        client.health,
    )


@pytest.mark.parametrize("job_id", ["", "../../etc", "a/b", "x" * 500, "a\0b"])
def test_a_job_id_that_leads_elsewhere_is_refused(client: Client, job_id: str) -> None:
    with pytest.raises(ValueError, match="uid"):
        client.run(job_id, command_entrypoint(["true"]))


def test_what_cannot_be_run_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="entrypoint"):
        client.run("job", EntrypointSpec())
    with pytest.raises(ValueError, match="program"):
        client.run("job", command_entrypoint([]))
    with pytest.raises(ValueError, match="in place"):
        client.run("job", callable_entrypoint(blob_payload("00" * 32)))
    with pytest.raises(ValueError, match="FLUSTER_"):
        client.run("job", command_entrypoint(["true"]), environment=EnvironmentSpec(env_vars={"FLUSTER_X": "1"}))
    with pytest.raises(ValueError, match="timeout_s"):
        client.run("job", command_entrypoint(["true"]), timeout_s=-1.0)


def test_a_damaged_callable_never_runs(client: Client) -> None:
    payload = inline_payload(b"not a pickle")
    payload.sha256 = "00" * 32
    client.run("job", callable_entrypoint(payload))
    assert client.ended("job").cause is Cause.BUILD_FAILED


def test_unknown_jobs_and_taken_ids_are_told(client: Client) -> None:
    with pytest.raises(JobNotFound):
        client.status("nobody")
    with pytest.raises(JobNotFound):
        client.kill("nobody")
    with pytest.raises(JobNotFound):
        list(client.logs("nobody"))
    client.run("job", command_entrypoint(["true"]))
    client.run("job", command_entrypoint(["true"]))
    with pytest.raises(AlreadyExists):
        client.run("job", command_entrypoint(["false"]))
    client.ended("job")


def test_a_pickle_bomb_harms_the_job_alone(client: Client) -> None:
    bomb = b"cposix\nkill\n(cposix\ngetpid\n(tRI9\ntR."
    client.run("job", callable_entrypoint(inline_payload(bomb)))
    ended = client.ended("job")
    assert (ended.cause, ended.exit_code) == (Cause.SIGNAL, 128 + signal.SIGKILL)
    assert client.health().healthy


async def test_on_a_joined_worker_jobs_come_through_its_controller(tmp_path: Path) -> None:
    manager = JobManager(ProcessRuntime(f"test-{os.getpid()}", subreaper=False), state_dir=tmp_path)
    servicer = WorkerServicer(manager, worker_id="w", joined=True)
    context: object = None
    with pytest.raises(FailedPrecondition):
        await servicer.run_job(pb.WorkerServiceRunJobRequest(job_id="job"), context)  # type: ignore[arg-type]
    with pytest.raises(FailedPrecondition):
        await servicer.kill_job(pb.WorkerServiceKillJobRequest(job_id="job"), context)  # type: ignore[arg-type]
    await manager.close()


def test_shutdown_may_be_repeated_and_a_port_that_is_taken_is_told() -> None:
    with serving() as server:
        port = int(server.address.rpartition(":")[2])
        assert server.start() == port
        second = WorkerServer(JobManager(ProcessRuntime("second", subreaper=False)), port=port)
        with pytest.raises(OSError, match="address already in use"):
            second.start()
    server.shutdown()
