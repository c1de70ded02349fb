"""Following a job to its end, on a configured cluster or on one started for it; and what Ctrl-C does meanwhile."""

from __future__ import annotations

import sys
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from fluster.cli.exits import ExitCode
from fluster.cli.logs import LinePrinter
from fluster.cli.outcome import describe_end, exit_code
from fluster.cli.progress import Progress, Talker, passing
from fluster.cli.terminal import is_fancy, is_terminal, print_talk
from fluster.cluster.states import JobStatus
from fluster.errors import FlusterError

if TYPE_CHECKING:
    from fluster.cluster.client import Cluster
    from fluster.cluster.types import JobId, JobInfo, JobRequest

_STOP_S = 15.0
"""A stopped job has 10 s to end by itself; what is left of it is killed then."""


def run_there(cluster: Cluster, request: JobRequest) -> int:
    """Launches a job on a configured cluster, and follows it. Ctrl-C leaves it running."""
    request = replace(request, request_id=uuid.uuid4().hex)
    job_id = None
    try:
        job_id = cluster.launch(request)
        print_talk(f"job {request.name} ({job_id}) on {cluster.address}")
        return _end(_follow(cluster, job_id, request))
    except KeyboardInterrupt:
        _below_ctrl_c()
        if job_id is None:
            job_id = cluster.launch(request)  # it may be there already: then this gives its id
        print_talk(f"detached: job {job_id} goes on\nattach: fluster logs -f {job_id}\nstop:   fluster stop {job_id}")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        print_talk(f"job {job_id} goes on; `fluster stop {job_id}` stops it")
        raise


def run_here(request: JobRequest) -> int:
    """Starts a cluster for the job, follows it, ends both. Ctrl-C does so early."""
    from fluster.cluster.local import LocalCluster

    try:
        with passing("no cluster is configured: starting one on this machine for this command"):
            cluster = LocalCluster()
        if is_fancy(sys.stderr):  # the line above is gone
            Talker().lasting("no cluster is configured: one was started on this machine for this command")
        with cluster:
            return _run_on_own(cluster, request)
    except KeyboardInterrupt:
        # The creator's end is the cluster's, so a second Ctrl-C in the middle of it leaves nothing either.
        _below_ctrl_c()
        print_talk("interrupted: the cluster started for this command is stopped")
        return ExitCode.INTERRUPTED


def _run_on_own(cluster: Cluster, request: JobRequest) -> int:
    job_id = cluster.launch(request)
    try:
        return _end(_follow(cluster, job_id, request))
    except KeyboardInterrupt:
        _below_ctrl_c()
        with passing("interrupted: stopping the job, and the cluster started for it; Ctrl-C again does not wait"):
            _stop(cluster, job_id)
        print_talk("job and cluster are stopped")
        return ExitCode.INTERRUPTED


def _below_ctrl_c() -> None:
    """A terminal shows ^C in the line where the cursor is."""
    if is_terminal(sys.stderr):
        print_talk("")


def _stop(cluster: Cluster, job_id: JobId) -> None:
    try:
        cluster.terminate(job_id)
        cluster.wait(job_id, timeout=_STOP_S)
    except (FlusterError, TimeoutError):
        pass  # the cluster's end is the job's as well


def _follow(cluster: Cluster, job_id: JobId, request: JobRequest) -> JobInfo:
    """Prints what the job prints, each stream to the same here, until it has ended."""
    printer = LinePrinter(several=request.num_tasks > 1, flush=True)
    with Progress(cluster, job_id) as progress:
        for line in cluster.logs(job_id, follow=True):
            progress.make_room()
            printer.print(line, sys.stderr if line.stream == "stderr" else sys.stdout)
        return cluster.wait(job_id)


def _end(info: JobInfo) -> int:
    if info.status is not JobStatus.SUCCEEDED:
        print_talk(f"fluster: {describe_end(info)}")
    elif is_fancy(sys.stderr):
        Talker().lasting(describe_end(info))
    return exit_code(info)
