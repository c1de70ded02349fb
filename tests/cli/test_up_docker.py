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
    alone: Fluster, docker_image: str, state_dir: Path
) -> None:
    up = alone("up", "--backend", "docker", "--image", docker_image, timeout_s=90)
    assert up.code == 0, up.stderr
    assert "up at https://198.1" in up.stderr
    cluster = (state_dir / "docker-cluster").read_text()

    ran = alone("run", "--cpu", "0.5", "--memory", "100MB", "--", "sh", "-c", "id -un; ls /.dockerenv", timeout_s=60)
    assert (ran.code, ran.stdout.split()) == (0, ["fluster", "/.dockerenv"]), ran.stderr
    assert alone("up", "--backend", "docker", timeout_s=90).code == 0

    down = alone("down", timeout_s=60)
    assert down.code == 0, down.stderr
    engine = Engine()
    assert asyncio.run(engine.containers({labels.CLUSTER: cluster})) == []
    assert asyncio.run(engine.networks({labels.CLUSTER: cluster})) == []
    assert "no cluster" in alone("down").stderr


def test_an_image_for_a_cluster_of_processes_is_a_usage_error(alone: Fluster) -> None:
    ran = alone("up", "--image", "some")
    assert ran.code == 2
    assert "--image is for --backend docker" in ran.stderr
