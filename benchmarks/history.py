"""What a long history costs a controller: its start, pages of jobs, launches, the pruning of what is old.

    python benchmarks/history.py [--jobs 100000] [--json]

Writes that many finished jobs into a state directory, as the controller would have written them, with a directory of
logs for each. Then controllers are started on it, and on an empty one, and asked. Exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
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

AT_ONCE = 1_000
PAGES = 50
LAUNCHES = 500
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
def controller(state_dir: Path) -> Iterator[tuple[Cluster, int, float]]:
    """A client of one, its pid, and seconds from its start until it served."""
    command = [sys.executable, "-m", "fluster.cluster.controller.main", "serve", "--port", "0"]
    started = time.perf_counter()
    with subprocess.Popen([*command, "--state-dir", str(state_dir)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            took_s = time.perf_counter() - started
            with Cluster(said["address"], token=Path(said["token_file"]).read_text().strip()) as cluster:
                yield cluster, process.pid, took_s
        finally:
            process.terminate()


def page_ms(cluster: Cluster, **asked: object) -> float:
    """The 99th percentile of a page's time, over pages that follow one another."""
    request = pb.ListJobsRequest(page_size=100, **asked)  # type: ignore[arg-type]
    times = []
    for _ in range(PAGES):
        began = time.perf_counter()
        reply = cluster._call("ListJobs", request, pb.ListJobsResponse)
        times.append((time.perf_counter() - began) * 1000)
        request.page_token = reply.next_page_token
    return statistics.quantiles(times, n=100)[98]


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


def measured(jobs: int, directory: Path) -> Iterator[Figure]:
    """All figures."""
    empty, long = directory / "empty", directory / "long"
    empty.mkdir()
    long.mkdir()
    began = time.perf_counter()
    write_history(long, jobs)
    yield Figure(f"writing {jobs} jobs", time.perf_counter() - began, "s")
    with controller(empty) as (cluster, pid, took_s):
        yield Figure("start, no history", took_s, "s")
        short = launch_us(cluster, pid, "flat")
        yield Figure("launch, no history", short, "us of processor")
    with controller(long) as (cluster, pid, took_s):
        yield Figure("start", took_s, "s", 5.0)
        yield Figure("page of 100 jobs, p99", page_ms(cluster), "ms", 50.0)
        yield Figure("page, by the beginning of names, p99", page_ms(cluster, name_prefix="train-7"), "ms", 50.0)
        yield Figure("page, by a name that is rare, p99", page_ms(cluster, name="train-77"), "ms", 50.0)
        yield Figure("page, by a name that nobody has, p99", page_ms(cluster, name="nothing"), "ms", 50.0)
        yield Figure("page, failed ones of which there are none, p99", page_ms(cluster, status=4), "ms", 50.0)
        yield Figure("launch", launch_us(cluster, pid, "flat"), "us of processor", 1.5 * short + 50.0)
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6
        yield Figure("memory", resident, "MB", 150.0)
    seconds, longest_ms = asyncio.run(pruned(long))
    yield Figure("looking for what is old", seconds, "s")
    yield Figure("nobody is answered meanwhile for", longest_ms, "ms", 100.0)


def main() -> int:
    """Measures and prints; 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory(prefix="fluster-bench-") as directory:
        for figure in measured(options.jobs, Path(directory)):
            figures.append(figure)
            if not options.json:
                limit = f"(at most {figure.limit:.0f})" if figure.limit is not None else ""
                print(f"{figure.what:50}{figure.value:10.1f} {figure.unit} {limit}{'' if figure.good else '  MISSED'}")
    if options.json:
        print(json.dumps([vars(figure) for figure in figures]))
    return 0 if all(figure.good for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
