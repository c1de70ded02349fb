"""Reading commands on the cluster: `workers`, `endpoints`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from fluster.cli.human import format_age, format_bytes, format_count
from fluster.cli.options import cluster_option, json_option
from fluster.cli.target import open_cluster
from fluster.cli.terminal import print_json, print_table

if TYPE_CHECKING:
    from fluster.cluster.types import Endpoint, WorkerInfo


@click.command()
@json_option
@cluster_option
def workers(as_json: bool, cluster: str | None) -> None:
    """List workers: what each has left of what it has, and what enforces limits there.

    Limits are no sandbox: jobs of a worker run as its user, and can read what that user can read.
    """
    with open_cluster(cluster) as client:
        found = client.workers()
    if as_json:
        print_json(found)
        return
    now = time.time()
    columns = ("WORKER", "STATUS", ">CPU FREE", ">MEMORY FREE", ">GPU FREE", "LIMITS", ">SEEN", "ADDRESS")
    empty = "no worker has joined; `fluster worker token` lets one join"
    print_table(columns, [_worker_row(worker, now) for worker in found], empty=empty)


def _worker_row(worker: WorkerInfo, now: float) -> tuple[str, ...]:
    have, free = worker.resources, worker.free
    gpus = f"{free.gpu_count} of {have.gpu_count} {have.gpu_variant}".rstrip() if have.gpu_count else ""
    return (
        worker.worker_id,
        worker.status,
        f"{format_count(free.cpu)} of {format_count(have.cpu)}",
        f"{format_bytes(free.memory_bytes)} of {format_bytes(have.memory_bytes)}",
        gpus or have.tpu_variant,
        f"cgroup {have.cgroup}" if have.cgroup != "none" else "sampled",
        f"{format_age(worker.last_seen_at, now)} ago" if worker.last_seen_at else "",
        worker.address,
    )


@click.command()
@click.argument("prefix", default="", metavar="[PREFIX]")
@json_option
@cluster_option
def endpoints(prefix: str, as_json: bool, cluster: str | None) -> None:
    """List the endpoints whose name begins with PREFIX, by default all."""
    with open_cluster(cluster) as client:
        found = client.list_endpoints(prefix)
    if as_json:
        print_json(found)
    else:
        columns = ("NAME", "ADDRESS", "JOB", "NAMESPACE", "METADATA")
        print_table(columns, [_endpoint_row(endpoint) for endpoint in found], empty="no endpoints")


def _endpoint_row(endpoint: Endpoint) -> tuple[str, ...]:
    metadata = ", ".join(f"{key}={value}" for key, value in sorted(endpoint.metadata.items()))
    return endpoint.name, endpoint.address, endpoint.job_id, endpoint.namespace, metadata
