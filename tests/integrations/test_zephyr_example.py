"""The example counts right on a cluster of its own, one of `fluster up`, and one whose machines are containers."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests.e2e.outside import Server
from tests.integrations.zephyr_image import PYTHON, provide_zephyr_image
from tests.integrations.zephyr_python import LONG, ROOT, variables, zephyr_python
from tests.kinds import contained_server

pytestmark = pytest.mark.timeout(600)

FEW = ("--rows", "20000", "--files", "2", "--workers", "2", "--in-workers")


@pytest.fixture(scope="module")
def storage() -> Iterator[Path]:
    """Below the directory of temporary files, not pytest's own, which other users may not enter."""
    directory = Path(tempfile.mkdtemp(prefix="zephyr-"))
    directory.chmod(0o1777)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def contained(tmp_path_factory: pytest.TempPathFactory, storage: Path) -> Iterator[dict[str, str]]:
    """What tells programs of a cluster whose machines are containers."""
    image, packages = asyncio.run(provide_zephyr_image(zephyr_python()))
    options = ("--worker-python", PYTHON, "--mount", packages, "--mount", str(storage))
    with contained_server(tmp_path_factory.mktemp("contained"), "wide", image, *options) as server:
        yield _told_of(server)


def _told_of(server: Server) -> dict[str, str]:
    files = {"FLUSTER_TOKEN_FILE": "admin.token", "FLUSTER_CA_FILE": "ca.pem"}
    told = {name: str(server.state_dir / file) for name, file in files.items()}
    return {"FLUSTER_CLUSTER_ADDRESS": server.address, **told}


def count(storage: Path, told: Mapping[str, str], *options: str, within_s: float = 120) -> str:
    """What the example prints."""
    ran = subprocess.run(
        [zephyr_python(), str(ROOT / "examples/zephyr_wordcount.py"), "--storage", str(storage), *options],
        env=variables(**told),
        cwd=storage,
        capture_output=True,
        text=True,
        timeout=within_s,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-5000:]
    assert "a plain count gives the same" in ran.stdout
    assert not os.listdir(storage)
    return ran.stdout


@pytest.mark.docker
def test_words_are_counted_on_machines_that_are_containers(contained: dict[str, str], storage: Path) -> None:
    assert "20000 rows of 2 files" in count(storage, contained, *FEW)


@LONG
@pytest.mark.docker
def test_a_million_are_counted_in_containers_with_a_program_for_each_shard(
    contained: dict[str, str], storage: Path
) -> None:
    assert "1000000 rows of 4 files" in count(storage, contained, within_s=400)


@LONG
def test_a_million_are_counted_on_a_cluster_of_the_programs_own(storage: Path) -> None:
    assert "1000000 rows of 4 files" in count(storage, {}, within_s=400)


@LONG
def test_words_are_counted_on_a_cluster_that_another_environment_keeps_up(storage: Path, tmp_path: Path) -> None:
    homes = {name: str(tmp_path / name) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME")}
    fluster = [sys.executable, "-m", "fluster"]
    up = [*fluster, "up", "--python", zephyr_python()]
    subprocess.run(up, env=variables(**homes), check=True, timeout=60)
    try:
        without_daemons = {**homes, "FLUSTER_SERVER_PYTHON": "/there/is/none"}
        assert "20000 rows of 2 files" in count(storage, without_daemons, *FEW)
    finally:
        subprocess.run([*fluster, "down"], env={**os.environ, **homes}, check=True, timeout=60)
