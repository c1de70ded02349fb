"""The wire contract as files: what it names, and what it must not."""

import re
from pathlib import Path

import pytest

from fluster.rpc.gen.fluster.actor.v1.actor_connect import ActorService
from fluster.rpc.gen.fluster.cluster.v1.controller_connect import ControllerService
from fluster.rpc.gen.fluster.cluster.v1.worker_connect import WorkerService

ROOT = Path(__file__).parent.parent
CLUSTER_PROTOS = sorted((ROOT / "proto" / "fluster" / "cluster").rglob("*.proto"))
CONTROLLER_RPCS = [
    "LaunchJob",
    "LaunchJobs",
    "GetJobStatus",
    "TerminateJob",
    "ListJobs",
    "WaitJobs",
    "GetResult",
    "FetchLogs",
    "ExplainJob",
    "ListEvents",
    "ListWorkers",
    "ListAllocations",
    "RegisterEndpoint",
    "RenewEndpoints",
    "UnregisterEndpoint",
    "LookupEndpoints",
    "ListEndpoints",
    "RegisterWorker",
    "SyncWorker",
    "PushLogs",
    "PutBlob",
    "GetBlob",
    "GetWheel",
    "CreateToken",
    "ListTokens",
    "RevokeToken",
]


@pytest.mark.parametrize("path", CLUSTER_PROTOS, ids=lambda path: path.name)
def test_no_actor_specific_terminology_in_cluster_protos(path: Path) -> None:
    # The journal's "actor" is who did something; what else says actor would be the layer above.
    words = re.findall(r"\w*actor\w*", path.read_text(), re.IGNORECASE)

    assert [word for word in words if word != "actor"] == []
    assert len(words) <= 2  # who did it, and whose deeds are asked for


@pytest.mark.parametrize("folder", ["controller", "worker", "backend", "attempt"])
def test_no_actor_specific_code_below_the_cluster(folder: str) -> None:
    sources = (ROOT / "src" / "fluster" / "cluster" / folder).rglob("*.py")

    assert [path.name for path in sources if re.search(r"fluster\.(actor|pool)\b", path.read_text())] == []


def test_the_controllers_rpcs_are_those_that_were_agreed() -> None:
    assert {method.name for method in ControllerService.desc().methods} == set(CONTROLLER_RPCS)


def test_the_workers_and_the_actors_rpcs_are_those_that_were_agreed() -> None:
    worker = {method.name for method in WorkerService.desc().methods}

    assert worker == {"RunJob", "GetJobStatus", "StreamLogs", "KillJob", "HealthCheck"}
    assert {method.name for method in ActorService.desc().methods} == {"Call", "HealthCheck"}


def test_every_request_that_changes_something_carries_an_id_of_its_caller() -> None:
    reading = re.compile("Get|List|Wait|Fetch|Explain|Lookup")
    # Whole sets, offsets and leases: repeating these changes nothing by their nature.
    by_nature = {"SyncWorker", "PushLogs", "PutBlob", "RenewEndpoints"}
    changing = [
        method
        for method in ControllerService.desc().methods
        if not reading.match(method.name) and method.name not in by_nature
    ]

    assert changing
    for method in changing:
        assert "request_id" in {field.name for field in method.input.fields}, method.name
