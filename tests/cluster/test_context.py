import os
from pathlib import Path

import pytest

from fluster.cluster.context import (
    ClientVariables,
    TaskContext,
    config_home,
    field_defaults,
    find_project,
    normal_address,
    read_token_file,
    without_cluster_variables,
)
from fluster.cluster.ids import JobId, Namespace, WorkerId
from fluster.errors import NotInCluster

CONTEXT = TaskContext(
    cluster_address="http://127.0.0.1:7077",
    namespace=Namespace("team"),
    job_id=JobId("j1"),
    job_name="train",
    task_index=2,
    num_tasks=8,
    attempt=1,
    attempt_uid="j1-2-1",
    worker_id=WorkerId("w1"),
    token_file="/state/token",
    advertise_host="10.0.0.1",
    ports={"HTTP": 8080},
)


def test_what_a_worker_writes_the_task_reads_back() -> None:
    assert TaskContext.from_environment(CONTEXT.to_environment()) == CONTEXT


def test_the_variables_of_a_task_are_the_documented_ones() -> None:
    assert set(CONTEXT.to_environment()) == {
        *("FLUSTER_CLUSTER_ADDRESS", "FLUSTER_NAMESPACE", "FLUSTER_JOB_ID", "FLUSTER_JOB_NAME", "FLUSTER_TASK_INDEX"),
        *("FLUSTER_NUM_TASKS", "FLUSTER_ATTEMPT", "FLUSTER_ATTEMPT_UID", "FLUSTER_WORKER_ID", "FLUSTER_TOKEN_FILE"),
        *("FLUSTER_ADVERTISE_HOST", "FLUSTER_PORT_HTTP"),
    }


def test_outside_of_a_job_there_is_no_context() -> None:
    assert TaskContext.from_environment({}) is None
    assert TaskContext.from_environment({"FLUSTER_CLUSTER_ADDRESS": "http://127.0.0.1:1", "FLUSTER_JOB_ID": ""}) is None


def test_by_default_this_processs_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CONTEXT.to_environment().items():
        monkeypatch.setenv(name, value)
    assert TaskContext.from_environment() == CONTEXT


def test_inside_a_job_missing_variables_raise_and_are_named() -> None:
    variables = {**CONTEXT.to_environment(), "FLUSTER_NAMESPACE": ""}
    del variables["FLUSTER_TOKEN_FILE"]
    with pytest.raises(NotInCluster, match="FLUSTER_NAMESPACE, FLUSTER_TOKEN_FILE") as caught:
        TaskContext.from_environment(variables)
    assert caught.value.missing == ("FLUSTER_NAMESPACE", "FLUSTER_TOKEN_FILE")


@pytest.mark.parametrize("name", ["FLUSTER_TASK_INDEX", "FLUSTER_NUM_TASKS", "FLUSTER_ATTEMPT", "FLUSTER_PORT_HTTP"])
def test_a_variable_that_is_no_number_raises_and_is_named(name: str) -> None:
    with pytest.raises(NotInCluster, match=f"{name} must be a whole number, got 'x'"):
        TaskContext.from_environment({**CONTEXT.to_environment(), name: "x"})


def test_client_variables_that_are_empty_count_as_not_set() -> None:
    assert ClientVariables.from_environment({"FLUSTER_TOKEN": "", "FLUSTER_NAMESPACE": ""}) == ClientVariables()


def test_client_variables_are_read_and_the_token_does_not_show() -> None:
    found = ClientVariables.from_environment(
        {
            "FLUSTER_CLUSTER_ADDRESS": "http://h:1",
            "FLUSTER_NAMESPACE": "team",
            "FLUSTER_TOKEN": "hush",
            "FLUSTER_SERVER_PYTHON": "/opt/python",
        }
    )
    assert (found.address, found.namespace, found.server_python) == ("http://h:1", "team", "/opt/python")
    assert found.read_token() == "hush"
    assert "hush" not in repr(found)


def test_a_token_file_is_read_when_no_token_is_set(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("hush\n")
    assert ClientVariables.from_environment({"FLUSTER_TOKEN_FILE": str(file)}).read_token() == "hush"
    both = {"FLUSTER_TOKEN_FILE": str(file), "FLUSTER_TOKEN": "first"}
    assert ClientVariables.from_environment(both).read_token() == "first"
    assert ClientVariables().read_token() is None


@pytest.mark.parametrize("content", ["", "two words", "-----BEGIN KEY-----\nhush\n", "x" * 5000, "hüsh", "hush\0"])
def test_a_file_that_holds_something_else_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(ValueError, match="does not hold a token") as caught:
        read_token_file(file)
    assert "hush" not in str(caught.value)


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the token file .*nowhere.*No such file"):
        read_token_file(tmp_path / "nowhere")


def test_variables_of_the_cluster_are_left_out_for_the_next_task() -> None:
    assert without_cluster_variables({"FLUSTER_TOKEN": "hush", "PATH": "/bin"}) == {"PATH": "/bin"}


def test_tokens_of_the_field_are_passed_on_only_when_set() -> None:
    assert field_defaults({"HF_TOKEN": "h", "WANDB_API_KEY": ""}) == {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_TOKEN": "h",
    }


def test_configuration_lives_where_xdg_says(tmp_path: Path) -> None:
    assert config_home({"XDG_CONFIG_HOME": str(tmp_path)}) == tmp_path / "fluster"
    assert config_home({}) == config_home({"XDG_CONFIG_HOME": "relative"}) == Path.home() / ".config" / "fluster"


def test_the_project_is_looked_for_upwards_but_not_beyond_its_repository(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    (tmp_path / "plain" / "deep").mkdir(parents=True)
    assert find_project(tmp_path / "plain" / "deep") == tmp_path.resolve()
    assert find_project(tmp_path / "repo") is None


def test_a_removed_current_directory_has_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    os.rmdir(gone)
    assert find_project() is None


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("127.0.0.1:7077", "http://127.0.0.1:7077"),
        ("http://h:1/", "http://h:1"),
        ("https://cluster.example.com", "https://cluster.example.com"),
        ("[::1]:80", "http://[::1]:80"),
    ],
)
def test_a_clusters_address_has_one_form(given: str, meant: str) -> None:
    assert normal_address(given) == meant


@pytest.mark.parametrize(
    "given", ["", "ftp://h:1", "http://u:p@h:1", "http://h:1/path", "h:1\n", "h:123456", "a b:1", 3, None]
)
def test_anything_else_is_no_clusters_address(given: object) -> None:
    with pytest.raises(ValueError, match="a cluster's address must be 'http://host:port'"):
        normal_address(given)  # type: ignore[arg-type]
