"""The variables of an attempt's process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fluster.cluster.worker.folder import Folder
from fluster.cluster.worker.jobusers import variables_of
from fluster.rpc.gen.fluster.cluster.v1.controller_pb import AttemptSpec
from fluster.rpc.gen.fluster.cluster.v1.types_pb import EnvironmentSpec

_OURS = "FLUSTER_"
# They describe the daemon's own process.
_NOT_INHERITED = frozenset({"PWD", "OLDPWD", "_", "SHLVL", "TMPDIR", "TEMP", "TMP"})
OF_ANOTHER_ENVIRONMENT = frozenset({"VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP"})
"""What a daemon may have of these leads to its own packages."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every attempt of a worker is told.

    Attributes:
        cluster_address: Of the controller; empty on a standalone worker.
        advertise_host: Where this worker's jobs can be reached.
        base: The worker's own environment.
        has_gpus: The machine's GPUs are handed out, so that an attempt without any sees none.
        ca_file: The authority that vouches for the controller; `None`: none needs to be named.
    """

    worker_id: str
    cluster_address: str = ""
    advertise_host: str = "127.0.0.1"
    base: Mapping[str, str] = field(default_factory=dict)
    has_gpus: bool = False
    ca_file: Path | None = None


def task_variables(
    folder: Folder,
    spec: AttemptSpec,
    around: Surroundings,
    *,
    ports: Mapping[str, int],
    master_port: int,
    gpus: Sequence[int],
    venv: Path | None = None,
    secrets: Mapping[str, str] | None = None,
    user: int | None = None,
) -> dict[str, str]:
    """The whole environment of the attempt's process; the user's variables win over all that is not Fluster's.

    In an environment of its own (`venv`) nothing leads to the daemon's packages; for a user of its own, to the
    daemon's home.
    """
    environment = spec.environment or EnvironmentSpec()
    inherited = around.base if user is None else variables_of(user, folder.work, around.base)
    directory = environment.working_directory or str(folder.work)
    return {
        **(base_variables(inherited) if venv is None else venv_variables(inherited, venv)),
        "TMPDIR": str(folder.tmp),
        "PWD": directory,
        **_world(spec, around, master_port),
        **({"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))} if around.has_gpus else {}),
        **environment.env_vars,
        **(secrets or {}),
        **_identity(folder, spec, around),
        **{f"{_OURS}PORT_{name.upper()}": str(port) for name, port in ports.items()},
    }


def base_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """A daemon's environment without its secrets and what describes only itself."""
    return {key: value for key, value in environment.items() if not key.startswith(_OURS) and key not in _NOT_INHERITED}


def venv_variables(environment: Mapping[str, str], venv: Path) -> dict[str, str]:
    """The same for what runs in an environment of its own."""
    kept = {key: value for key, value in base_variables(environment).items() if key not in OF_ANOTHER_ENVIRONMENT}
    path = f"{venv / 'bin'}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return {**kept, "VIRTUAL_ENV": str(venv), "PATH": path}


def _identity(folder: Folder, spec: AttemptSpec, around: Surroundings) -> dict[str, str]:
    told = {
        "CLUSTER_ADDRESS": around.cluster_address,
        "NAMESPACE": spec.namespace,
        "JOB_ID": spec.job_id,
        "JOB_NAME": spec.job_name,
        "TASK_INDEX": str(spec.task_index),
        "NUM_TASKS": str(max(1, spec.num_tasks)),
        "ATTEMPT": str(max(1, spec.attempt)),
        "ATTEMPT_UID": folder.uid,
        "WORKER_ID": around.worker_id,
        "ADVERTISE_HOST": around.advertise_host,
    }
    if spec.token or folder.token.exists():
        told["TOKEN_FILE"] = str(folder.token)
    if folder.certificate.exists():
        told["CERTIFICATE_FILE"] = str(folder.certificate)
    if around.ca_file is not None:
        told["CA_FILE"] = str(folder.authority)
    return {f"{_OURS}{key}": value for key, value in told.items() if value}


def _world(spec: AttemptSpec, around: Surroundings, master_port: int) -> dict[str, str]:
    """What torch.distributed and its relatives read. An independent task is a world of its own."""
    size = world_size(spec)
    alone = size == 1
    return {
        "RANK": "0" if alone else str(spec.task_index),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": "0" if alone else str(spec.local_rank),
        "LOCAL_WORLD_SIZE": "1" if alone else str(max(1, spec.local_world_size)),
        "NODE_RANK": "0" if alone else str(spec.node_rank),
        "MASTER_ADDR": spec.master_host or around.advertise_host,
        "MASTER_PORT": str(master_port),
    }


def world_size(spec: AttemptSpec) -> int:
    """Tasks that start and fail together with this one, itself included."""
    return max(1, spec.world_size or spec.num_tasks)
