"""Which cluster and which job a command means."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from fluster.cli.exits import NoCluster
from fluster.cluster.config import ConfiguredCluster, find_cluster
from fluster.cluster.context import TaskContext
from fluster.cluster.states import JobStatus
from fluster.errors import JobNotFound, Unreachable

if TYPE_CHECKING:
    from fluster.cluster.client import Cluster
    from fluster.cluster.types import JobInfo

_ID = re.compile(r"[ -~]{1,128}")
_MAX_NAMED = 5
"""Candidates that an error names."""


def find_target(cluster: str | None) -> ConfiguredCluster | None:
    """The cluster meant by `--cluster` or, without it, by the calling job, variables and configuration."""
    task = TaskContext.from_environment() if cluster is None else None
    if task is not None:
        return ConfiguredCluster(task.cluster_address, source="the calling job")
    return find_cluster(cluster)


@contextmanager
def open_cluster(cluster: str | None) -> Iterator[Cluster]:
    """That cluster, for as long as the block runs.

    Raises:
        NoCluster: None is configured.
    """
    target = find_target(cluster)
    if target is None:
        raise NoCluster
    with connect(target) as client:
        yield client


@contextmanager
def connect(target: ConfiguredCluster) -> Iterator[Cluster]:
    """A client of the cluster; that it cannot be reached is told with where its address comes from."""
    from fluster.cluster.client import Cluster

    try:
        with Cluster(target.address) as client:
            yield client
    except Unreachable as error:
        raise Unreachable(error.message + _whose(target), address=error.address) from error


def _whose(target: ConfiguredCluster) -> str:
    if target.name is None:
        return f"\nits address comes from {target.source}" if target.source else ""
    return f"\nit is the cluster {target.name!r} of {target.source}; `fluster up` starts one on this machine"


def find_job(cluster: Cluster, text: str) -> JobInfo:
    """The job with this id, else the only unfinished one with this name.

    Raises:
        JobNotFound: There is neither.
        click.UsageError: Several unfinished jobs have the name.
    """
    if not _ID.fullmatch(text):
        raise click.UsageError("JOB is a job's id or name")
    try:
        return cluster.poll(text)
    except JobNotFound:
        pass
    named = [
        job
        for status in (JobStatus.RUNNING, JobStatus.PENDING)
        for job in cluster.list_jobs(status=status, name_prefix=text)
        if job.name == text
    ]
    # A job may have gone from one status to the other between the two answers.
    unfinished = list({job.job_id: job for job in named}.values())
    if len(unfinished) == 1:
        return cluster.poll(unfinished[0].job_id)
    if unfinished:
        raise click.UsageError(f"{len(unfinished)} unfinished jobs are named {text!r}: {_candidates(unfinished)}")
    raise _not_found(cluster, text)


def _candidates(jobs: list[JobInfo]) -> str:
    named = [f"{job.job_id} ({job.status})" for job in jobs[:_MAX_NAMED]]
    return ", ".join(named) + (", …" if len(jobs) > _MAX_NAMED else "")


def _not_found(cluster: Cluster, text: str) -> JobNotFound:
    ended = [job for job in cluster.list_jobs(name_prefix=text, limit=100) if job.name == text]
    if not ended:
        return JobNotFound(text)
    return JobNotFound(
        text, f"no unfinished job is named {text!r}; an ended one is named by its id: {_candidates(ended)}"
    )
