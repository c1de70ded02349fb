"""What an attempt asks for beyond its command: its workspace's files and its environment, from this machine's cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fluster.cluster.archive import BadArchive
from fluster.cluster.worker.cache import DEFAULT_CAP_BYTES
from fluster.cluster.worker.delivery import Delivery, sha256_of
from fluster.cluster.worker.failures import BuildFailed
from fluster.cluster.worker.interpreter import satisfies
from fluster.cluster.worker.jobusers import JobUsers
from fluster.cluster.worker.recipe import BadProject, Project, Recipe, read_project, uv_settings
from fluster.cluster.worker.uv import Fault, UvFailed
from fluster.cluster.worker.venv_build import Order
from fluster.cluster.worker.venvs import NoUv, Venv, Venvs
from fluster.cluster.worker.workspaces import Archives
from fluster.errors import FlusterError
from fluster.rpc.gen.fluster.cluster.v1.types_pb import EnvironmentSpec

Say = Callable[[str], None]
_SHOWN_CHARS = 200


class Provision:
    """Of one worker.

    Args:
        delivery: Where archives and Fluster's wheel come from.
        environment: Of the daemon: it says where packages come from.
        directory: The cache.
        cap_bytes: What environments may take in it.
        users: Whose processes build environments; default: this process's user's.
    """

    def __init__(
        self,
        delivery: Delivery,
        environment: Mapping[str, str],
        *,
        directory: Path,
        cap_bytes: int = DEFAULT_CAP_BYTES,
        users: JobUsers | None = None,
    ) -> None:
        self._directory = directory
        self._delivery = delivery
        self._environment = environment
        self._archives = Archives(self._directory / "workspaces", delivery)
        self._venvs = Venvs(self._directory / "environments", environment, cap_bytes=cap_bytes, users=users)

    async def workspace(self, sha256: str, directory: Path) -> None:
        """Unpacks a workspace into an empty directory.

        Raises:
            BuildFailed: It cannot be had, or must not be unpacked.
            OSError: No room for its files.
        """
        try:
            await self._archives.unpack(sha256, directory)
        except BadArchive as error:
            raise BuildFailed(f"the workspace must not be unpacked: {error}") from error
        except (FlusterError, ValueError) as error:
            raise BuildFailed(f"the workspace could not be fetched: {error}", fluster_fault=True) from error

    def project(self, environment: EnvironmentSpec, workspace: Path | None) -> Project | None:
        """The project of an unpacked workspace.

        Raises:
            BuildFailed: It cannot be read.
        """
        if workspace is None:
            return None
        try:
            return read_project(workspace, environment.workspace_hash)
        except BadProject as error:
            raise BuildFailed(str(error)) from error

    async def environment(
        self,
        spec: EnvironmentSpec,
        python: tuple[str, str],
        workspace: Path | None,
        attempt: Path,
        say: Say,
    ) -> Venv | None:
        """What the attempt's packages make of an interpreter; `None` when it asks for none.

        Args:
            spec: What is asked for.
            python: Path and version of the interpreter.
            workspace: The attempt's, unpacked.
            attempt: The attempt's directory, for which the environment is kept until `release`.
            say: Called with each phase.

        Raises:
            BuildFailed: It cannot be built.
            OSError: No room for it.
        """
        project = self.project(spec, workspace)
        if project is None and spec.extras:
            raise BuildFailed(f"extras {', '.join(spec.extras)} are a project's, and the job has no workspace with one")
        if project is None and not spec.pip_packages:
            return None
        if project is not None and not satisfies(python[1], project.requires_python):
            raise BuildFailed(
                f"the workspace's project needs Python {project.requires_python}, and {python[0]} is {python[1]}:"
                " ask for another one with EnvironmentConfig(python=…)"
            )
        wheel = await self._wheel()
        with open(wheel, "rb") as file:
            sha256 = sha256_of(file)
        packages, extras = tuple(sorted(spec.pip_packages)), tuple(sorted(spec.extras))
        recipe = Recipe(*python, packages, extras, project, sha256, uv_settings(self._environment))
        try:
            return await self._venvs.provide(Order(recipe, wheel, workspace), attempt, say)
        except NoUv as error:
            raise BuildFailed(str(error)) from error
        except UvFailed as failure:
            raise _build_failed(failure, recipe) from failure

    def release(self, attempt: str) -> None:
        """The attempt of that uid has ended."""
        self._venvs.release(attempt)

    async def _wheel(self) -> Path:
        try:
            return await self._delivery.own_wheel(self._directory / "wheels")
        except (FlusterError, ValueError) as error:
            raise BuildFailed(f"Fluster's own wheel could not be had: {error}", fluster_fault=True) from error


def _build_failed(failure: UvFailed, recipe: Recipe) -> BuildFailed:
    asked = ", ".join(recipe.packages)[:_SHOWN_CHARS] or "the workspace's project"
    if failure.fault is Fault.DOWNLOAD:
        return BuildFailed(
            f"the environment ({asked}) could not be built, a download failed: {failure.text}", fluster_fault=True
        )
    return BuildFailed(f"the environment ({asked}) could not be built: {failure.text}")
