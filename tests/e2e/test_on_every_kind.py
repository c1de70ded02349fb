"""What jobs do for each other, and with files of their own, on each kind of cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e import programs
from tests.e2e.lab import SMALL

from fluster import Cluster, Entrypoint, EnvironmentConfig, JobRequest, JobStatus

pytestmark = pytest.mark.everywhere
WITHIN_S = 60.0


def test_a_job_calls_an_actor_of_another_job(cluster: Cluster) -> None:
    server = cluster.submit(JobRequest("server", Entrypoint.from_callable(programs.serve_adder), SMALL))
    caller = cluster.submit(JobRequest("caller", Entrypoint.from_callable(programs.ask_adder), SMALL))
    assert caller.result(timeout=WITHIN_S)[0] == 5
    server.terminate()
    assert server.wait(timeout=WITHIN_S).status.finished()


def test_a_job_starts_in_its_workspace_may_write_there_and_imports_from_it(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "said.py").write_text("text = 'of the workspace'\n")
    code = "import os, said; print(said.text); open('made', 'w').close(); print(sorted(os.listdir())[:1])"
    environment = EnvironmentConfig(workspace=str(tmp_path))
    job = cluster.submit(JobRequest("w", Entrypoint.from_command("python3", "-B", "-c", code), SMALL, environment))
    assert job.wait(timeout=WITHIN_S).status is JobStatus.SUCCEEDED, list(job.logs())
    assert [line.data for line in job.logs()] == ["of the workspace", "['made']"]
