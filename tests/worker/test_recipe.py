from dataclasses import replace
from pathlib import Path

import pytest

from fluster.cluster.worker.recipe import BadProject, Project, Recipe, read_project, uv_settings

RECIPE = Recipe("/usr/bin/python3.11", "3.11.7", ("numpy",), (), None, "ab" * 32, ())
PYPROJECT = "[project]\nname = 'demo'\nversion = '1'\ndependencies = ['a', 'b']\n"


def project_of(directory: Path, pyproject: str, **locks: str) -> Project:
    (directory / "pyproject.toml").write_text(pyproject)
    for name, content in locks.items():
        (directory / name.replace("_", ".")).write_text(content)
    found = read_project(directory, "12" * 32)
    assert found is not None
    return found


def test_whatever_determines_an_environment_changes_its_name(tmp_path: Path) -> None:
    plain = project_of(tmp_path, PYPROJECT)
    others = [
        replace(RECIPE, python="/usr/bin/python3"),
        replace(RECIPE, version="3.11.8"),
        replace(RECIPE, packages=("numpy<2",)),
        replace(RECIPE, extras=("gpu",)),
        replace(RECIPE, wheel_sha256="cd" * 32),
        replace(RECIPE, settings=(("UV_INDEX_URL", "https://example.org"),)),
        replace(RECIPE, project=plain),
        replace(RECIPE, project=project_of(tmp_path, PYPROJECT.replace("'b'", "'c'"))),
        replace(RECIPE, project=project_of(tmp_path, PYPROJECT, requirements_lock="a==1")),
        replace(RECIPE, project=project_of(tmp_path, PYPROJECT, requirements_lock="a==2")),
        replace(RECIPE, project=project_of(tmp_path, PYPROJECT, uv_lock="version = 1")),
    ]
    assert len({recipe.key for recipe in (RECIPE, *others)}) == len(others) + 1
    assert replace(RECIPE).key == RECIPE.key


def test_settings_of_other_tools_and_other_files_change_nothing(tmp_path: Path) -> None:
    before = project_of(tmp_path, PYPROJECT)
    (tmp_path / "code.py").touch()
    assert project_of(tmp_path, PYPROJECT + "[tool.ruff]\nline-length = 100\n") == before
    assert before.count == 2


def test_what_has_to_be_built_depends_on_all_files(tmp_path: Path) -> None:
    assert not project_of(tmp_path, PYPROJECT).workspace_sha256
    dynamic = "[project]\nname = 'demo'\nversion = '1'\ndynamic = ['dependencies']\n"
    assert project_of(tmp_path, dynamic).workspace_sha256
    neighbour = PYPROJECT + "[tool.uv.sources]\na = { path = 'libs/a' }\n"
    assert project_of(tmp_path, neighbour).workspace_sha256
    locked = project_of(tmp_path, neighbour, uv_lock="version = 1")
    assert not locked.workspace_sha256
    assert locked.needs_files


def test_only_a_project_makes_an_environment(tmp_path: Path) -> None:
    assert read_project(tmp_path, "") is None
    (tmp_path / "pyproject.toml").write_text("[tool.fluster]\ncluster = 'x'\n")
    assert read_project(tmp_path, "") is None
    (tmp_path / "pyproject.toml").write_text("[project\n")
    with pytest.raises(BadProject, match=r"pyproject\.toml cannot be read"):
        read_project(tmp_path, "")


def test_variables_that_only_say_how_fast_are_no_part_of_it() -> None:
    given = {"UV_CACHE_DIR": "/x", "UV_INDEX_URL": "u", "PATH": "/bin", "UV_HTTP_TIMEOUT": "9"}
    assert uv_settings(given) == (("UV_INDEX_URL", "u"),)
