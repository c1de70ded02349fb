from pathlib import Path

import pytest

from fluster.cluster.worker.folder import Folder
from fluster.cluster.worker.variables import Surroundings, base_variables, task_variables
from fluster.rpc.gen.fluster.cluster.v1.controller_pb import AttemptSpec
from fluster.rpc.gen.fluster.cluster.v1.types_pb import EnvironmentSpec

AROUND = Surroundings("w-1", "http://c:7077", "10.0.0.5", {"PATH": "/bin", "FLUSTER_TOKEN": "hush", "PWD": "/daemon"})
FOLDER = Folder(Path("/state/attempts/u-1"))


def variables(spec: AttemptSpec, around: Surroundings = AROUND, **more: object) -> dict[str, str]:
    given = {"ports": {}, "master_port": 4000, "gpus": (), **more}
    return task_variables(FOLDER, spec, around, **given)  # type: ignore[arg-type]


def test_every_variable_of_the_contract_is_set() -> None:
    spec = AttemptSpec(
        job_id="j",
        job_name="train",
        task_index=3,
        num_tasks=4,
        world_size=4,
        attempt=2,
        namespace="ns",
        token="t",
        local_rank=1,
        local_world_size=2,
        node_rank=1,
        master_host="10.0.0.4",
        ports=["http"],
    )
    found = variables(spec, ports={"http": 8080})
    assert {key: value for key, value in found.items() if key not in ("PATH", "PWD", "TMPDIR")} == {
        "FLUSTER_CLUSTER_ADDRESS": "http://c:7077",
        "FLUSTER_NAMESPACE": "ns",
        "FLUSTER_JOB_ID": "j",
        "FLUSTER_JOB_NAME": "train",
        "FLUSTER_TASK_INDEX": "3",
        "FLUSTER_NUM_TASKS": "4",
        "FLUSTER_ATTEMPT": "2",
        "FLUSTER_ATTEMPT_UID": "u-1",
        "FLUSTER_WORKER_ID": "w-1",
        "FLUSTER_TOKEN_FILE": "/state/attempts/u-1/token",
        "FLUSTER_ADVERTISE_HOST": "10.0.0.5",
        "FLUSTER_PORT_HTTP": "8080",
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "NODE_RANK": "1",
        "MASTER_ADDR": "10.0.0.4",
        "MASTER_PORT": "4000",
    }


def test_a_task_of_its_own_gang_is_a_world_of_its_own() -> None:
    found = variables(AttemptSpec(task_index=7, num_tasks=9, world_size=1))
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"], found["NODE_RANK"]) == ("0", "1", "0", "0")
    assert (found["FLUSTER_TASK_INDEX"], found["FLUSTER_NUM_TASKS"]) == ("7", "9")
    assert found["MASTER_ADDR"] == "10.0.0.5"


def test_the_users_variables_win_over_all_but_flusters_own() -> None:
    spec = AttemptSpec(
        job_id="j", environment=EnvironmentSpec(env_vars={"PATH": "/mine", "RANK": "9", "FLUSTER_JOB_ID": "forged"})
    )
    found = variables(spec)
    assert (found["PATH"], found["RANK"], found["FLUSTER_JOB_ID"]) == ("/mine", "9", "j")


def test_the_workers_secrets_are_not_passed_on() -> None:
    assert base_variables({"A": "1", "FLUSTER_TOKEN": "x", "FLUSTER_TOKEN_FILE": "y", "PWD": "/"}) == {"A": "1"}


@pytest.mark.parametrize(("gpus", "visible"), [((), ""), ((0, 3), "0,3")])
def test_where_gpus_are_handed_out_a_task_sees_its_own_alone(gpus: tuple[int, ...], visible: str) -> None:
    around = Surroundings("w-1", base={"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, has_gpus=True)
    assert variables(AttemptSpec(), around, gpus=gpus)["CUDA_VISIBLE_DEVICES"] == visible


def test_where_there_are_none_the_variable_is_left_alone() -> None:
    assert "CUDA_VISIBLE_DEVICES" not in variables(AttemptSpec())


def test_directories_are_the_attempts_own_unless_given() -> None:
    found = variables(AttemptSpec())
    assert (found["PWD"], found["TMPDIR"]) == ("/state/attempts/u-1/work", "/state/attempts/u-1/tmp")
    spec = AttemptSpec(environment=EnvironmentSpec(working_directory="/home/me/project"))
    assert variables(spec)["PWD"] == "/home/me/project"
