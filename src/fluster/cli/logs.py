"""`logs`: what a job prints, and the printing of it, which `run` shares."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

import click

from fluster.cli.inert import inert_line
from fluster.cli.options import cluster_option, job_argument, json_option
from fluster.cli.outcome import describe_end
from fluster.cli.progress import Progress
from fluster.cli.target import find_job, open_cluster
from fluster.cli.terminal import is_terminal, print_json, print_talk
from fluster.cluster.states import JobStatus

if TYPE_CHECKING:
    from fluster.cluster.client import Cluster
    from fluster.cluster.types import JobId, LogLine


@click.command()
@job_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@click.option("--grep", metavar="REGEX", help="Only lines in which this regular expression is found.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N of the lines there are now.")
@click.option("--task", type=click.IntRange(min=0), metavar="INDEX", help="Only of this task.")
@json_option
@cluster_option
def logs(
    job: str, follow: bool, grep: str | None, tail: int | None, task: int | None, as_json: bool, cluster: str | None
) -> None:
    """What a job prints, its stdout and stderr, both to stdout.

    JOB is a job's id, or its name while it is the only unfinished one with that name. Lines of a job with several
    tasks begin with the task's index.
    """
    with open_cluster(cluster) as client:
        info = find_job(client, job)
        if task is not None and task >= len(info.tasks):
            last = f"the last is {len(info.tasks) - 1}" if len(info.tasks) > 1 else "it is the only one"
            raise click.UsageError(f"job {info.job_id} has no task {task}: the first is 0, {last}")
        lines = client.logs(info.job_id, task=task, follow=follow, tail=tail, grep=grep)
        if follow and not info.status.finished():
            lines = _watched(client, info.job_id, lines)
        if as_json:
            print_json(lines)
            return
        printer = LinePrinter(several=len(info.tasks) > 1 and task is None, flush=follow)
        for line in lines:
            printer.print(line, sys.stdout)


def _watched(cluster: Cluster, job_id: JobId, lines: Iterator[LogLine]) -> Iterator[LogLine]:
    """The lines; before them what the job waits for, behind them how it failed, on stderr."""
    if cluster.poll(job_id).started_at is None:
        with Progress(cluster, job_id) as progress:
            for line in lines:
                progress.make_room()
                yield line
    else:
        yield from lines
    info = cluster.wait(job_id)
    if info.status is not JobStatus.SUCCEEDED:
        print_talk(f"fluster: {describe_end(info)}")


class LinePrinter:
    """Prints lines of jobs: as they are, or inert on a terminal.

    Args:
        several: There is more than one task, so each line says whose it is.
        flush: Somebody watches: no line is kept back.
    """

    def __init__(self, *, several: bool, flush: bool) -> None:
        self._several = several
        self._flush = flush
        self._terminals = {stream: is_terminal(stream) for stream in (sys.stdout, sys.stderr) if stream is not None}

    def print(self, line: LogLine, stream: IO[str]) -> None:
        """One line there."""
        text = inert_line(line.data) if self._terminals.get(stream) else line.data
        print(f"[{line.task}] {text}" if self._several else text, file=stream, flush=self._flush)
