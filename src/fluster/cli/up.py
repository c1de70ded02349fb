"""`up` and `down`: a cluster on this machine that stays, and its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from fluster.cli.exits import say
from fluster.cli.human import format_bytes, format_count
from fluster.cli.options import mount_option, python_option
from fluster.cli.progress import passing
from fluster.cli.standing import LOCK, Standing, short
from fluster.cli.terminal import print_talk
from fluster.cluster.config import find_cluster, load_configuration, user_config_file
from fluster.cluster.config_edit import choose_cluster, configure_cluster, forget_cluster
from fluster.cluster.states import JobStatus, WorkerStatus
from fluster.errors import FlusterError, Unreachable

if TYPE_CHECKING:
    from fluster.cluster.client import Cluster
    from fluster.cluster.types import JobInfo, WorkerInfo

F = TypeVar("F", bound=Callable[..., object])

_WORKER_S = 10.0
"""For a worker to join: it takes a second; the cluster is up all the same."""
_CONTAINER_S = 60.0
"""For one in a container: the first time its image is made."""
_ANSWER_S = 10.0
_JOBS_S = 15.0
"""A stopped job has 10 s to end by itself; what is left is killed with its worker."""
_POLL_S = 0.05
_LOCAL = "local"
_NEXT = """
  fluster run -- COMMAND    run a command as a job
  fluster jobs              what there is
  fluster workers           what this machine offers
  {down}              end it, with its jobs"""


def _name_option(function: F) -> F:
    text = "Name of the cluster.  [default: local]"
    return click.option("--cluster", "name", metavar="NAME", default=_LOCAL, help=text)(function)


@click.command()
@click.option(
    "--backend",
    type=click.Choice(["local", "docker"]),
    default="local",
    show_default=True,
    help="What runs the jobs: processes, or containers.",
)
@click.option(
    "--workers", type=click.IntRange(1, 1_000), help="They share the machine; containers as needed.  [default: 1]"
)
@click.option("--image", help="What the containers run.  [default: built with this Fluster]")
@python_option("--python")
@mount_option
@_name_option
def up(
    backend: str, workers: int | None, image: str | None, python: str | None, mounts: tuple[str, ...], name: str
) -> None:
    """Start a cluster on this machine that stays, and make it the one that commands and programs mean.

    After a crash or a reboot, `up` goes on with the jobs it had. Repeating it is harmless.
    """
    arguments = _arguments(backend, workers, image, python, mounts)
    standing = Standing.named(name)
    address = _running(standing)
    fresh = address is None
    if address is None:
        with passing("starting a cluster on this machine"):
            address = _start(standing, backend, *arguments)
    previous = _configure(standing, address)
    with _client(standing, address) as client:
        worker = _ready_worker(client)
        if worker is None:
            with passing("waiting for its worker"):
                worker = _wait_for_worker(client, _WORKER_S if backend == "local" else _CONTAINER_S)
    print_talk(f"a cluster of this machine is up{'' if fresh else ' already'} at {address}{_offer(worker)}")
    print_talk(f"{_who_means_it(standing, address, previous)}\n{_NEXT.format(down=_ends_it(standing))}")


def _arguments(
    backend: str, workers: int | None, image: str | None, python: str | None, mounts: tuple[str, ...]
) -> list[str]:
    for option, value in (("--image", image), ("--mount", mounts)):
        if value and backend != "docker":
            raise click.UsageError(f"{option} is for --backend docker: the others run processes")
    arguments = [] if workers is None else ["--workers", str(workers)]
    arguments += [] if image is None else ["--worker-image", image]
    arguments += [] if python is None else ["--worker-python", python]
    return [*arguments, *(word for each in mounts for word in ("--mount", each))]


def _running(standing: Standing) -> str | None:
    """Where it serves, if it does."""
    deadline = time.monotonic() + _ANSWER_S
    while (holder := standing.holder()) is not None:
        address = standing.address()
        if address is not None:
            return address
        # Another `up` is just starting it.
        if time.monotonic() > deadline:
            raise FlusterError(f"{standing.directory} is in use by a controller that `up` did not start ({holder})")
        time.sleep(_POLL_S)
    return None


def _start(standing: Standing, backend: str, *arguments: str) -> str:
    try:
        return standing.start(backend, *arguments)
    except FlusterError:
        # Another `up` may have been quicker.
        address = _running(standing)
        if address is None:
            raise
        return address


def _configure(standing: Standing, address: str) -> str | None:
    """Writes the entry; the default before it, when there was another one."""
    configuration = load_configuration()
    before = configuration.cluster if configuration.sources.get("cluster") == str(user_config_file()) else None
    configure_cluster(standing.name, address, standing.token_file, standing.ca_file)
    previous = standing.directory / "previous-cluster"
    if before is not None and before != standing.name:
        previous.write_text(before)
    return previous.read_text() if previous.exists() else None


def _client(standing: Standing, address: str) -> Cluster:
    from fluster.cluster.client import Cluster
    from fluster.cluster.context import read_token_file

    return Cluster(address, token=read_token_file(standing.token_file))


def _wait_for_worker(client: Cluster, patience_s: float) -> WorkerInfo | None:
    deadline = time.monotonic() + patience_s
    while (worker := _ready_worker(client)) is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return worker


def _ready_worker(client: Cluster) -> WorkerInfo | None:
    return next((worker for worker in client.workers() if worker.status is WorkerStatus.READY), None)


def _offer(worker: WorkerInfo | None) -> str:
    if worker is None:
        return "; its worker is still starting"
    return f": {format_count(worker.resources.cpu)} cpu, {format_bytes(worker.resources.memory_bytes)} of memory"


def _who_means_it(standing: Standing, address: str, previous: str | None) -> str:
    target = find_cluster()
    if target is None or target.address != address:
        source = target.source if target is not None else "nothing"
        return f"{source} names another cluster here: --cluster {standing.name} means this one"
    instead = f", instead of {previous}" if previous else ""
    stays = f"it stays until `{_ends_it(standing)}`"
    return f"{stays}; commands and programs mean it now{instead} ({short(user_config_file())})"


def _ends_it(standing: Standing) -> str:
    return "fluster down" + (f" --cluster {standing.name}" if standing.name != _LOCAL else "")


@click.command()
@_name_option
def down(name: str) -> None:
    """End the cluster that `up` started, with its jobs and workers; no process of it is left.

    What its jobs printed is kept, and there again after the next `up`. Repeating it is harmless.
    """
    standing = Standing.named(name)
    was_up = standing.is_there()
    jobs = _end_jobs(standing)
    if was_up:
        with passing("stopping the controller and its workers"):
            _end_processes(standing)
    was_configured = _unconfigure(standing)
    if not was_up and not was_configured:
        others = ", ".join(f"`{_ends_it(each)}`" for each in Standing.all_there())
        there = f"; there are {others}" if others else ""
        print_talk(f"no cluster named {name} of `fluster up` runs on this machine{there}")
        return
    stopped = f", {len(jobs)} unfinished job{'s' if len(jobs) != 1 else ''} stopped" if jobs else ""
    print_talk(f"the cluster of this machine is down{stopped}; its history is kept in {short(standing.directory)}")


def _end_processes(standing: Standing) -> None:
    from fluster.cluster.backend.docker import stop_docker_workers
    from fluster.cluster.backend.local import stop_local_workers
    from fluster.cluster.controller.statelock import StateLock

    # Holding the lock keeps an `up` of the same moment out until everything is gone.
    lock = StateLock.take(standing.directory / LOCK, take_over=True)
    try:
        stop_local_workers(standing.directory, patience_s=0.0)
        stop_docker_workers(standing.directory)
        standing.forget()
    finally:
        lock.release()


def _end_jobs(standing: Standing) -> list[JobInfo]:
    """Stops what is unfinished, so that the next `up` does not go on with it."""
    from fluster.cluster.backend.docker import has_docker_workers

    address = standing.address()
    if address is None:
        return []
    try:
        if standing.holder() is None:  # it died: its jobs run on and have to be told
            with passing("the controller is not there: starting it, to end its jobs"):
                address = standing.start("docker" if has_docker_workers(standing.directory) else "local")
        with _client(standing, address) as client:
            return _terminate_all(client)
    except (Unreachable, FlusterError, TimeoutError, ValueError) as error:
        say(f"its unfinished jobs could not be told to stop and may go on at the next `fluster up`: {error}")
        return []


def _terminate_all(client: Cluster) -> list[JobInfo]:
    jobs = [job for status in (JobStatus.RUNNING, JobStatus.PENDING) for job in client.list_jobs(status=status)]
    if not jobs:
        return []
    with passing(f"stopping {len(jobs)} job{'s' if len(jobs) != 1 else ''}"):
        for job in jobs:
            client.terminate(job.job_id)
        try:
            client.wait([job.job_id for job in jobs], timeout=_JOBS_S)
        except TimeoutError:
            pass  # what still runs ends with its worker
    return jobs


def _unconfigure(standing: Standing) -> bool:
    """Removes the entry, if it is this cluster's, and gives back the default it replaced."""
    previous = standing.directory / "previous-cluster"
    before = previous.read_text() if previous.exists() else None
    previous.unlink(missing_ok=True)
    entry = load_configuration().clusters.get(standing.name)
    if entry is None or entry.token_file != str(standing.token_file) or not forget_cluster(standing.name):
        return False
    left = load_configuration()
    if before is not None and left.cluster is None and (before in left.clusters or ":" in before):
        choose_cluster(before)
    return True
