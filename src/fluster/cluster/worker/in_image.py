"""What is different for an attempt that runs in a container: its image, its interpreter, and what surrounds it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fluster.cluster.worker.interpreter import choose_interpreter, minor
from fluster.cluster.worker.runtime import ImageFailed, Images
from fluster.rpc.gen.fluster.cluster.v1.controller_pb import AttemptSpec
from fluster.rpc.gen.fluster.cluster.v1.types_pb import EnvironmentSpec


def image_of(environment: EnvironmentSpec, images: Images | None, *, always: bool) -> str | None:
    """The image an attempt is to run in; `None`: it runs as a process.

    Args:
        environment: What was asked for.
        images: Of the runtime; `None`: it has no containers.
        always: The runtime runs nothing but containers.

    Raises:
        ImageFailed: One was asked for of a worker without containers.
    """
    asked = environment.docker_image
    if images is None:
        if asked:
            raise ImageFailed(
                f"docker_image {asked!r} was asked for, and this worker runs processes only (--runtime process)"
            )
        return None
    return asked or (images.image if always else None)


def without_submitters_directory(spec: AttemptSpec) -> AttemptSpec:
    """A copy for a container, which does not see the directories of this machine."""
    copy = AttemptSpec.from_binary(spec.to_binary())
    if copy.environment is not None:
        copy.environment.working_directory = ""
        copy.environment.import_path = []
    return copy


@dataclass(frozen=True, slots=True)
class Inside:
    """What there is in an image for an attempt.

    Attributes:
        told: Which image it is, for people.
        python: Its interpreter.
        builder: Path and version of an interpreter of this machine that builds environments for it; empty: no need.
    """

    told: str
    python: str
    builder: tuple[str, str]

    def with_packages(self, variables: dict[str, str], venv: Path) -> dict[str, str]:
        """Variables by which the image's interpreter finds the packages of an environment, whose own is not there."""
        own = variables.get("PYTHONPATH")
        packages = str(venv / "lib" / f"python{minor(self.builder[1])}" / "site-packages")
        return {**variables, "PYTHONPATH": os.pathsep.join([packages, *([own] if own else [])])}


async def look_into(
    image: str, environment: EnvironmentSpec, images: Images, say: Callable[[str], None], *, is_callable: bool
) -> Inside:
    """Fetches the image, which is said while it lasts, and checks that it can call what was pickled.

    Raises:
        ImageFailed: It cannot be had, or its Python is not the submitter's.
        NoInterpreter: Nothing here can build an environment for its Python.
    """
    say(f"building: fetching image {image}")
    told = f"image {image} is {await images.provide_image(image)}"
    python = (environment.python if environment.has_field("python") else None) or "python3"
    if python.replace(".", "").isdigit():
        python = f"python{minor(python)}"
    packages = bool(environment.pip_packages) or environment.has_field("workspace_hash")
    if not (packages or environment.has_field("python") or (is_callable and environment.submitter_python)):
        return Inside(told, python, ("", ""))
    there = await images.python_version(image, python)
    if is_callable and environment.submitter_python and minor(environment.submitter_python) != there:
        raise ImageFailed(
            f"the callable was pickled by Python {minor(environment.submitter_python)}, but {python} of image {image!r}"
            f" is Python {there}, which cannot load it: submit it from Python {there}, or name another image"
        )
    return Inside(told, python, await choose_interpreter(there, None) if packages else ("", ""))
