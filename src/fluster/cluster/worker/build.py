"""From an attempt's specification to one that can be started: interpreter, ports, GPUs, variables, files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fluster.cluster.attempt.files import write_atomically
from fluster.cluster.worker.delivery import Delivery, sha256_of
from fluster.cluster.worker.folder import Folder, Notes
from fluster.cluster.worker.gpu import Gpus
from fluster.cluster.worker.interpreter import NoInterpreter, choose_interpreter, minor, same_interpreter
from fluster.cluster.worker.ports import Ports
from fluster.cluster.worker.runtime import AttemptStart, Limits, Runtime
from fluster.cluster.worker.variables import Surroundings, task_variables, world_size
from fluster.errors import FlusterError
from fluster.rpc.gen.fluster.cluster.v1.controller_pb import AttemptSpec
from fluster.rpc.gen.fluster.cluster.v1.types_pb import Command, EnvironmentSpec, GpuDevice, Payload, ResourceSpec


class BuildFailed(Exception):
    """The attempt cannot be started.

    Attributes:
        fluster_fault: The user could not have prevented it.
    """

    def __init__(self, message: str, *, fluster_fault: bool = False) -> None:
        super().__init__(message)
        self.fluster_fault = fluster_fault


@dataclass(frozen=True, slots=True)
class Site:
    """What the attempts of one worker share.

    Attributes:
        python: The runtime's interpreter, of callables that ask for none; `None`: the worker's own.
        may_start: Whether a process may be started now: not while the worker has no lease.
    """

    runtime: Runtime
    delivery: Delivery
    ports: Ports
    gpus: Gpus
    around: Surroundings
    python: str | None = None
    may_start: Callable[[], bool] = lambda: True


async def build(folder: Folder, spec: AttemptSpec, notes: Notes, site: Site) -> tuple[AttemptStart, Notes]:
    """What the runtime is to start, and the notes with what was handed out for it.

    Raises:
        BuildFailed: It cannot be started.
        OSError: This machine has no room for its files.
    """
    environment = spec.environment or EnvironmentSpec()
    _refuse_unsupported(environment)
    command = _command(spec)
    python, prefix = await _interpreter(environment, site, is_callable=command is None)
    if command is None:
        await _provide_entrypoint(folder, spec, site.delivery)
    if site.around.ca_file is not None:
        # A copy: the worker's own directory may be closed to the attempt.
        write_atomically(folder.authority, site.around.ca_file.read_bytes())
    notes = await _hand_out(folder.uid, spec, notes, site)
    variables = task_variables(
        folder,
        spec,
        site.around,
        ports=notes.ports,
        master_port=spec.master_port or notes.master_port,
        gpus=notes.gpus,
    )
    if command is not None:
        variables = _for_command(variables, prefix)
    start = AttemptStart(
        uid=folder.uid,
        directory=folder.path,
        command=command,
        environment=variables,
        working_directory=Path(environment.working_directory or folder.work),
        import_path=tuple(environment.import_path),
        python=python,
        limits=limits_of(spec),
    )
    return start, notes


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


def _refuse_unsupported(environment: EnvironmentSpec) -> None:
    asked = {
        "pip_packages": bool(environment.pip_packages),
        "extras": bool(environment.extras),
        "workspace": bool(environment.workspace_hash),
        "docker_image": bool(environment.docker_image),
    }
    names = [name for name, is_asked in asked.items() if is_asked]
    if names:
        raise BuildFailed(f"this worker cannot provide {', '.join(names)}: it runs processes in its own environment")


def _command(spec: AttemptSpec) -> tuple[str, ...] | None:
    kind = spec.entrypoint.kind if spec.entrypoint else None
    if kind is None:
        raise BuildFailed("the job has no entrypoint")
    if not isinstance(kind.value, Command):
        return None
    if not kind.value.argv:
        raise BuildFailed("the command is empty")
    return tuple(kind.value.argv)


async def _interpreter(environment: EnvironmentSpec, site: Site, *, is_callable: bool) -> tuple[str | None, str]:
    """The interpreter of a callable, `None` for the worker's own; and the directory a command finds it in."""
    asked = environment.python if environment.has_field("python") else None
    if asked is None and not is_callable:
        return None, ""
    try:
        path, version = await choose_interpreter(asked, site.python)
    except NoInterpreter as error:
        raise BuildFailed(str(error)) from error
    submitter = environment.submitter_python
    if is_callable and submitter and minor(submitter) != minor(version):
        raise BuildFailed(
            f"the callable was pickled by Python {minor(submitter)}, but {path} is Python {minor(version)}, which"
            f" cannot load it: submit it from Python {minor(version)}, or ask for"
            f" EnvironmentConfig(python={minor(submitter)!r})"
        )
    default = same_interpreter(path, site.python or sys.executable)
    return None if default else path, os.path.dirname(path)


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


def _for_command(variables: dict[str, str], prefix: str) -> dict[str, str]:
    # A command's output is read while it runs: without this Python keeps it back by blocks of 8 KiB.
    changed = {"PYTHONUNBUFFERED": "1", **variables}
    if prefix:
        changed["PATH"] = f"{prefix}{os.pathsep}{variables.get('PATH', os.defpath)}"
    return changed
