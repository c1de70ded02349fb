"""`up --backend docker`: a cluster in containers that stays, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.conftest import Fluster

from fluster.cluster.backend.docker import stop_docker_workers
from fluster.cluster.docker import labels
from fluster.cluster.docker.engine import Engine

pytestmark = pytest.mark.docker


@pytest.fixture
def state_dir(alone: Fluster, tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "state" / "fluster" / "local"
    yield directory
    alone("down", timeout_s=60)
    stop_docker_workers(directory)


def test_a_cluster_in_containers_comes_up_runs_jobs_in_them_and_goes_down_with_all_of_them(
    alone: Fluster, docker_image: str, state_dir: Path, tmp_path: Path
) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    shown.chmod(0o777)
    containers = ("--image", docker_image, "--python", "/usr/local/bin/python", "--mount", f"{shown}:/mnt/shown")
    up = alone("up", "--backend", "docker", *containers, timeout_s=90)
    assert up.code == 0, up.stderr
    assert "up at https://198.1" in up.stderr
    cluster = (state_dir / "docker-cluster").read_text()

    ran = alone("run", "--cpu", "0.5", "--memory", "100MB", "--", "sh", "-c", "id -un; ls /.dockerenv", timeout_s=60)
    assert (ran.code, ran.stdout.split()) == (0, ["fluster", "/.dockerenv"]), ran.stderr
    assert alone("up", "--backend", "docker", timeout_s=90).code == 0
    ran = alone("run", "--cpu", "0.5", "--memory", "100MB", "--", "touch", "/mnt/shown/by-a-job", timeout_s=60)
    assert ran.code == 0, ran.stderr
    assert [each.name for each in shown.iterdir()] == ["by-a-job"]

    down = alone("down", timeout_s=60)
    assert down.code == 0, down.stderr
    engine = Engine()
    assert asyncio.run(engine.containers({labels.CLUSTER: cluster})) == []
    assert asyncio.run(engine.networks({labels.CLUSTER: cluster})) == []
    assert "no cluster" in alone("down").stderr


@pytest.mark.parametrize("option", [("--image", "some"), ("--mount", "/data")])
def test_what_only_containers_have_is_a_usage_error_for_a_cluster_of_processes(
    alone: Fluster, option: tuple[str, str]
) -> None:
    ran = alone("up", *option)
    assert ran.code == 2
    assert f"{option[0]} is for --backend docker" in ran.stderr
