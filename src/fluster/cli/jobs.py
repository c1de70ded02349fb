"""Reading commands on jobs: `jobs`, `status`, `why`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from fluster.cli.human import format_age, format_duration, format_time
from fluster.cli.options import cluster_option, job_argument, json_option
from fluster.cli.target import find_job, open_cluster
from fluster.cli.terminal import print_facts, print_json, print_line, print_table, print_talk
from fluster.cluster.states import JobStatus

if TYPE_CHECKING:
    from fluster.cluster.types import Explanation, JobInfo, TaskStatus

_STATUSES = [str(status) for status in JobStatus]


@click.command()
@click.option("--status", type=click.Choice(_STATUSES), help="Only those of this status.")
@click.option("--name", "name_prefix", metavar="PREFIX", help="Only those whose name begins so.")
@click.option("--limit", type=click.IntRange(min=0), default=100, show_default=True, help="At most so many; 0: all.")
@json_option
@cluster_option
def jobs(status: str | None, name_prefix: str | None, limit: int, as_json: bool, cluster: str | None) -> None:
    """List jobs, newest first."""
    with open_cluster(cluster) as client:
        # One more than shown tells whether there are more.
        found = client.list_jobs(status=status, name_prefix=name_prefix, limit=limit + 1 if limit else None)
    more = bool(limit) and len(found) > limit
    found = found[:limit] if more else found
    if as_json:
        print_json(found)
    else:
        now = time.time()
        columns = ("JOB", "NAME", "STATUS", ">AGE", ">TIME", "WHY")
        print_table(columns, [_job_row(job, now) for job in found], empty="no jobs")
    if more:
        print_talk(f"the newest {limit} are shown; --limit 0 shows all")


def _job_row(job: JobInfo, now: float) -> tuple[str, ...]:
    return (
        job.job_id,
        job.name,
        job.status,
        format_age(job.submitted_at, now),
        _took(job.started_at, job.finished_at, now),
        _reason(job),
    )


def _took(started_at: float | None, finished_at: float | None, now: float) -> str:
    return "" if started_at is None else format_duration((finished_at or now) - started_at)


def _reason(job: JobInfo) -> str:
    """What it waits for, or why it ended, on one line."""
    if not job.status.finished():
        return job.pending_reason or ""
    return (job.error_message or "").partition("\n")[0] or str(job.cause or "")


@click.command()
@job_argument
@json_option
@cluster_option
def status(job: str, as_json: bool, cluster: str | None) -> None:
    """How a job and its tasks are.

    JOB is a job's id, or its name while it is the only unfinished one with that name.
    """
    with open_cluster(cluster) as client:
        info = find_job(client, job)
    if as_json:
        print_json([info])
        return
    now = time.time()
    print_facts(_job_facts(info, now))
    if info.tasks:
        print()
        columns = (">TASK", "STATE", ">ATTEMPT", "WORKER", ">EXIT", ">TIME", "WHY")
        print_table(columns, [_task_row(task, now) for task in info.tasks])


def _job_facts(info: JobInfo, now: float) -> list[tuple[str, str]]:
    took = _took(info.started_at, info.finished_at, now)
    ago = format_age(info.submitted_at, now)
    return [
        ("job", info.job_id),
        ("name", info.name),
        ("status", f"{info.status}{f' after {took}' if took and info.status.finished() else ''}"),
        ("waits for", "" if info.status.finished() else info.pending_reason or ""),
        ("why", (info.error_message or "").rstrip()),
        ("exit code", "" if info.exit_code is None else str(info.exit_code)),
        ("submitted", f"{format_time(info.submitted_at)} ({ago} ago)" if ago else ""),
        ("started", format_time(info.started_at)),
        ("finished", format_time(info.finished_at)),
        ("parent", info.parent or ""),
        ("namespace", info.namespace),
    ]


def _task_row(task: TaskStatus, now: float) -> tuple[str, ...]:
    return (
        str(task.index),
        task.state,
        str(task.attempt),
        task.worker_id or "",
        "" if task.exit_code is None else str(task.exit_code),
        _took(task.started_at, task.finished_at, now),
        (task.error_message or "").partition("\n")[0],
    )


@click.command()
@job_argument
@json_option
@cluster_option
def why(job: str, as_json: bool, cluster: str | None) -> None:
    """What a job waits for, with numbers, or why it ended and what to do.

    JOB is a job's id, or its name while it is the only unfinished one with that name.
    """
    with open_cluster(cluster) as client:
        explanation = client.why(find_job(client, job).job_id)
    if as_json:
        print_json([explanation])
    else:
        for line in _explanation_lines(explanation):
            print_line(line)


def _explanation_lines(explanation: Explanation) -> Iterator[str]:
    """The state, then each reason with what belongs to it below it."""
    place = explanation.queue_position
    yield f"{explanation.state}{f', number {place} in the queue' if place is not None else ''}"
    for reason in explanation.reasons:
        first, *rest = reason.splitlines() or [""]
        yield f"  {first}"
        yield from (f"    {line}" for line in rest)
