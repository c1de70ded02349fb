import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import fluster
from fluster.cluster.own_wheel import build_own_wheel
from fluster.errors import FlusterError

SOURCE = Path(fluster.__file__).parents[1]


def test_the_same_files_give_the_same_wheel(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, second = build_own_wheel(tmp_path), build_own_wheel(tmp_path / "other")
    assert first.name == second.name == f"fluster_cluster-{version('fluster-cluster')}-py3-none-any.whl"
    assert first.read_bytes() == second.read_bytes()


def test_an_installer_takes_the_wheel_and_what_it_installs_works(tmp_path: Path) -> None:
    wheel = build_own_wheel(tmp_path)
    command = ["uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--no-cache", "--target"]
    subprocess.run([sys.executable, "-m", *command, tmp_path / "site", wheel], check=True, timeout=50)
    asked = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import fluster, fluster.cluster.attempt.main, importlib.metadata as m\n"
        "print(fluster.__file__, fluster.__version__, *m.distribution('fluster-cluster').requires)"
    )
    answer = subprocess.run([sys.executable, "-I", "-c", asked], check=True, capture_output=True, text=True, timeout=50)
    assert answer.stdout.startswith(f"{tmp_path / 'site' / 'fluster' / '__init__.py'} {version('fluster-cluster')} ")
    assert "cloudpickle" in answer.stdout
    assert (tmp_path / "site" / "bin" / "fluster").exists()


def test_nothing_that_was_made_from_the_files_is_in_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(build_own_wheel(tmp_path)) as archive:
        names = archive.namelist()
    assert "fluster/rpc/gen/fluster/cluster/v1/types_pb.py" in names
    assert not [name for name in names if name.endswith(".pyc") or "__pycache__" in name]


def without_site(directory: Path, source: Path) -> "subprocess.CompletedProcess[str]":
    """Builds where nothing is installed."""
    code = (
        f"import sys; sys.path.insert(0, {str(source)!r})\nfrom pathlib import Path\n"
        f"from fluster.cluster.own_wheel import build_own_wheel as b; print(b(Path({str(directory)!r})))"
    )
    return subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=50)


def test_a_source_tree_on_the_import_path_is_enough(tmp_path: Path) -> None:
    answer = without_site(tmp_path, SOURCE)
    assert answer.returncode == 0, answer.stderr
    with zipfile.ZipFile(answer.stdout.strip()) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        assert "Requires-Dist: cloudpickle" in archive.read(name).decode()


def test_what_nobody_knows_the_needs_of_is_no_wheel(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "fluster").symlink_to(SOURCE / "fluster")
    answer = without_site(tmp_path, tmp_path / "src")
    assert answer.returncode == 1
    assert FlusterError.__name__ in answer.stderr
    assert "install Fluster with pip" in answer.stderr
