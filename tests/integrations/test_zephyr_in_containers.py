"""The example on a cluster whose machines are containers, with a directory that they and this program see."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.outside import Server
from tests.integrations.zephyr_image import PYTHON, provide_zephyr_image
from tests.integrations.zephyr_python import LONG, ROOT, variables, zephyr_python
from tests.kinds import contained_server

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def storage() -> Iterator[Path]:
    """Below the directory of temporary files, not pytest's own, which other users may not enter."""
    directory = Path(tempfile.mkdtemp(prefix="zephyr-"))
    directory.chmod(0o1777)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def contained(tmp_path_factory: pytest.TempPathFactory, storage: Path) -> Iterator[Server]:
    image, packages = asyncio.run(provide_zephyr_image(zephyr_python()))
    options = ("--worker-python", PYTHON, "--mount", packages, "--mount", str(storage))
    with contained_server(tmp_path_factory.mktemp("contained"), "wide", image, *options) as server:
        yield server


def count(server: Server, storage: Path, *options: str, within_s: float = 120) -> str:
    """What the example prints."""
    files = {"FLUSTER_TOKEN_FILE": "admin.token", "FLUSTER_CA_FILE": "ca.pem"}
    cluster = {name: str(server.state_dir / file) for name, file in files.items()}
    ran = subprocess.run(
        [zephyr_python(), str(ROOT / "examples/zephyr_wordcount.py"), "--storage", str(storage), *options],
        env=variables(FLUSTER_CLUSTER_ADDRESS=server.address, **cluster),
        cwd=storage,
        capture_output=True,
        text=True,
        timeout=within_s,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-5000:] + (server.state_dir / "stderr").read_text()[-3000:]
    return ran.stdout


def test_words_are_counted_in_containers_as_plainly(contained: Server, storage: Path) -> None:
    printed = count(contained, storage, "--rows", "20000", "--files", "2", "--workers", "2", "--in-workers")
    assert "20000 rows of 2 files" in printed
    assert "a plain count gives the same" in printed
    assert not os.listdir(storage)


@LONG
def test_so_are_a_million_with_a_program_for_each_shard(contained: Server, storage: Path) -> None:
    printed = count(contained, storage, within_s=400)
    assert "1000000 rows of 4 files" in printed
    assert "a plain count gives the same" in printed
    assert not os.listdir(storage)
