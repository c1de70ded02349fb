"""The daemons of a LocalCluster need the server extra; its user need not have it."""

from __future__ import annotations

import re
import sys
import sysconfig
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from tests.e2e import lab
from tests.e2e.outside import Creator

import fluster

DAEMONS = {"fluster.cluster.controller", "fluster.cluster.worker"}


def _distributions(names: list[str]) -> Iterator[str]:
    """With what they need themselves."""
    for name in names:
        yield name
        requirements = [each for each in metadata.requires(name) or () if "extra ==" not in each]
        needed = [re.split(r"[^A-Za-z0-9._-]", each)[0] for each in requirements]
        yield from _distributions([each for each in needed if _is_installed(each)])


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


@pytest.fixture(scope="module")
def light_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with what a client needs and no more: Fluster's core dependencies."""
    directory = tmp_path_factory.mktemp("light")
    venv.create(directory, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(directory), "platbase": str(directory)}))
    (packages / "fluster").symlink_to(Path(fluster.__file__).parent)
    for name in _distributions(["cloudpickle", "protobuf-py"]):
        for file in metadata.distribution(name).files or ():
            top = packages / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not top.exists():
                top.symlink_to(str(metadata.distribution(name).locate_file(file.parts[0])))
    return str(directory / "bin" / "python")


def test_without_the_server_extra_a_local_cluster_says_what_to_install(tmp_path: Path, light_python: str) -> None:
    script = """
from fluster import FlusterError, LocalCluster
for python in (None, sys.executable, "/no/such/python"):
    try:
        LocalCluster(server_python=python)
    except FlusterError as error:
        say(str(error))
"""
    with Creator(script, tmp_path, python=light_python, PYTHONPATH="") as creator:
        said = [creator.heard() for _ in range(3)]
        assert "pip install 'fluster-cluster[server]'" in said[0]
        assert "FLUSTER_SERVER_PYTHON" in said[0]
        assert f"{light_python} -m pip install 'fluster-cluster[server]'" in said[1]
        assert "/no/such/python" in said[2]
        assert creator.process.wait(lab.WITHIN_S) == 0
        assert not any(creator.temporary.iterdir())


def test_daemons_run_under_the_server_python_and_jobs_under_the_submitters(tmp_path: Path, light_python: str) -> None:
    script = """
from fluster import LocalCluster
def where():
    return sys.executable
with LocalCluster(cpu=2) as cluster:
    say([cluster._daemon.pid, cluster.submit(where).result()])
    sys.stdin.readline()
"""
    with Creator(script, tmp_path, python=light_python, PYTHONPATH="", FLUSTER_SERVER_PYTHON=sys.executable) as creator:
        pid, python = creator.heard()
        assert python == light_python
        commands = {each: _command(each) for each in creator.family()}
        daemons = {each: words for each, words in commands.items() if {*words} & DAEMONS}
        assert pid in daemons
        assert len(daemons) == 2
        assert {words[0] for words in daemons.values()} == {sys.executable}
        creator.process.communicate("", timeout=lab.WITHIN_S)
        assert not creator.family()


def test_a_relative_import_path_that_alone_leads_to_fluster_is_enough(tmp_path: Path) -> None:
    (tmp_path / "src").symlink_to(Path(fluster.__file__).parents[1])
    (tmp_path / "site").symlink_to(sysconfig.get_path("purelib"))
    script = """
import subprocess
from fluster import LocalCluster
def work():
    return subprocess.run([sys.executable, "-c", "import fluster; print(6 * 7)"], cwd="/", capture_output=True).stdout
with LocalCluster(cpu=2) as cluster:
    say(cluster.submit(work).result(timeout=15).decode())
"""
    base: str = sys._base_executable  # type: ignore[attr-defined]
    with Creator(script, tmp_path, python=base, PYTHONPATH="src:site") as creator:
        assert creator.heard() == "42\n"
        assert creator.process.wait(lab.WITHIN_S) == 0


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []
