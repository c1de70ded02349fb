"""Requests of fray as Fluster's: resources, environment, budgets, priority."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import humanfriendly
from fray.types import ANY_REGION
from fray.types import ResourceConfig as FrayResources

from fluster.cluster.environment import EnvironmentConfig
from fluster.cluster.resources import CpuConfig, DeviceConfig, GpuConfig, ResourceConfig, TpuConfig
from fluster.cluster.states import Priority
from fluster.cluster.tpu import get_tpu_topology
from fluster.cluster.types import RetryPolicy
from fluster.integrations.fray.inherited import Inherited

if TYPE_CHECKING:
    from fray.types import ActorConfig, JobRequest
    from fray.types import EnvironmentConfig as FrayEnvironment

PREEMPTIONS: Final = 1_000
"""Machines an actor may lose, or signals it may die of, when its `ActorConfig` does not say."""
_DEFAULT_DISK = FrayResources().disk


def resources(asked: Any, replicas: int) -> ResourceConfig:
    """What each task needs.

    fray's default of 64 GB of disk counts as none asked for: no laptop has it free for each of several workers.

    Raises:
        ValueError: Replicas do not make whole slices, or a value breaks a rule of Fluster's.
    """
    device = _device(asked.device)
    hosts = device.vm_count()
    if replicas % hosts:
        raise ValueError(f"{replicas} tasks are no whole number of slices {asked.device.variant}, {hosts} hosts each")
    regions = list(asked.regions or ())
    if ANY_REGION in regions and len(regions) > 1:
        raise ValueError(f"regions names any region and others: {regions}")
    return ResourceConfig(
        device=device,
        cpu=asked.cpu,
        memory=_bytes(asked.ram),
        disk=None if asked.disk == _DEFAULT_DISK else _bytes(asked.disk),
        replicas=replicas // hosts,
        regions=regions if regions and ANY_REGION not in regions else None,
        zones=[asked.zone] if asked.zone else None,
        preemptible=None if asked.preemptible else False,
    )


def environment(
    asked: FrayEnvironment | None, wanted: Any, base: EnvironmentConfig, inherited: Inherited
) -> EnvironmentConfig:
    """What tasks find, and what of it their own jobs inherit: the given one over the inherited one over `base`.

    A workspace that is the current directory, fray's default, says nothing: tasks find what Fluster gives them.

    Args:
        asked: The request's.
        wanted: The request's resources.
        base: The client's.
        inherited: Variables of the job that asks.

    Raises:
        ValueError: Setup scripts, or packages of a workspace to sync, which Fluster does not know.
    """
    variables = {**base.env_vars, **inherited.variables, **(asked.env_vars if asked is not None else {})}
    secrets = {**base.secrets, **inherited.secrets, **(asked.secrets if asked is not None else {})}
    variables = {name: value for name, value in variables.items() if name not in secrets}
    device = {name: value for name, value in wanted.device.default_env_vars().items() if name not in variables}
    if asked is not None and (asked.setup_scripts or asked.sync_packages):
        raise ValueError("setup_scripts and sync_packages are not supported: name a docker_image or a workspace")
    workspace, image = _place(asked, wanted, base)
    return EnvironmentConfig(
        workspace=workspace,
        docker_image=image,
        pip_packages=(*base.pip_packages, *(asked.pip_packages if asked is not None else ())),
        extras=(*base.extras, *(asked.extras if asked is not None else ())),
        env_vars={**device, **variables, **Inherited(variables, secrets).to_environment()},
        secrets=secrets,
        python=base.python,
    )


def job_retry(request: JobRequest) -> RetryPolicy:
    """Of a job: its task may be tried again so often, and all its failures together may be so many."""
    failures = min(request.max_retries_failure, request.max_task_failures)
    return RetryPolicy(max_failures=failures, max_preemptions=request.max_retries_preemption)


def actor_retry(config: ActorConfig) -> RetryPolicy:
    """Of each actor of a group."""
    return RetryPolicy(
        max_failures=config.max_task_retries or 0,
        max_preemptions=PREEMPTIONS if config.max_restarts is None else config.max_restarts,
        signals_are_preemptions=True,
    )


def priority(asked: int) -> Priority:
    """Above 0 is high, below 0 is low."""
    return Priority.HIGH if asked > 0 else Priority.LOW if asked < 0 else Priority.NORMAL


def seconds(duration: Any) -> float | None:
    """Of a duration of fray's."""
    return None if duration is None else float(duration.to_seconds())


def _bytes(size: str) -> int:
    """Sizes of fray are powers of 1024, however they are spelled."""
    return int(humanfriendly.parse_size(size, binary=True))


def _device(asked: Any) -> DeviceConfig:
    match asked.kind:
        case "cpu":
            return CpuConfig()
        case "gpu":
            return GpuConfig(asked.variant, asked.count)
        case "tpu":
            return TpuConfig(get_tpu_topology(asked.variant).name, asked.topology)
    raise ValueError(f"no device of Fluster's is a {asked.kind!r}")


def _place(asked: FrayEnvironment | None, wanted: Any, base: EnvironmentConfig) -> tuple[str | None, str | None]:
    """Workspace and image; at most one of them."""
    if wanted.image:
        return None, wanted.image
    if asked is not None and asked.docker_image:
        return None, asked.docker_image
    if asked is not None and asked.workspace and os.path.realpath(asked.workspace) != os.path.realpath(os.curdir):
        return asked.workspace, None
    return base.workspace, base.docker_image
