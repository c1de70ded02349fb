"""What a long history costs a controller: its start, pages of jobs, launches, the pruning of what is old.

    python -m benchmarks.history [--jobs 100000] [--state-dir DIR] [--json]

Writes that many finished jobs into a state directory, as the controller would have written them, with a directory of
logs for each. Then controllers are started on it, and on an empty one, and asked. Exits with 1 when a limit is missed.
Processor time is the controller's own: it says more than the clock where others use the machine. A `--state-dir` is
written once and kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.launches import job_spec, processor_s

from fluster import Cluster, JobStatus
from fluster.cluster.controller.core.rows import (
    AttemptRow,
    AttemptState,
    Changes,
    JobRow,
    JournalRow,
    RequestRow,
    Resources,
    ResultRow,
    Retry,
    Row,
    SpecRow,
    TaskRow,
)
from fluster.cluster.controller.jobs import new_job_id
from fluster.cluster.controller.store import Store
from fluster.cluster.ids import AttemptUid, JobId, Namespace, WorkerId
from fluster.cluster.states import TaskState
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

AT_ONCE = 1_000
PAGES = 50
LAUNCHES = 500
FAILED = types_pb.JobStatus.FAILED
KINDS = ("JobLaunched", "TaskPlaced", "TaskStarted", "TaskSucceeded")


@dataclass(frozen=True)
class Figure:
    """One measurement and what it may be at most."""

    what: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def good(self) -> bool:
        """Whether the limit is kept."""
        return self.limit is None or self.value <= self.limit


def write_history(state_dir: Path, jobs: int) -> None:
    """Finished jobs of one task each, a second apart, the last one an hour ago."""
    spec, began = job_spec().to_binary(), time.time() - 3_600.0 - jobs
    with Store.open(state_dir / "fluster.db") as store:
        for first in range(0, jobs, AT_ONCE):
            changes = Changes()
            for number in range(first, min(first + AT_ONCE, jobs)):
                job_id = _note_job(changes, number, began + number, spec)
                (state_dir / "logs" / job_id).mkdir(parents=True)
            store.commit(changes)


def _note_job(changes: Changes, number: int, at: float, spec: bytes) -> JobId:
    job_id = new_job_id(at)
    uid = AttemptUid(f"{job_id}.0.1")
    job = JobRow(
        job_id=job_id,
        name=f"train-{number % 100}",
        namespace=Namespace("default"),
        owner="admin",
        parent=None,
        depth=0,
        priority=1,
        num_tasks=1,
        gang=True,
        resources=Resources(1000, 2 * 10**9),
        slice_hosts=0,
        retry=Retry(),
        timeout_s=None,
        scheduling_timeout_s=None,
        ports=(),
        submitted_at=at,
        outcome=JobStatus.SUCCEEDED,
        finished_at=at + 0.5,
    )
    attempt = AttemptRow(
        uid=uid,
        job_id=job_id,
        task=0,
        number=1,
        worker_id=WorkerId("w"),
        incarnation="i",
        placed_at=at,
        state=AttemptState.SUCCEEDED,
        observed=True,
        started_at=at + 0.1,
        finished_at=at + 0.5,
        exit_code=0,
    )
    rows: tuple[Row, ...] = (
        job,
        SpecRow(job_id, spec),
        TaskRow(job_id, 0, TaskState.SUCCEEDED, 1),
        attempt,
        ResultRow(uid, b"x" * 100, "", "0" * 64),
        RequestRow("admin", f"r{number}", "LaunchJob", "0" * 64, job_id, at),
    )
    for index, row in enumerate(rows):
        changes.rows[type(row), (number, index)] = row
    changes.journal += [JournalRow(at, kind, "admin", job_id) for kind in KINDS]
    return job_id


@contextmanager
def controller(state_dir: Path) -> Iterator[tuple[Cluster, int, float, float]]:
    """A client of one, its pid, seconds from its start until it served, and what of them was processor time."""
    command = [sys.executable, "-m", "fluster.cluster.controller", "serve", "--port", "0"]
    started = time.perf_counter()
    with subprocess.Popen([*command, "--state-dir", str(state_dir)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            took_s, used_s = time.perf_counter() - started, processor_s(process.pid)
            with Cluster(said["address"], token=Path(said["token_file"]).read_text().strip()) as cluster:
                yield cluster, process.pid, took_s, used_s
        finally:
            process.terminate()


def pages(cluster: Cluster, pid: int, what: str, **asked: object) -> Iterator[Figure]:
    """What a page of 100 jobs costs, over pages that follow one another."""
    request = pb.ListJobsRequest(page_size=100, **asked)  # type: ignore[arg-type]
    times, before = [], processor_s(pid)
    for _ in range(PAGES):
        began = time.perf_counter()
        reply = cluster._call("ListJobs", request, pb.ListJobsResponse)
        times.append((time.perf_counter() - began) * 1000)
        request.page_token = reply.next_page_token
    yield Figure(f"page of {what}, median", statistics.median(times), "ms", 50.0)
    yield Figure(f"page of {what}", (processor_s(pid) - before) / PAGES * 1000, "ms of processor", 50.0)


def launch_us(cluster: Cluster, pid: int, name: str) -> float:
    """Processor time of the controller for one launch."""
    spec, before = job_spec(), processor_s(pid)
    spec.name = name
    spec.resources.cpu = 100_000.0  # type: ignore[union-attr]
    for number in range(LAUNCHES):
        message = pb.LaunchJobRequest(request_id=f"{name}-{number}", spec=spec)
        cluster._call("LaunchJob", message, pb.LaunchJobResponse)
    return (processor_s(pid) - before) / LAUNCHES * 1e6


async def pruned(state_dir: Path) -> tuple[float, float]:
    """Seconds that looking for what is old takes, and the longest the event loop stood still meanwhile, in ms."""
    from fluster.cluster.controller import retention
    from fluster.cluster.controller.server import ControllerConfig, ControllerDaemon

    async with ControllerDaemon(ControllerConfig(state_dir)) as running:
        began, longest = time.perf_counter(), 0.0
        task = asyncio.create_task(retention.prune(running.controller, 0.0, 10**9))
        while not task.done():
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before)
        await task
        return time.perf_counter() - began, longest * 1000


def measured(jobs: int, empty: Path, long: Path) -> Iterator[Figure]:
    """All figures."""
    if not (long / "fluster.db").exists():
        began = time.perf_counter()
        write_history(long, jobs)
        yield Figure(f"writing {jobs} jobs", time.perf_counter() - began, "s")
    with controller(empty) as (cluster, pid, took_s, used_s):
        yield Figure("start without history", took_s, "s")
        yield Figure("start without history", used_s, "s of processor")
        short = launch_us(cluster, pid, f"flat-{pid}")
        yield Figure("launch without history", short, "us of processor")
    with controller(long) as (cluster, pid, took_s, used_s):
        yield Figure("start", took_s, "s", 5.0)
        yield Figure("start", used_s, "s of processor", 5.0)
        yield from pages(cluster, pid, "any jobs")
        yield from pages(cluster, pid, "jobs whose names begin alike", name_prefix="train-7")
        yield from pages(cluster, pid, "jobs of a name that one in a hundred has", name="train-77")
        yield from pages(cluster, pid, "jobs of a name that none has", name="nothing")
        yield from pages(cluster, pid, "failed jobs, of which there are none", status=FAILED)
        yield Figure("launch", launch_us(cluster, pid, f"flat-{pid}"), "us of processor", 1.5 * short + 50.0)
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        yield Figure("memory", resident / 1e6, "MB", 150.0)
    seconds, longest_ms = asyncio.run(pruned(long))
    yield Figure("looking for what is old", seconds, "s")
    yield Figure("longest time that nobody is answered meanwhile", longest_ms, "ms", 100.0)


def main() -> int:
    """Measures and prints; 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--state-dir", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory(prefix="fluster-bench-") as directory:
        empty, long = Path(directory, "empty"), options.state_dir or Path(directory, "long")
        for each in (empty, long):
            each.mkdir(exist_ok=True)
        for figure in measured(options.jobs, empty, long):
            figures.append(figure)
            if not options.json:
                limit = f"(at most {figure.limit:.0f})" if figure.limit is not None else ""
                print(f"{figure.what:52}{figure.value:9.1f} {figure.unit} {limit}{'' if figure.good else '  MISSED'}")
    if options.json:
        print(json.dumps([vars(figure) for figure in figures]))
    return 0 if all(figure.good for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
