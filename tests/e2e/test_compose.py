"""The deployment in `deploy/compose.yaml`, as its containers come up."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path

import pytest
from tests.e2e.compose import Commanded, Composed, find_command, read_services

from fluster.cluster.docker.engine import Engine

COMPOSE = Path(__file__).parents[2] / "deploy" / "compose.yaml"
WITHIN_S = 90.0


@pytest.mark.docker
def test_the_deployment_comes_up_and_runs_a_job_on_each_of_two_workers(docker_image: str) -> None:
    project, variables = f"compose{uuid.uuid4().hex[:6]}", {"FLUSTER_IMAGE": docker_image}
    command = find_command()
    composed = (
        Composed(project, read_services(COMPOSE, variables))
        if command is None
        else Commanded(command, project, COMPOSE, variables)
    )

    async def try_it() -> str:
        try:
            await composed.up({"worker": 2})
            deadline = time.monotonic() + WITHIN_S
            code, said = 1, ""
            while time.monotonic() < deadline and said.count('"ready"') < 2:
                code, said = await composed.run("controller", "fluster", "workers", "--json")
            assert said.count('"ready"') == 2, said
            job = ("fluster", "run", "--memory", "100MB", "--replicas", "2", "--", "id", "-un")
            code, said = await composed.run("controller", *job)
            assert code == 0, said
            return said
        finally:
            await composed.down()

    assert "fluster" in asyncio.run(try_it())
    assert asyncio.run(Engine().containers({"com.docker.compose.project": project})) == []


def test_no_service_of_the_deployment_has_privileges_or_the_engines_socket() -> None:
    services = read_services(COMPOSE, {})
    assert set(services) == {"controller", "join", "worker"}
    for told in services.values():
        assert told["cap_drop"] == ["ALL"]
        assert told["security_opt"] == ["no-new-privileges"]
        assert told["init"] is True
        assert not any("docker.sock" in volume for volume in told["volumes"])
    assert not any("/var/lib/fluster:" in f"{volume}:" for volume in services["worker"]["volumes"])
