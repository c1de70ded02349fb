"""What `fluster doctor` says of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.conftest import Fluster

from fluster import Cluster
from fluster.cli import checks

NAMES = {"python", "fluster", "uv", "machine", "limits", "docker", "open files", "clock", "cluster"}


def test_it_says_what_is_there_and_what_to_do_about_the_rest(alone: Fluster) -> None:
    ran = alone("doctor")
    assert ran.code == 0, ran.stdout
    assert "no gpu" in ran.stdout or " gpu" in ran.stdout
    assert "`fluster up` starts one on this machine" in ran.stderr


def test_programs_read_it_as_json(alone: Fluster) -> None:
    found = alone("doctor", "--json").objects
    assert {each["name"] for each in found} >= NAMES
    assert all(set(each) == {"name", "status", "found", "advice"} for each in found)
    assert {each["status"] for each in found} <= {"ok", "limited"}
    assert all(each["advice"] for each in found if each["status"] != "ok")


def test_a_configured_cluster_that_does_not_answer_is_a_failure(alone: Fluster) -> None:
    ran = alone("doctor", "--json", FLUSTER_CLUSTER_ADDRESS="http://127.0.0.1:9", FLUSTER_TOKEN="x")
    assert ran.code == 1
    (cluster,) = [each for each in ran.objects if each["name"] == "cluster"]
    assert cluster["status"] == "failed"
    assert "127.0.0.1:9" in cluster["found"]


def test_a_cluster_that_answers_is_told_with_its_workers(fluster: Fluster) -> None:
    (cluster,) = [each for each in fluster("doctor", "--json").objects if each["name"] == "cluster"]
    assert cluster["status"] == "ok"
    assert cluster["found"].endswith("1 worker ready")


def test_the_port_of_the_cluster_that_is_meant_is_nothing_to_mend(
    monkeypatch: pytest.MonkeyPatch, cluster: Cluster
) -> None:
    monkeypatch.setattr(checks, "_PORT", int(cluster.address.rpartition(":")[2]))
    assert checks._port("http://127.0.0.1:9").status is checks.Status.LIMITED
    found = checks._port(cluster.address)
    assert (found.status, found.advice) == (checks.Status.OK, "")
    assert "the configured cluster's" in found.found


def test_a_command_runs_in_a_copy_of_the_workspace(fluster: Fluster, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "module.py").write_text("print('found')")
    ran = fluster("run", "--workspace", "here", "--", "sh", "-c", "ls; cd /; python3 -m module")
    assert (ran.code, ran.stdout) == (0, "module.py\nfound\n"), ran.stderr
    assert fluster("run", "--workspace", "nowhere", "--", "true").code == 2


def test_packages_that_cannot_be_had_are_said_in_the_installers_words(fluster: Fluster) -> None:
    ran = fluster("run", "--with", "no such package", "--", "true")
    assert ran.code == 1
    assert "the environment (no such package) could not be built: error: Couldn't parse requirement" in ran.stderr
