"""Everything that determines an environment, and the name that follows from it."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PROJECT, UV_LOCK, REQUIREMENTS_LOCK = "pyproject.toml", "uv.lock", "requirements.lock"
_LAYOUT = 1
"""Of what is built from a recipe: higher when a newer Fluster builds something else from the same one."""


class BadProject(ValueError):
    """The workspace's project cannot be read."""


@dataclass(frozen=True, slots=True)
class Project:
    """What a workspace's `pyproject.toml` and its lock say of its dependencies.

    Attributes:
        needs: The parts of `pyproject.toml` that matter here, as canonical JSON.
        lock: Name of the lock that pins them; empty: there is none.
        lock_sha256: Of its content.
        workspace_sha256: Of all files, where the environment depends on them: the project, or one beside it, has to be
            built. Else empty.
        needs_files: Whether finding out the dependencies takes more of the workspace than these two files.
        count: Dependencies it names itself.
        requires_python: As written; empty: it does not say.
    """

    needs: str
    lock: str
    lock_sha256: str
    workspace_sha256: str
    needs_files: bool
    count: int
    requires_python: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """An environment to be.

    Attributes:
        python: Path of the interpreter it is made from.
        version: Of that, in full.
        packages: Requirements.
        extras: Of the project.
        project: Of the workspace, if it has one.
        wheel_sha256: Of Fluster's own wheel.
        settings: Variables by which uv is set up here: where packages come from.
    """

    python: str
    version: str
    packages: tuple[str, ...]
    extras: tuple[str, ...]
    project: Project | None
    wheel_sha256: str
    settings: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """Its name: the same for the same environment, and for no other one."""
        return hashlib.sha256(json.dumps([_LAYOUT, asdict(self)], sort_keys=True).encode()).hexdigest()[:32]

    @property
    def count(self) -> int:
        """How much it names itself."""
        return len(self.packages) + (self.project.count if self.project is not None else 0)


def uv_settings(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The variables and files of uv that say what comes from where."""
    home = environment.get("XDG_CONFIG_HOME") or f"{environment.get('HOME', '')}/.config"
    files = [environment.get("UV_CONFIG_FILE") or "", f"{home}/uv/uv.toml", "/etc/uv/uv.toml"]
    found = [(path, hashlib.sha256(Path(path).read_bytes()).hexdigest()) for path in files if os.path.isfile(path)]
    return tuple(sorted([*((k, v) for k, v in environment.items() if _says_from_where(k)), *found]))


def _says_from_where(name: str) -> bool:
    return name.startswith("UV_") and not name.startswith(("UV_CACHE", "UV_NO_PROGRESS", "UV_CONCURRENT", "UV_HTTP"))


def read_project(workspace: Path, workspace_sha256: str) -> Project | None:
    """The project at the top of a workspace; `None` if there is none, or one that is only a tool's settings.

    Raises:
        BadProject: It cannot be read.
    """
    try:
        content = tomllib.loads((workspace / PROJECT).read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise BadProject(f"the workspace's {PROJECT} cannot be read: {error}") from error
    project = content.get("project")
    if not isinstance(project, dict):
        return None
    lock = next((name for name in (UV_LOCK, REQUIREMENTS_LOCK) if (workspace / name).is_file()), "")
    uv = _uv_settings(content)
    has_neighbours = "workspace" in uv or any("path" in each or "workspace" in each for each in _sources(uv))
    builds = _must_be_built(project) or (has_neighbours and lock != UV_LOCK)
    return Project(
        needs=json.dumps(_needs(content, project, builds=builds), sort_keys=True, default=str),
        lock=lock,
        lock_sha256=hashlib.sha256((workspace / lock).read_bytes()).hexdigest() if lock else "",
        workspace_sha256=workspace_sha256 if builds else "",
        needs_files=builds or has_neighbours,
        count=len(_listed(project.get("dependencies"))),
        requires_python=str(project.get("requires-python", "")),
    )


def _needs(content: dict[str, Any], project: dict[str, Any], *, builds: bool) -> dict[str, Any]:
    """Without what says nothing of dependencies: settings of other tools change more often than these."""
    names = ("name", "dependencies", "optional-dependencies", "requires-python", "dynamic")
    return {
        "project": {name: project[name] for name in names if name in project},
        "uv": _uv_settings(content),
        "build-system": content.get("build-system") if builds else None,
    }


def _uv_settings(content: dict[str, Any]) -> dict[str, Any]:
    tool = content.get("tool")
    uv = tool.get("uv") if isinstance(tool, dict) else None
    return uv if isinstance(uv, dict) else {}


def _sources(uv: dict[str, Any]) -> list[dict[str, Any]]:
    """Where dependencies come from that are named one by one."""
    sources = uv.get("sources")
    found = []
    for each in sources.values() if isinstance(sources, dict) else ():
        found += [one for one in (each if isinstance(each, list) else [each]) if isinstance(one, dict)]
    return found


def _must_be_built(project: dict[str, Any]) -> bool:
    return bool({"dependencies", "optional-dependencies"}.intersection(_listed(project.get("dynamic"))))


def _listed(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
