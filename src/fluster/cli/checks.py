"""What `fluster doctor` looks at. Each check says what it found, and what to do where that is not enough."""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from fluster.cli.human import format_bytes, format_count
from fluster.cli.places import state_home
from fluster.cli.target import connect, find_target
from fluster.errors import FlusterError

_LEAST_DISK_BYTES = 1_000_000_000
_FEW_DISK_BYTES = 10_000_000_000
_FEW_FILES = 4_096
_PORT = 7077
_UNSYNCHRONISED = 0x40  # STA_UNSYNC of adjtimex(2)
_STATUS_OFFSET = 40
"""Of `status` in struct timex on 64-bit Linux."""


class Status(StrEnum):
    """OK; LIMITED: something does not work; FAILED: nothing does."""

    OK = "ok"
    LIMITED = "limited"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `advice`: what to do; empty if nothing is."""

    name: str
    status: Status
    found: str
    advice: str = ""


def all_checks(cluster: str | None) -> list[Check]:
    """Every check, in the order in which somebody would mend what they find."""
    looks: tuple[Callable[[], Check], ...] = (
        _python,
        _server,
        _uv,
        _machine,
        _limits,
        _job_users,
        _docker,
        lambda: _disk("disk of state", state_home()),
        lambda: _disk("disk of environments", _cache_dir()),
        _open_files,
        lambda: _port(_address(cluster)),
        _clock,
        lambda: _cluster(cluster),
    )
    return [look() for look in looks]


def _python() -> Check:
    found = f"{platform.python_version()} at {sys.executable}"
    if os.name != "posix" or not sys.platform.startswith("linux"):
        advice = "clients work here; run workers and LocalClusters on Linux"
        return Check("python", Status.LIMITED, f"{found}, on {sys.platform}", advice)
    return Check("python", Status.OK, found)


def _server() -> Check:
    import fluster
    from fluster.cluster.local import find_server_python

    found = f"{fluster.__version__} at {Path(fluster.__file__).parent}"
    try:
        python = find_server_python()
    except FlusterError as error:
        return Check("fluster", Status.LIMITED, f"{found}, client only", str(error))
    return Check("fluster", Status.OK, found if python == sys.executable else f"{found}; daemons run under {python}")


def _uv() -> Check:
    from fluster.cluster.worker.uv import find_uv

    advice = "install it (`pip install uv`) where workers run: jobs with packages or a project need it"
    uv = find_uv()
    if uv is None:
        return Check("uv", Status.LIMITED, "none", advice)
    try:
        version = subprocess.run([uv, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Check("uv", Status.LIMITED, f"{uv} does not run: {error}", advice)
    return Check("uv", Status.OK, f"{version.split()[1]} at {uv}")


def _machine() -> Check:
    from fluster.cluster.worker import machine
    from fluster.cluster.worker.gpu import find_gpus

    gpus = find_gpus("auto")
    parts = [f"{format_count(machine.cpu_count())} cpu", f"{format_bytes(machine.memory_bytes())} of memory"]
    parts += [f"{gpus.count} {gpus.variant} gpu"] if gpus.count else ["no gpu"]
    return Check("machine", Status.OK, ", ".join(parts))


def _limits() -> Check:
    from fluster.cluster.worker.cgroup import find_cgroups

    cgroups = find_cgroups(f"doctor-{os.getpid()}")
    try:
        enforcement = cgroups.enforcement
    finally:
        cgroups.remove_leftovers()
    if enforcement == "none":
        advice = (
            "memory of jobs is looked at every 200 ms, short peaks are missed; for limits of the kernel run workers"
            " as root, or in a delegated control group (`systemd-run --user --scope -p Delegate=yes …`)"
        )
        return Check("limits", Status.LIMITED, "no control groups: memory is sampled", advice)
    return Check("limits", Status.OK, f"control groups {enforcement}")


def _job_users() -> Check:
    """As whom processes of jobs run, and what keeps them apart."""
    if os.geteuid() != 0:
        found = "jobs run as the worker's user and can read all that it can: limits, no sandbox"
        return Check("users of jobs", Status.OK, found)
    from fluster.cluster.worker.trial import closed_to_others

    found, advice = "jobs of a worker that runs as root run as root", "give it --job-users 600000-601999"
    ways = {path: closed_to_others(path) for path in (Path(sys.executable), state_home(), _cache_dir())}
    if any(ways.values()):
        told = ", ".join(f"{path} (behind {directory})" for path, directory in ways.items() if directory)
        advice += f"; then others must be able to reach {told}: install Fluster, and have state and cache, elsewhere"
    return Check("users of jobs", Status.LIMITED, found, advice)


def _docker() -> Check:
    from fluster.cluster.docker.engine import Engine

    advice = "jobs with docker_image and `--backend docker` need a Docker Engine that this user may use"
    try:
        engine = Engine()
        version = asyncio.run(engine.version())
    except (FlusterError, OSError) as error:
        return Check("docker", Status.LIMITED, str(error).splitlines()[0], advice)
    return Check("docker", Status.OK, f"{version} at {engine.socket}")


def _cache_dir() -> Path:
    from fluster.cluster.worker.cache import default_cache_dir

    return default_cache_dir(state_home())


def _disk(name: str, directory: Path) -> Check:
    there = next(path for path in (directory, *directory.parents) if path.exists())
    if not os.access(there, os.W_OK):
        return Check(name, Status.FAILED, f"{there} cannot be written to", f"make {directory} writable for this user")
    free = shutil.disk_usage(there).free
    found = f"{format_bytes(free)} free at {directory}"
    if free < _LEAST_DISK_BYTES:
        return Check(name, Status.FAILED, found, "make room: controllers and jobs stop without it")
    if free < _FEW_DISK_BYTES:
        return Check(name, Status.LIMITED, found, "make room: environments with large packages need several GB each")
    return Check(name, Status.OK, found)


def _open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FEW_FILES:
        advice = f"raise it for controllers and workers of more than a few dozen jobs: `ulimit -n {min(hard, 65_536)}`"
        return Check("open files", Status.LIMITED, f"at most {soft}", advice)
    return Check("open files", Status.OK, f"at most {soft}")


def _address(asked: str | None) -> str:
    """Of the cluster that is meant; empty if none is."""
    try:
        target = find_target(asked)
    except (FlusterError, ValueError, OSError):
        return ""  # what is wrong is told below, of the cluster
    return target.address if target is not None else ""


def _port(address: str) -> Check:
    name = "controller's port"
    parts = urlsplit(address)
    mine = parts.port == _PORT and parts.hostname in ("127.0.0.1", "localhost")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", _PORT))
        except OSError as error:
            if mine:
                return Check(name, Status.OK, f"{_PORT} is the configured cluster's")
            advice = "unless that is your controller, give `fluster controller serve` another --port"
            return Check(name, Status.LIMITED, f"{_PORT} is taken: {error.strerror}", advice)
    return Check(name, Status.OK, f"{_PORT} is free")


def _clock() -> Check:
    name = "clock"
    timex = ctypes.create_string_buffer(256)
    try:
        if ctypes.CDLL(None).adjtimex(timex) < 0:
            return Check(name, Status.OK, "the kernel does not say whether it is synchronised")
    except AttributeError:
        return Check(name, Status.OK, "this system does not say whether it is synchronised")
    status = int.from_bytes(timex.raw[_STATUS_OFFSET : _STATUS_OFFSET + 4], sys.byteorder)
    if status & _UNSYNCHRONISED:
        advice = "run chrony or systemd-timesyncd: leases do not need it, but times of logs and events are compared"
        return Check(name, Status.LIMITED, "not synchronised", advice)
    return Check(name, Status.OK, "synchronised")


def _cluster(asked: str | None) -> Check:
    name = "cluster"
    try:
        target = find_target(asked)
        if target is None:
            return Check(name, Status.OK, "none is configured", "`fluster up` starts one on this machine")
        with connect(target) as client:
            workers = client.workers()
    except (FlusterError, ValueError, OSError) as error:
        first, *rest = str(error).splitlines()
        return Check(name, Status.FAILED, first, " ".join(rest) or "see `fluster config show`")
    ready = sum(1 for worker in workers if worker.status == "ready")
    advice = "" if ready else "no worker is ready: `fluster workers`"
    return Check(
        name,
        Status.OK if ready else Status.LIMITED,
        f"{target.address}, {ready} worker{'s' if ready != 1 else ''} ready",
        advice,
    )
