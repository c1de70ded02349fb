"""Known secrets go through a whole cluster; then everything that others could read is searched for them."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.lab import wait_until

from fluster import AlreadyExists, Cluster, Entrypoint, EnvironmentConfig, JobRequest, JobStatus, LocalCluster
from fluster.cluster.attempt import proc
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

CANARY = "canary-7f3a9b52e1-secret"
PASSED_ON = "hf_canary5d81c07e46aa"
SECRETS = EnvironmentConfig(secrets={"PASSWORD": CANARY}, env_vars={"HF_TOKEN": PASSED_ON, "PLAIN": "seen"})


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(state_dir=tmp_path_factory.mktemp("canary")) as cluster:
        cluster.list_jobs()  # its connection belongs to no test
        yield cluster


def _tell_and_wait(gate: str) -> str:
    password = os.environ["PASSWORD"]
    print(f"it is {password}", flush=True)
    print(f"or {base64.b64encode(password.encode()).decode()}", flush=True)
    while not Path(gate).exists():
        time.sleep(0.01)
    return password.upper() + os.environ["HF_TOKEN"].upper() + os.environ["PLAIN"]


def _fail() -> None:
    raise ValueError(f"cannot log in with {os.environ['PASSWORD']}")


def test_secrets_reach_the_job_and_nobody_else(cluster: LocalCluster, tmp_path: Path) -> None:
    request = JobRequest("teller", Entrypoint.from_callable(_tell_and_wait, str(tmp_path / "go")), environment=SECRETS)
    job = cluster.submit(request)
    wait_until(lambda: len(list(cluster.logs(job.job_id))) == 2, "its lines have been shipped")
    # While it runs: what the job's own process has is its own.
    assert _found_in_files(cluster._state_dir, without=("stdout",)) == []
    assert _found_in_processes(cluster) == []
    (tmp_path / "go").touch()
    assert job.result(timeout=30) == CANARY.upper() + PASSED_ON.upper() + "seen"
    assert [line.data for line in job.logs()] == ["it is " + "*" * len(CANARY), "or " + "*" * 32]
    failed = cluster.submit(JobRequest("failing", Entrypoint.from_callable(_fail), environment=SECRETS))
    info = failed.wait(timeout=30)
    assert info.status is JobStatus.FAILED
    assert info.error_message is not None
    assert "cannot log in with *****" in info.error_message
    worker = cluster._state_dir / "workers/local-0"
    wait_until(lambda: not any([*worker.glob("attempts/*"), *worker.glob("trash/*")]), "its worker has dropped both")
    assert _found_in_files(cluster._state_dir) == []
    assert _found_in_answers(cluster, [job.job_id, failed.job_id]) == []
    with pytest.raises(ValueError, match=r"cannot log in with \*{24}"):
        failed.result()


def _found_in_files(root: Path, without: tuple[str, ...] = ()) -> list[str]:
    """Files, the database's and its log's among them, in which a canary can be read."""
    found = []
    for path in root.rglob("*"):
        if path.is_file() and path.name not in without and _shows(path.read_bytes()):
            found.append(str(path))
    return found


def _found_in_processes(cluster: LocalCluster) -> list[str]:
    """What every process shows to others, and the whole environment of those that are not the job's."""
    daemon = cluster._daemon.pid
    daemons = {daemon, *proc.descendants(daemon), *_workers(cluster)}
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            shown = Path(f"/proc/{pid}/cmdline").read_bytes()
            own = Path(f"/proc/{pid}/environ").read_bytes() if pid in daemons else b""
        except OSError:
            continue
        if _shows(shown) or _shows(own):
            found.append(f"{pid}: {shown!r}")
    return found


def _workers(cluster: LocalCluster) -> set[int]:
    pid = int((cluster._state_dir / "workers/local-0/lock").read_text())
    return {pid, *proc.descendants(pid)}


def _found_in_answers(cluster: Cluster, job_ids: list[str]) -> list[str]:
    """Every RPC that tells something, asked about everything."""
    call = cluster._rpc.unary
    answers = {
        "GetResult": call("GetResult", pb.GetResultRequest(job_id=job_ids[-1]), pb.GetResultResponse).to_binary(),
        "ListJobs": call("ListJobs", pb.ListJobsRequest(), pb.ListJobsResponse).to_binary(),
        "ListEvents": call("ListEvents", pb.ListEventsRequest(page_size=1000), pb.ListEventsResponse).to_binary(),
        "ListWorkers": call("ListWorkers", pb.ListWorkersRequest(), pb.ListWorkersResponse).to_binary(),
        "ListAllocations": call("ListAllocations", pb.ListAllocationsRequest(), pb.ListAllocationsResponse).to_binary(),
        "ListEndpoints": call("ListEndpoints", pb.ListEndpointsRequest(), pb.ListEndpointsResponse).to_binary(),
        "ListTokens": call("ListTokens", pb.ListTokensRequest(), pb.ListTokensResponse).to_binary(),
        "WaitJobs": call("WaitJobs", pb.WaitJobsRequest(job_ids=job_ids), pb.WaitJobsResponse).to_binary(),
    }
    for job_id in job_ids:
        status = call("GetJobStatus", pb.GetJobStatusRequest(job_id=job_id), pb.GetJobStatusResponse)
        explained = call("ExplainJob", pb.ExplainJobRequest(job_id=job_id), pb.ExplainJobResponse)
        logs = cluster._rpc.stream("FetchLogs", pb.FetchLogsRequest(job_id=job_id), pb.FetchLogsResponse)
        answers[f"GetJobStatus {job_id}"] = status.to_binary()
        answers[f"ExplainJob {job_id}"] = explained.to_binary()
        answers[f"FetchLogs {job_id}"] = b"".join(each.to_binary() for each in logs)
    return [name for name, content in answers.items() if _shows(content)]


def _shows(content: bytes) -> bool:
    return CANARY.encode() in content or PASSED_ON.encode() in content


def test_tokens_are_in_their_own_files_and_nowhere_else(cluster: LocalCluster, tmp_path: Path) -> None:
    job = cluster.submit(JobRequest("idle", Entrypoint.from_command("sleep", "60")))
    wait_until(lambda: job.status() is JobStatus.RUNNING, "it runs")
    state_dir = cluster._state_dir
    worker, attempt = state_dir / "workers/local-0", next((state_dir / "workers/local-0/attempts").iterdir())
    wait_until((worker / "worker.token").exists, "the worker's own service is there")
    own = {
        state_dir / "admin.token": (state_dir / "admin.token").read_text().strip(),
        worker / "join.token": (worker / "join.token").read_text().strip(),
        worker / "worker.token": (worker / "worker.token").read_text().strip(),
        attempt / "token": (attempt / "token").read_text().strip(),
    }
    for file, token in own.items():
        assert file.stat().st_mode & 0o077 == 0
        holders = [path for path in state_dir.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
        assert holders == [file]
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            try:
                shown = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            assert token.encode() not in shown
    job.terminate()
    job.wait(timeout=30)
    wait_until(lambda: not attempt.exists(), "its worker has dropped it")


def test_a_launch_that_is_sent_again_with_its_secrets_gives_the_same_job(cluster: LocalCluster) -> None:
    def request(secret: str) -> JobRequest:
        environment = EnvironmentConfig(secrets={"PASSWORD": secret})
        return JobRequest("once", Entrypoint.from_command("true"), environment=environment, request_id="the-same")

    with Cluster(cluster.address, token=(cluster._state_dir / "admin.token").read_text().strip()) as client:
        first = client.launch(request(CANARY))
        assert client.launch(request(CANARY)) == first
        with pytest.raises(AlreadyExists):
            client.launch(request(CANARY + "!"))
        assert client.wait(first, timeout=30).status is JobStatus.SUCCEEDED
