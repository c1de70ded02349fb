"""The controller's process: what `fluster controller serve` runs."""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fluster.cluster.backend.docker import DockerBackend, cluster_name, stop_docker_workers
from fluster.cluster.backend.local import LocalBackend, kept_job_users, open_directory, stop_local_workers
from fluster.cluster.controller.core.rows import Offer, Resources
from fluster.cluster.controller.core.state import Settings
from fluster.cluster.controller.machine import this_machine
from fluster.cluster.controller.server import ControllerConfig, ControllerDaemon, MakeBackend, Running, is_loopback
from fluster.cluster.controller.statedir import StateDir
from fluster.cluster.daemon_log import log_to_stderr
from fluster.cluster.docker.engine import Engine, find_socket
from fluster.cluster.docker.mounts import Mount, check_mounts
from fluster.cluster.docker.network import provide_network
from fluster.cluster.ids import Namespace
from fluster.cluster.validation import check_cpu, check_int, check_name, check_seconds, parse_bytes
from fluster.cluster.worker.jobusers import UserRange
from fluster.cluster.worker.trial import closed_to_others
from fluster.errors import FlusterError

if TYPE_CHECKING:
    from fluster.cluster.controller.tls import TlsConfig

BACKENDS = ("local", "docker", "none")
_COLLECT_EVERY = 10_000
"""New objects between two collections. Rows that come to stay are many, cycles few: the usual 700 cost 5 % of a flood
of launches."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `controller serve` is told.

    Attributes:
        host: What is bound; loopback with the backend `docker`: this machine's address on the containers' own network.
        backend: `local`: workers are processes of this machine; `docker`: containers; `none`: they join by themselves.
        workers: Of the local backend; of `docker` at most so many, as far as there is work for more than one.
        worker_image: What containers run; `None`: built with this Fluster.
        worker_python: Interpreter of functions that ask for none; of containers in their image; `None`: the workers'.
        mounts: Directories of this machine that containers see, each as `Mount.parse` takes it.
        cpu: Cores of all of this machine's workers together; `None`: the machine's.
        memory: Likewise, in bytes.
        python: Interpreter of local workers' daemons.
        job_users: `FIRST-LAST`: each process of a job of the local workers, which run as root, is one of these; `None`:
            this process's user.
        lifeline_fd: When its other end closes, everything ends: workers, jobs, this process.
        ephemeral: Remove the state directory when the lifeline ends it.
        shut_down_before: See `ControllerConfig`.
        tls_cert, tls_key: Files of the operator's own certificate; `None`: the cluster's authority makes one.
        public_names: By which others reach this machine.
        worker_certificates: See `TlsConfig`.
    """

    state_dir: Path
    host: str = "127.0.0.1"
    port: int = 7077
    namespace: str = "default"
    backend: str = "none"
    workers: int = 1
    worker_image: str | None = None
    worker_python: str | None = None
    mounts: tuple[str, ...] = ()
    cpu: float | None = None
    memory: int | None = None
    python: str = sys.executable
    job_users: str | None = None
    worker_lease_s: float = 300.0
    take_over: bool = False
    insecure_plaintext_network: bool = False
    lifeline_fd: int | None = None
    ephemeral: bool = False
    shut_down_before: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    public_names: tuple[str, ...] = ()
    worker_certificates: bool = False


def run(options: ServeOptions) -> int:
    """Serves until SIGTERM or SIGINT, which leave running jobs alone, or until the lifeline closes.

    Returns:
        The exit code: 0, or 1 when a part of the controller failed.

    Raises:
        ValueError: An option cannot be had; the text says why.
        FlusterError: The state directory is held by another controller, or cannot be used.
        OSError: The port is taken.
    """
    _check_bind(options)
    _check_workers(options)
    _check_job_users(options)
    return asyncio.run(_serve(options))


def end(state_dir: Path) -> None:
    """Ends the workers on this machine that a controller, itself gone, left running, with their jobs.

    Raises:
        FlusterError: A controller is there.
    """
    with StateDir.open(state_dir):
        _end_workers(state_dir)


def _end_workers(state_dir: Path, patience_s: float = 2.0) -> None:
    stop_local_workers(state_dir, patience_s=patience_s)
    stop_docker_workers(state_dir)


async def _on_container_network(options: ServeOptions) -> ServeOptions:
    """Where containers reach the controller: not on loopback, but on a network that only this machine has."""
    if options.backend != "docker" or not is_loopback(options.host):
        return options
    network = await provide_network(Engine(), cluster_name(options.state_dir))
    return replace(options, host=network.gateway)


def _check_bind(options: ServeOptions) -> None:
    if options.backend not in BACKENDS:
        raise ValueError(f"unknown backend {options.backend!r}; known are {', '.join(BACKENDS)}")
    if (options.tls_cert is None) != (options.tls_key is None):
        raise ValueError("--tls-cert and --tls-key belong together: one was given without the other")
    if options.insecure_plaintext_network and (options.tls_cert is not None or options.worker_certificates):
        raise ValueError("--insecure-plaintext-network and certificates exclude each other")
    if _is_encrypted(options) and importlib.util.find_spec("cryptography") is None:
        raise ValueError(
            f"{options.host} is reachable from the network, and tokens would cross it in plain text: what encrypts is "
            "missing (`pip install cryptography`); bind to loopback, or give --insecure-plaintext-network where the "
            "network itself is trusted"
        )
    if options.worker_certificates and not _is_encrypted(options):
        raise ValueError("--worker-certificates needs encrypted connections: give --host or --tls-cert")


def _check_workers(options: ServeOptions) -> None:
    if options.backend == "docker":
        check_mounts(_mounts(options), [find_socket(), options.state_dir])
    elif options.mounts:
        raise ValueError("--mount is for --backend docker: the others run no containers")
    if options.worker_python is not None and options.backend == "none":
        raise ValueError("--worker-python is for workers that --backend provides; those that join have --python")


def _check_job_users(options: ServeOptions) -> None:
    if options.backend != "local":
        if options.job_users is not None:
            raise ValueError("--job-users is for --backend local: containers, and workers that join, have their own")
        return
    shares = _job_users(options)
    known: set[str | None] = {*shares} or {None}
    if not kept_job_users(options.state_dir) <= known:
        raise ValueError(
            f"the workers of {options.state_dir} were started with other --job-users, or divided among other --workers,"
            " and so were their jobs: give the same again, or end them first (`python -m fluster.cluster.controller end"
            f" --state-dir {options.state_dir}`)"
        )
    if not shares:
        return
    if os.geteuid() != 0:
        raise ValueError("--job-users needs root: only root may start processes of other users")
    if (closed := closed_to_others(open_directory(options.state_dir) / "worker")) is not None:
        raise ValueError(
            f"job users cannot pass {closed}, where the workers' directories would be: give a --state-dir where all may"
            " go, below /var/lib, for example; the directory itself stays closed"
        )


def _job_users(options: ServeOptions) -> list[str]:
    """Of each local worker."""
    return [] if options.job_users is None else UserRange.parse(options.job_users).shares(options.workers)


def _mounts(options: ServeOptions) -> list[Mount]:
    return [Mount.parse(each) for each in options.mounts]


def _is_encrypted(options: ServeOptions) -> bool:
    """Beyond loopback always, unless the operator insists; on loopback when a certificate is given."""
    if options.tls_cert is not None:
        return True
    return not (is_loopback(options.host) or options.insecure_plaintext_network)


def _tls(options: ServeOptions) -> TlsConfig | None:
    if not _is_encrypted(options):
        return None
    from fluster.cluster.controller.tls import TlsConfig

    return TlsConfig(options.tls_cert, options.tls_key, options.public_names, options.worker_certificates)


async def _serve(options: ServeOptions) -> int:
    stop, lifeline_ended = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if options.lifeline_fd is not None:
        os.set_inheritable(options.lifeline_fd, False)
        loop.add_reader(options.lifeline_fd, _ended, options.lifeline_fd, lifeline_ended, stop)

    async def end_workers_before() -> None:
        if options.shut_down_before:
            # It said that they are gone: a machine that lost power, or one killed after the other, left their files.
            await asyncio.to_thread(_end_workers, options.state_dir, 0.0)

    async def end_workers() -> None:
        if lifeline_ended.is_set():
            # They see the same end; this waits until nothing of them is left.
            await asyncio.to_thread(_end_workers, options.state_dir)

    options = await _on_container_network(options)
    daemon = ControllerDaemon(_config(options), _backend(options), at_start=end_workers_before, at_end=end_workers)
    async with daemon as running:
        gc.freeze()  # what was loaded stays: collecting it again and again is a tenth of a large turn
        gc.set_threshold(_COLLECT_EVERY)
        print(_announcement(running), flush=True)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((stopping, running.failed), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
    if lifeline_ended.is_set() and options.ephemeral:
        shutil.rmtree(options.state_dir, ignore_errors=True)
    return 1 if running.failed.done() else 0


def _ended(fd: int, ended: asyncio.Event, stop: asyncio.Event) -> None:
    """Whoever holds the other end never writes: readable means it is gone."""
    asyncio.get_running_loop().remove_reader(fd)
    ended.set()
    stop.set()


def _announcement(running: Running) -> str:
    told = {"address": running.address, "token_file": str(running.token_file), "epoch": running.epoch}
    if running.ca_file is not None:
        told["ca_file"] = str(running.ca_file)
    return json.dumps(told)


def _config(options: ServeOptions) -> ControllerConfig:
    pool: tuple[Resources, ...] = ()
    offers: tuple[Offer, ...] = ()
    workers = check_int(options.workers, "the number of workers", low=1, high=1_000)
    if options.backend == "local":
        pool = (_share(options),) * workers
    elif options.backend == "docker":
        offers = (Offer("docker", _share(options), at_least=1, at_most=workers),)
    lease_s = check_seconds(options.worker_lease_s, "worker_lease_s")
    return ControllerConfig(
        state_dir=options.state_dir,
        namespace=Namespace(check_name(options.namespace, "namespace")),
        host=options.host,
        port=check_int(options.port, "port", low=0, high=65_535),
        settings=Settings(worker_lease_s=lease_s, backend=options.backend, pool=pool, offers=offers),
        take_over=options.take_over,
        shut_down_before=options.shut_down_before,
        tls=_tls(options),
    )


def _share(options: ServeOptions) -> Resources:
    """What each of the local workers offers: they share evenly."""
    whole = this_machine(options.cpu, options.memory)
    return replace(
        whole, cpu_milli=whole.cpu_milli // options.workers, memory_bytes=whole.memory_bytes // options.workers
    )


def _backend(options: ServeOptions) -> MakeBackend | None:
    if options.backend == "none":
        return None
    if options.backend == "docker":
        return lambda running: DockerBackend(
            running.state_dir,
            image=options.worker_image,
            controller_url=running.address,
            join_token=running.join_token,
            lease_s=options.worker_lease_s,
            python=options.worker_python,
            mounts=_mounts(options),
        )
    return lambda running: LocalBackend(
        running.state_dir,
        controller_url=running.address,
        join_token=running.join_token,
        python=options.python,
        job_python=options.worker_python,
        lifeline_fd=options.lifeline_fd,
        lease_s=options.worker_lease_s,
        job_users=_job_users(options),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of this module; exit code 2 with one line for what cannot be."""
    arguments = _parser().parse_args(argv)
    log_to_stderr()
    try:
        if arguments.command == "end":
            end(arguments.state_dir.absolute())
            return 0
        return run(_options(arguments))
    except (ValueError, FlusterError, OSError) as error:
        print(f"fluster controller: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _options(arguments: argparse.Namespace) -> ServeOptions:
    given = {key: value for key, value in vars(arguments).items() if key != "command" and value is not None}
    options = ServeOptions(**given)
    if options.cpu is not None:
        check_cpu(options.cpu)
    names, mounts = tuple(options.public_names), tuple(options.mounts)
    return replace(options, state_dir=options.state_dir.absolute(), public_names=names, mounts=mounts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fluster controller", description="Run a controller in the foreground.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve")
    serve.add_argument("--state-dir", type=Path, required=True)
    serve.add_argument("--host")
    serve.add_argument("--port", type=int)
    serve.add_argument("--namespace")
    serve.add_argument("--backend", choices=BACKENDS)
    serve.add_argument("--workers", type=int)
    serve.add_argument("--worker-image")
    serve.add_argument("--worker-python")
    serve.add_argument("--mount", dest="mounts", action="append", metavar="DIR[:DIR[:ro]]")
    serve.add_argument("--cpu", type=float)
    serve.add_argument("--memory", type=lambda text: parse_bytes(int(text) if text.isdigit() else text, "memory"))
    serve.add_argument("--python")
    serve.add_argument("--job-users", metavar="FIRST-LAST")
    serve.add_argument("--worker-lease", dest="worker_lease_s", type=float)
    serve.add_argument("--take-over", action="store_true")
    serve.add_argument("--insecure-plaintext-network", action="store_true")
    serve.add_argument("--tls-cert", type=Path)
    serve.add_argument("--tls-key", type=Path)
    serve.add_argument("--public-name", dest="public_names", action="append", metavar="NAME")
    serve.add_argument("--worker-certificates", action="store_true")
    serve.add_argument("--lifeline-fd", type=int)
    serve.add_argument("--ephemeral", action="store_true")
    serve.add_argument("--shut-down-before", action="store_true")
    ending = commands.add_parser("end", help="end what a controller that is gone left running")
    ending.add_argument("--state-dir", type=Path, required=True)
    return parser
