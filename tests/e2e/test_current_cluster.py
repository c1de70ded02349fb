"""The cluster a program means when it names none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.e2e import lab
from tests.e2e.outside import Creator

from fluster import Entrypoint, JobRequest, LocalCluster, NotInCluster, current_cluster
from fluster.cluster.config_edit import configure_cluster
from fluster.cluster.context import read_token_file


def token_of(cluster: LocalCluster) -> str:
    return read_token_file(cluster._daemon.token_file)


def test_inside_a_job_it_is_that_jobs_cluster_with_its_namespace_and_itself_as_parent(cluster: LocalCluster) -> None:
    def parent() -> tuple[str, str, str | None, str, str]:
        with current_cluster() as inner:
            child = inner.submit(os.getenv, "FLUSTER_NAMESPACE")
            namespace = child.result()
            return inner.address, inner.namespace, child.info().parent, child.info().namespace, namespace

    job = cluster.submit(JobRequest("parent", Entrypoint.from_callable(parent), lab.SMALL))
    address, *rest = job.result(timeout=lab.WITHIN_S)

    assert address == cluster.address
    assert rest == ["default", job.job_id, "default", "default"]


@pytest.mark.parametrize("variable", ["FLUSTER_CLUSTER_ADDRESS", "FLUSTER_TOKEN_FILE", "FLUSTER_ATTEMPT"])
def test_inside_a_job_whose_variables_are_broken_it_is_an_error_and_no_new_cluster(
    cluster: LocalCluster, variable: str
) -> None:
    def broken(name: str) -> list[str]:
        del os.environ[name]
        try:
            current_cluster()
        except NotInCluster as error:
            return [str(error), *error.missing]
        return []

    text, missing = cluster.submit(broken, variable).result(timeout=lab.WITHIN_S)
    assert missing == variable
    assert variable in text


def test_outside_of_jobs_it_is_the_one_that_variables_name(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLUSTER_CLUSTER_ADDRESS", cluster.address)
    monkeypatch.setenv("FLUSTER_NAMESPACE", "elsewhere")
    monkeypatch.setenv("FLUSTER_TOKEN", token_of(cluster))
    with current_cluster() as found:
        assert (found.address, found.namespace) == (cluster.address, "elsewhere")
        assert found.submit(int, 7).result(timeout=lab.WITHIN_S) == 7
    monkeypatch.delenv("FLUSTER_TOKEN")
    (tmp_path / "token").write_text(token_of(cluster))
    monkeypatch.setenv("FLUSTER_TOKEN_FILE", str(tmp_path / "token"))
    with current_cluster() as found:
        assert found.list_jobs(limit=1)


def test_else_it_is_the_configured_one(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    configure_cluster("mine", cluster.address, cluster._daemon.token_file)
    with current_cluster() as found:
        assert found.address == cluster.address
        assert found.submit(int, 8).result(timeout=lab.WITHIN_S) == 8


SHARED = """
import logging
logging.basicConfig(stream=sys.stdout, format="%(name)s: %(message)s")
from fluster import current_cluster
first = current_cluster()
say([type(first).__name__, first is current_cluster(), first.submit(int, 9).result()])
"""


def test_else_one_local_cluster_is_shared_said_once_and_closed_at_exit(tmp_path: Path) -> None:
    with Creator(SHARED, tmp_path) as creator:
        output, _ = creator.process.communicate(timeout=lab.WITHIN_S)
        said, answer = output.splitlines()
        assert said.startswith("fluster.cluster.local: no cluster is configured")
        assert "`fluster up`" in said
        assert answer == '["LocalCluster", true, 9]'
        assert creator.process.returncode == 0
        assert not creator.family()
        assert not any(creator.temporary.iterdir())


def test_the_shared_one_is_not_a_forked_childs_and_is_replaced_once_it_was_closed(tmp_path: Path) -> None:
    script = (
        SHARED
        + """
if (pid := os.fork()) == 0:
    say(current_cluster().address != first.address)
    sys.exit(0)
os.waitpid(pid, 0)
say(first.submit(int, 10).result())
with first:
    pass
say(current_cluster().submit(int, 11).result())
"""
    )
    with Creator(script, tmp_path) as creator:
        output, _ = creator.process.communicate(timeout=lab.WITHIN_S)
        answers = [line for line in output.splitlines() if "no cluster is configured" not in line]
        assert answers == ['["LocalCluster", true, 9]', "true", "10", "11"]
        assert creator.process.returncode == 0
        assert not creator.family()
