"""The world a task's process finds: files, packages, variables, interpreter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fluster.cluster.context import field_defaults, find_project
from fluster.cluster.validation import (
    check_docker_image,
    check_env_vars,
    check_extras,
    check_pip_packages,
    check_python,
    check_text,
)

_SECRET_WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")


@dataclass(frozen=True, slots=True, repr=False)
class EnvironmentConfig:
    """What a task's process finds around it.

    Attributes:
        workspace: Directory whose files the task gets; excludes ``docker_image``.
        docker_image: Image it runs in; excludes ``workspace``.
        pip_packages: Requirements installed for it.
        extras: Extras of the workspace's project.
        env_vars: Variables set for it; `FLUSTER_*` is Fluster's own.
        secrets: Variables that only the task's process can read: they are stored encrypted, and hidden in its logs.
        python: A version ("3.12") or the path of an interpreter; `None` for the cluster's choice.

    Raises:
        ValueError: A value breaks its rule; the message names both.
    """

    workspace: str | None = None
    docker_image: str | None = None
    pip_packages: Sequence[str] = ()
    extras: Sequence[str] = ()
    env_vars: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    python: str | None = None

    def __post_init__(self) -> None:
        if self.workspace is not None and self.docker_image is not None:
            raise ValueError("workspace and docker_image exclude each other: an image brings its own files")
        if self.workspace is not None:
            check_text(self.workspace, "workspace")
        if self.docker_image is not None:
            check_docker_image(self.docker_image)
        if self.python is not None:
            check_python(self.python)
        object.__setattr__(self, "pip_packages", check_pip_packages(self.pip_packages))
        object.__setattr__(self, "extras", check_extras(self.extras))
        # Copies, so that what was validated is what is sent.
        object.__setattr__(self, "env_vars", check_env_vars(self.env_vars))
        object.__setattr__(self, "secrets", check_env_vars(self.secrets, "secrets"))
        check_env_vars({**self.env_vars, **self.secrets}, "env_vars and secrets")

    def __repr__(self) -> str:
        shown = {
            name: getattr(self, name) for name in ("workspace", "docker_image", "pip_packages", "extras", "python")
        }
        shown["env_vars"] = {key: _veiled(key, value) for key, value in self.env_vars.items()}
        shown["secrets"] = dict.fromkeys(self.secrets, "***")
        return f"EnvironmentConfig({', '.join(f'{name}={value!r}' for name, value in shown.items() if value)})"


def _veiled(key: str, value: str) -> str:
    """A variable's value for people's eyes: request values end up in notebooks and logs."""
    return "***" if any(word in key.upper() for word in _SECRET_WORDS) else value


def create_environment(
    workspace: str | None = None,
    docker_image: str | None = None,
    pip_packages: Sequence[str] = (),
    extras: Sequence[str] = (),
    env_vars: Mapping[str, str] | None = None,
    secrets: Mapping[str, str] | None = None,
    python: str | None = None,
) -> EnvironmentConfig:
    """An `EnvironmentConfig` with the defaults of the field.

    ``workspace`` defaults to the project (the nearest directory with a `pyproject.toml`) around the current directory,
    unless there is none or an image is given. ``TOKENIZERS_PARALLELISM`` defaults to "false"; ``HF_TOKEN`` and
    ``WANDB_API_KEY`` are passed on when set here. What is given explicitly wins.

    Raises:
        ValueError: A value breaks its rule; the message names both.
    """
    if workspace is None and docker_image is None:
        project = find_project()
        workspace = str(project) if project else None
    given = {**check_env_vars(env_vars or {}), **(secrets or {})}
    defaults = {key: value for key, value in field_defaults().items() if key not in given}
    return EnvironmentConfig(
        workspace=workspace,
        docker_image=docker_image,
        pip_packages=pip_packages,
        extras=extras,
        env_vars={**defaults, **(env_vars or {})},
        secrets=secrets or {},
        python=python,
    )
