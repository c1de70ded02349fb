"""The deployment in `deploy/compose.yaml`, as its containers come up."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.backend.test_docker_backend import backend, ready, run_job
from tests.e2e.compose import Commanded, Composed, find_command, read_services

from fluster.cluster.docker.engine import Engine
from fluster.cluster.docker.image import provide_worker_image
from fluster.testing.docker_image import provide_test_base

COMPOSE = Path(__file__).parents[2] / "deploy" / "compose.yaml"
WITHIN_S = 90.0


READY = """until [ "$(fluster workers --json | grep -o '"ready"' | wc -l)" = 2 ]; do sleep 0.2; done"""


@pytest.fixture(scope="module")
def built_image() -> Iterator[str]:
    """What `deploy/Dockerfile` makes of the Fluster that is here; for one test, since it goes afterwards."""

    async def build() -> str:
        engine = Engine()
        # With all that the wheel needs in the base, nothing is fetched.
        base = await provide_test_base(engine)
        image = await provide_worker_image(engine, base)
        assert await provide_worker_image(engine, base) == image
        return image

    image = asyncio.run(build())
    yield image
    asyncio.run(Engine().remove_image(image))


async def as_a_machine(image: str) -> str:
    """What a job prints that asks for the version there."""
    async with backend(image) as docker:
        return await run_job(docker, await ready(docker), "python3 -m fluster --version; sleep 60")


@pytest.mark.docker
def test_the_dockerfiles_image_runs_the_deployment_with_two_workers_and_machines_of_the_backend(
    built_image: str,
) -> None:
    project, variables = f"compose{uuid.uuid4().hex[:6]}", {"FLUSTER_IMAGE": built_image}
    command = find_command()
    composed = (
        Composed(project, read_services(COMPOSE, variables))
        if command is None
        else Commanded(command, project, COMPOSE, variables)
    )

    async def try_it() -> str:
        try:
            await composed.up({"worker": 2})
            job = "fluster run --memory 100MB --replicas 2 -- id -un"
            async with asyncio.timeout(WITHIN_S):
                code, said = await composed.run("controller", "sh", "-c", f"{READY}; {job}")
            assert code == 0, said
            return said
        finally:
            await composed.down()

    assert "fluster" in asyncio.run(try_it())
    assert asyncio.run(Engine().containers({"com.docker.compose.project": project})) == []
    assert "fluster" in asyncio.run(as_a_machine(built_image))


def test_no_service_of_the_deployment_has_privileges_or_the_engines_socket() -> None:
    services = read_services(COMPOSE, {})
    assert set(services) == {"controller", "join", "worker"}
    for told in services.values():
        assert told["cap_drop"] == ["ALL"]
        assert told["security_opt"] == ["no-new-privileges"]
        assert told["init"] is True
        assert not any("docker.sock" in volume for volume in told["volumes"])
    assert not any("/var/lib/fluster:" in f"{volume}:" for volume in services["worker"]["volumes"])
