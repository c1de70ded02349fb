"""Times the life of trivial jobs on a LocalCluster, beside the machine's own limits and, where it is installed, Ray.

    python benchmarks/jobs.py [--ray-python PATH] [--json]

Prints each figure with what it is measured against in the same run: the cost of a synced commit, of starting a Python
interpreter, of Ray's own job submission. Absolute figures drift with the machine; the ratios are what counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from fluster import Cluster, Entrypoint, JobRequest, JobStatus, LocalCluster, ResourceConfig

RAY_SUBMIT = """
import statistics, sys, time, ray
from ray.job_submission import JobSubmissionClient, JobStatus
ray.init(include_dashboard=True, log_to_driver=False)
client = JobSubmissionClient()
times = []
for _ in range(int(sys.argv[1])):
    started = time.perf_counter()
    job = client.submit_job(entrypoint="true")
    while client.get_job_status(job) not in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED):
        time.sleep(0.005)
    times.append(time.perf_counter() - started)
print(statistics.median(times))
"""


def trivial() -> int:
    """The job that does nothing."""
    return 42


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def synced_commit_s() -> float:
    """Median seconds of appending a page to a file and syncing it: what a commit costs at least here."""
    with tempfile.NamedTemporaryFile() as file:

        def commit() -> None:
            file.write(bytes(4096))
            file.flush()
            os.fdatasync(file.fileno())

        return statistics.median(timed(commit) for _ in range(100))


def fresh_python_s(code: str) -> float:
    """Median seconds of a new interpreter that runs `code`."""
    return statistics.median(timed(lambda: subprocess.run([sys.executable, "-c", code], check=True)) for _ in range(7))


def first_result_s() -> float:
    """Seconds from nothing to the first result of a new LocalCluster, in a new interpreter."""
    code = (
        "import time; t = time.perf_counter()\n"
        "from fluster import LocalCluster\n"
        "with LocalCluster() as c:\n"
        "    assert c.submit(int, 42).result() == 42\n"
        "    print(time.perf_counter() - t)\n"
    )
    runs = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(3)
    ]
    return statistics.median(runs)


def one_by_one_s(cluster: Cluster, count: int) -> list[float]:
    """Seconds of each job from launch to result in hand."""
    for _ in range(5):
        cluster.submit(trivial).result()
    return [timed(lambda: cluster.submit(trivial).result()) for _ in range(count)]


def all_at_once_s(cluster: Cluster, count: int) -> float:
    """Seconds from the first launch to the last result."""
    small = ResourceConfig.with_cpu(cpu=0.1, memory="50MB")

    def run() -> None:
        jobs = [cluster.submit(JobRequest("trivial", Entrypoint.from_callable(trivial), small)) for _ in range(count)]
        assert [job.result() for job in jobs] == [42] * count

    return timed(run)


def kill_to_failed_s(cluster: Cluster) -> float:
    """Median seconds from SIGKILL of a job's process to FAILED at a waiting client."""

    def once() -> float:
        code = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"
        job = cluster.submit(JobRequest("victim", Entrypoint.from_command(sys.executable, "-c", code)))
        pid = int(next(job.logs(follow=True)).data)
        started = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        assert job.wait().status is JobStatus.FAILED
        return time.perf_counter() - started

    return statistics.median(once() for _ in range(5))


def ray_job_s(python: str, count: int) -> float | None:
    """Median seconds of Ray's submission of `true`, in a namespace with only loopback; `None` where it cannot run."""
    inside = 'ip link set lo up && exec "$@"'
    command = ["unshare", "-n", "sh", "-c", inside, "sh", python, "-c", RAY_SUBMIT, str(count)]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, env=environment)
        return float(done.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        print(f"Ray was not measured: {error}", file=sys.stderr)
        return None


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ray_here = sys.executable if importlib.util.find_spec("ray") is not None else None
    parser.add_argument("--ray-python", default=ray_here, help="an interpreter with ray[default]; default: this one's")
    parser.add_argument("--jobs", type=int, default=50, help="jobs of the one-by-one row")
    parser.add_argument("--many", type=int, default=1000, help="jobs of the largest row")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures: dict[str, float] = {"a synced commit": synced_commit_s()}
    figures["a fresh interpreter"] = fresh_python_s("pass")
    figures["import fluster (with the interpreter's start)"] = fresh_python_s("import fluster")
    figures["LocalCluster to first result"] = first_result_s()
    with LocalCluster() as cluster:
        times = one_by_one_s(cluster, options.jobs)
        figures["trivial job, launch to result (median)"] = statistics.median(times)
        figures["trivial job, launch to result (90th percentile)"] = statistics.quantiles(times, n=10)[-1]
        for count in (100, options.many):
            figures[f"{count:,} trivial jobs"] = all_at_once_s(cluster, count)
        figures["SIGKILL to FAILED at a waiting client"] = kill_to_failed_s(cluster)
    if options.ray_python is not None:
        ray = ray_job_s(options.ray_python, 5)
        if ray is not None:
            figures["Ray: submit `true` to its end (median)"] = ray
            figures["Ray / Fluster"] = ray / figures["trivial job, launch to result (median)"]
    if options.json:
        print(json.dumps(figures))
        return
    for name, seconds in figures.items():
        print(f"{name:<52}{seconds:9.2f} x" if name == "Ray / Fluster" else f"{name:<52}{seconds * 1000:9.2f} ms")


if __name__ == "__main__":
    main()
