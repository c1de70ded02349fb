"""Commands about a job's end: `wait` and `stop`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fluster.cli.exits import ExitCode, say
from fluster.cli.human import format_duration
from fluster.cli.options import Duration, cluster_option, json_option
from fluster.cli.outcome import describe_end
from fluster.cli.progress import Progress
from fluster.cli.target import find_job, open_cluster
from fluster.cli.terminal import print_json, print_talk
from fluster.cluster.states import JobStatus

if TYPE_CHECKING:
    from fluster.cluster.client import Cluster
    from fluster.cluster.types import JobInfo

_STOP_S = 30.0
"""A stopped job has 10 s to end by itself; what is left of it is killed then."""


@click.command()
@click.argument("job", metavar="JOB")
@click.option("--timeout", type=Duration(zero=True), help="For at most so long: seconds, or 30s, 10m, 1h30m.")
@json_option
@cluster_option
def wait(job: str, timeout: float | None, as_json: bool, cluster: str | None) -> int:
    """Wait until a job has ended: exit code 0 if it succeeded, 1 if not, 124 if it has not ended in time.

    JOB is a job's id, or its name while it is the only unfinished one with that name.
    """
    with open_cluster(cluster) as client:
        info = find_job(client, job)
        if not info.status.finished():
            try:
                info = _wait(client, info, timeout)
            except TimeoutError as error:
                say(str(error))
                return ExitCode.TIMED_OUT
    if as_json:
        print_json([info])
    print_talk(describe_end(info))
    return ExitCode.OK if info.status is JobStatus.SUCCEEDED else ExitCode.FAILED


def _wait(client: Cluster, info: JobInfo, timeout: float | None) -> JobInfo:
    with Progress(client, info.job_id):
        return client.wait(info.job_id, timeout=timeout)


@click.command()
@click.argument("job", metavar="JOB")
@cluster_option
def stop(job: str, cluster: str | None) -> int:
    """Stop a job, everything it started and the jobs it launched, and wait until nothing of it is left.

    JOB is a job's id, or its name while it is the only unfinished one with that name. Its processes get SIGTERM, and
    SIGKILL 10 seconds later. Stopping a job that has ended is no error.
    """
    with open_cluster(cluster) as client:
        info = find_job(client, job)
        if info.status.finished():
            print_talk(f"job {info.job_id} had ended already: {info.status}")
            return ExitCode.OK
        client.terminate(info.job_id)
        try:
            info = client.wait(info.job_id, timeout=_STOP_S)
        except TimeoutError:
            why = "; ".join(client.why(info.job_id).reasons[1:2])
            say(f"job {info.job_id} is told to stop but has not ended after {format_duration(_STOP_S)}\n{why}")
            return ExitCode.TIMED_OUT
    print_talk(describe_end(info))
    return ExitCode.OK
