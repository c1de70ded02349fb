"""From an attempt's specification to one that can be started: interpreter, ports, GPUs, variables, files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from fluster.cluster.attempt.files import write_atomically
from fluster.cluster.worker import in_image
from fluster.cluster.worker.delivery import Delivery, sha256_of
from fluster.cluster.worker.failures import BuildFailed
from fluster.cluster.worker.folder import Folder, Notes
from fluster.cluster.worker.gpu import Gpus
from fluster.cluster.worker.interpreter import NoInterpreter, choose_interpreter, minor, same_interpreter
from fluster.cluster.worker.jobusers import JobUsers
from fluster.cluster.worker.ports import Ports
from fluster.cluster.worker.provision import Provision, Say
from fluster.cluster.worker.runtime import AttemptStart, ImageFailed, Limits, Runtime
from fluster.cluster.worker.variables import Surroundings, task_variables, world_size
from fluster.cluster.worker.venvs import Venv
from fluster.errors import FlusterError
from fluster.rpc.gen.fluster.cluster.v1.controller_pb import AttemptSpec
from fluster.rpc.gen.fluster.cluster.v1.types_pb import Command, EnvironmentSpec, GpuDevice, Payload, ResourceSpec


@dataclass(frozen=True, slots=True)
class Site:
    """What the attempts of one worker share.

    Attributes:
        provision: Where workspaces and environments come from.
        users: Whose processes attempts are.
        python: The runtime's interpreter, of callables that ask for none; `None`: the worker's own.
        may_start: Whether a process may be started now: not while the worker has no lease.
    """

    runtime: Runtime
    delivery: Delivery
    ports: Ports
    gpus: Gpus
    around: Surroundings
    provision: Provision
    users: JobUsers = field(default_factory=JobUsers)
    python: str | None = None
    may_start: Callable[[], bool] = lambda: True


async def build(folder: Folder, spec: AttemptSpec, notes: Notes, site: Site, say: Say) -> tuple[AttemptStart, Notes]:
    """What the runtime is to start, and the notes with what was handed out for it.

    Args:
        folder: The attempt's.
        spec: What it is to be.
        notes: So far.
        site: What it shares with others.
        say: Called with what is being done about its environment, for people.

    Raises:
        BuildFailed: It cannot be started.
        OSError: This machine has no room for its files.
    """
    environment = spec.environment or EnvironmentSpec()
    secrets = _secrets(folder, environment)
    command, around, inside = _command(spec), site.around, None
    if (image := _image(environment, site)) is not None:
        spec, around = in_image.without_submitters_directory(spec), replace(around, base={})
        environment = spec.environment or EnvironmentSpec()
        inside = await _look_into(image, environment, site, say, is_callable=command is None)
    user = site.users.take(folder.uid)
    python = inside.builder if inside else await _interpreter(environment, site, user, is_callable=command is None)
    workspace = await _unpack_workspace(folder, environment, site, say)
    venv = await site.provision.environment(environment, python, workspace, folder.path, say)
    if told := [each.told for each in (inside, venv) if each is not None]:
        say("; ".join(told))
    if command is None:
        await _provide_entrypoint(folder, spec, site.delivery)
    if site.around.ca_file is not None:
        # A copy: the worker's own directory may be closed to the attempt.
        write_atomically(folder.authority, site.around.ca_file.read_bytes())
    if image is not None:
        site.users.give_back(folder.uid)  # the container's user is another matter
        user = None
    notes = replace(await _hand_out(folder.uid, spec, notes, site), user=user)
    variables = task_variables(
        folder,
        spec,
        around,
        ports=notes.ports,
        master_port=spec.master_port or notes.master_port,
        gpus=notes.gpus,
        venv=venv.path if venv is not None and inside is None else None,
        secrets=secrets,
        user=user,
    )
    if inside is not None and venv is not None:
        variables = inside.with_packages(variables, venv.path)
    import_path = _import_path(environment, workspace)
    if command is not None:
        asked = environment.has_field("python") and venv is None and inside is None
        variables = _for_command(
            variables, os.path.dirname(python[0]) if asked else "", import_path if workspace else ()
        )
    start = AttemptStart(
        uid=folder.uid,
        directory=folder.path,
        command=command,
        environment=variables,
        working_directory=Path(environment.working_directory or folder.work),
        import_path=import_path,
        python=_python(site, python[0], venv, inside),
        is_shared=venv is not None and inside is None,
        limits=limits_of(spec),
        image=image,
        read_only=(str(venv.path),) if venv is not None and inside is not None else (),
        gpus=notes.gpus,
        user=user,
        groups=site.users.groups if user is not None else (),
    )
    return start, notes


def _secrets(folder: Folder, environment: EnvironmentSpec) -> dict[str, str]:
    if environment.sealed_secrets:
        raise BuildFailed("the job's secrets cannot be opened: the controller's key was replaced; launch it again")
    try:
        return folder.read_secrets()
    except ValueError as error:
        raise BuildFailed(str(error)) from error


def _image(environment: EnvironmentSpec, site: Site) -> str | None:
    try:
        return in_image.image_of(environment, site.runtime.images, always=site.runtime.name == "docker")
    except ImageFailed as error:
        raise BuildFailed(str(error)) from error


async def _look_into(
    image: str, environment: EnvironmentSpec, site: Site, say: Say, *, is_callable: bool
) -> in_image.Inside:
    images = site.runtime.images
    assert images is not None
    try:
        return await in_image.look_into(image, environment, images, say, is_callable=is_callable)
    except (ImageFailed, NoInterpreter) as error:
        raise BuildFailed(str(error), fluster_fault=getattr(error, "fluster_fault", False)) from error


def _python(site: Site, python: str, venv: Venv | None, inside: in_image.Inside | None) -> str | None:
    """What runs a callable; `None`: the runtime's own interpreter."""
    if inside is not None:
        return inside.python
    return venv.python if venv is not None else _other(python, site)


def limits_of(spec: AttemptSpec) -> Limits:
    """The bounds an attempt runs under."""
    resources = spec.resources or ResourceSpec()
    return Limits(
        cpu=resources.cpu or 1.0,
        memory_bytes=resources.memory_bytes or None,
        time_s=spec.timeout_s if spec.has_field("timeout_s") else None,
    )


def chooses_master_port(spec: AttemptSpec) -> bool:
    """Whether the others of its gang wait for the port this attempt's worker chooses."""
    return world_size(spec) > 1 and spec.master_port == 0


def _command(spec: AttemptSpec) -> tuple[str, ...] | None:
    kind = spec.entrypoint.kind if spec.entrypoint else None
    if kind is None:
        raise BuildFailed("the job has no entrypoint")
    if not isinstance(kind.value, Command):
        return None
    if not kind.value.argv:
        raise BuildFailed("the command is empty")
    return tuple(kind.value.argv)


async def _interpreter(
    environment: EnvironmentSpec, site: Site, user: int | None, *, is_callable: bool
) -> tuple[str, str]:
    """The interpreter that a callable runs under and an environment is made from, and its full version."""
    asked = environment.python if environment.has_field("python") else None
    if (
        asked is None
        and not is_callable
        and not environment.pip_packages
        and not environment.has_field("workspace_hash")
    ):
        return "", ""
    try:
        path, version = await choose_interpreter(asked, site.python, user)
    except NoInterpreter as error:
        raise BuildFailed(str(error)) from error
    submitter = environment.submitter_python
    if is_callable and submitter and minor(submitter) != minor(version):
        raise BuildFailed(
            f"the callable was pickled by Python {minor(submitter)}, but {path} is Python {minor(version)}, which"
            f" cannot load it: submit it from Python {minor(version)}, or ask for"
            f" EnvironmentConfig(python={minor(submitter)!r})"
        )
    return path, version


def _other(python: str, site: Site) -> str | None:
    """`None` for the runtime's own."""
    return None if same_interpreter(python, site.python or sys.executable) else python


async def _unpack_workspace(folder: Folder, environment: EnvironmentSpec, site: Site, say: Say) -> Path | None:
    """The attempt's own copy of the workspace, in its work directory."""
    if not environment.has_field("workspace_hash"):
        return None
    say("building: unpacking the workspace")
    await site.provision.workspace(environment.workspace_hash, folder.work)
    return folder.work


def _import_path(environment: EnvironmentSpec, workspace: Path | None) -> tuple[str, ...]:
    if workspace is None:
        return tuple(environment.import_path)
    return tuple(os.path.normpath(workspace / each) for each in environment.workspace_import_path)


async def _provide_entrypoint(folder: Folder, spec: AttemptSpec, delivery: Delivery) -> None:
    kind = spec.entrypoint.kind if spec.entrypoint else None
    assert kind is not None
    assert isinstance(kind.value, Payload)
    payload = kind.value
    try:
        if payload.content is not None and payload.content.field == "blob":
            await delivery.fetch(payload.content.value, folder.entrypoint)
        with open(folder.entrypoint, "rb") as file:
            if payload.sha256 and sha256_of(file) != payload.sha256:
                raise BuildFailed("the pickled callable was damaged on its way", fluster_fault=True)
    except FileNotFoundError as error:
        raise BuildFailed("the pickled callable did not arrive", fluster_fault=True) from error
    except (FlusterError, ValueError) as error:
        raise BuildFailed(f"the pickled callable could not be fetched: {error}", fluster_fault=True) from error


async def _hand_out(uid: str, spec: AttemptSpec, notes: Notes, site: Site) -> Notes:
    """Ports and GPUs. A gang's first task keeps the port that was reported for it."""
    ports = {name: site.ports.choose(uid, spec.avoid_ports) for name in spec.ports if name not in notes.ports}
    master_port = notes.master_port
    if not spec.master_port and not master_port:
        master_port = site.ports.choose(uid, spec.avoid_ports)
    gpus = notes.gpus
    device = spec.resources.device if spec.resources else None
    if device is not None and isinstance(device.value, GpuDevice) and not gpus:
        try:
            gpus = await site.gpus.take(uid, max(1, device.value.count))
        except ValueError as error:
            raise BuildFailed(str(error), fluster_fault=True) from error
    return replace(notes, ports={**notes.ports, **ports}, master_port=master_port, gpus=gpus)


def _for_command(variables: dict[str, str], prefix: str, import_path: tuple[str, ...]) -> dict[str, str]:
    # A command's output is read while it runs: without this Python keeps it back by blocks of 8 KiB.
    changed = {"PYTHONUNBUFFERED": "1", **variables}
    if prefix:
        changed["PATH"] = f"{prefix}{os.pathsep}{variables.get('PATH', os.defpath)}"
    if import_path:
        own = variables.get("PYTHONPATH")
        changed["PYTHONPATH"] = os.pathsep.join([*import_path, *([own] if own else [])])
    return changed
