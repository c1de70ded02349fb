"""What an attempt's container is made of: limits, mounts, user, labels, and nothing it does not need."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fluster.cluster.attempt import files
from fluster.cluster.docker import labels
from fluster.cluster.docker.mounts import Mount
from fluster.cluster.worker.runtime import AttemptStart

NOBODY = 65534
_JOB_SIDE = ("fluster", "cloudpickle", "protobuf", "protobuf_ext", "typing_extensions")
_SITE = "/fluster/site"
_MIN_MEMORY = 6 * 1024 * 1024
"""Less than this no engine takes."""


def container_user() -> int:
    """Attempts run as the worker's user; where that is root, as nobody."""
    return os.geteuid() or NOBODY


def lay_out(directory: Path) -> None:
    """Makes the directory that the container sees as the attempt's own, and gives its user what it may write.

    Orders, locks and exit records stay outside: they are between the worker and the shim.
    """
    box, user = directory / files.BOX, container_user()
    box.mkdir(exist_ok=True)
    for name in ("work", "tmp"):
        (box / name).mkdir(exist_ok=True)  # where the real ones are mounted
    for name in (files.ENTRYPOINT, "token", "ca.pem", "certificate.pem"):
        if (directory / name).is_file():
            shutil.copyfile(directory / name, box / name)
            os.chmod(box / name, 0o400)
    if os.geteuid() == 0:
        for path in (box, *box.iterdir(), directory / "tmp", *_tree(directory / "work")):
            os.chown(path, user, user, follow_symlinks=False)


def _tree(root: Path) -> Iterator[Path]:
    """A directory with all below it: a workspace may have been unpacked there."""
    yield root
    for top, directories, names in os.walk(root):
        yield from (Path(top, name) for name in (*directories, *names))


def container_config(
    attempt: AttemptStart, image: str, worker: str, cpu_quota: bool, mounts: Sequence[Mount] = ()
) -> dict[str, Any]:
    """What the engine is told."""
    limits, user = attempt.limits, container_user()
    memory = max(_MIN_MEMORY, limits.memory_bytes) if limits.memory_bytes is not None else 0
    environment = {"HOME": str(attempt.working_directory), **attempt.environment}
    if attempt.command is None:
        environment["PYTHONPATH"] = os.pathsep.join(
            [_SITE, *environment.get("PYTHONPATH", "").split(os.pathsep)]
        ).rstrip(":")
    return {
        "Image": image,
        "Entrypoint": list(attempt.command) if attempt.command is not None else callable_command(attempt),
        "Cmd": [],
        "User": f"{user}:{user}",
        "WorkingDir": str(attempt.working_directory),
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "Labels": {labels.WORKER: worker, labels.ATTEMPT: attempt.uid, labels.DIRECTORY: str(attempt.directory)},
        "HostConfig": {
            # The machine's own network: ports and addresses are the same as for the processes of other jobs.
            "NetworkMode": "host",
            "Init": True,
            "Memory": memory,
            "MemorySwap": memory,
            "CpuShares": max(2, round(1024 * limits.cpu)),
            "NanoCpus": round(min(limits.cpu, os.cpu_count() or 1) * 1e9) if cpu_quota else 0,
            "PidsLimit": limits.pids,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "LogConfig": {"Type": "none"},
            "Binds": _binds(attempt),
            "Mounts": [each.for_engine() for each in mounts],
            "DeviceRequests": _gpus(attempt),
        },
    }


def callable_command(attempt: AttemptStart) -> list[str]:
    """What calls the pickled function, in the image's interpreter."""
    python = attempt.python or "python3"
    arguments = [str(attempt.directory), json.dumps(attempt.import_path)]
    return [python, "-P", "-m", "fluster.cluster.attempt.main", *arguments]


def _binds(attempt: AttemptStart) -> list[str]:
    """The attempt's directories where they are on this machine, so that every path means the same on both sides."""
    own = attempt.directory
    found = [f"{own / files.BOX}:{own}", f"{own / 'work'}:{own / 'work'}", f"{own / 'tmp'}:{own / 'tmp'}"]
    found += [f"{path}:{path}:ro" for path in attempt.read_only]
    if attempt.command is None:
        found += [f"{path}:{_SITE}/{path.name}:ro" for path in job_side()]
    return found


def job_side() -> list[Path]:
    """Fluster's own job side and what it needs: packages and modules of this interpreter."""
    found = []
    for name in _JOB_SIDE:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin)
            found.append(path.parent if path.name == "__init__.py" else path)
    return found


def _gpus(attempt: AttemptStart) -> list[dict[str, Any]]:
    """Those handed out, by index, where the engine has NVIDIA's toolkit."""
    indices = attempt.environment.get("CUDA_VISIBLE_DEVICES", "")
    if not indices or not attempt.gpus:
        return []
    return [{"Driver": "nvidia", "DeviceIDs": [str(each) for each in attempt.gpus], "Capabilities": [["gpu"]]}]
