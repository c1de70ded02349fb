"""What an environment costs a job: its build, and each job after that beside the same job without one.

python -m benchmarks.environments [--package cowsay] [--rounds 20]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

from fluster import Entrypoint, EnvironmentConfig, JobRequest, LocalCluster, ResourceConfig

_SMALL = ResourceConfig.with_cpu(cpu=0.1, memory="100MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", default="cowsay")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    packages = EnvironmentConfig(pip_packages=[arguments.package])
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        with LocalCluster(cpu=4) as cluster:
            run(cluster, EnvironmentConfig())
            print(f"first job with {arguments.package}, nothing cached: {run(cluster, packages):.2f} s")
            print(f"  {built(cluster)}")
            print(f"first job with another set of packages, all downloaded: {run(cluster, more(packages)):.2f} s")
            print(f"  {built(cluster)}")
            at_once = [cluster.launch(request(EnvironmentConfig(pip_packages=["six"]))) for _ in range(10)]
            began = time.perf_counter()
            cluster.wait(at_once)
            names = {
                each.message.split()[1] for job in at_once for each in cluster.events(job) if "built" in each.message
            }
            print(f"ten jobs at once with packages that nobody asked for before: {len(names)} build", end=", ")
            print(f"{time.perf_counter() - began:.2f} s")
            compare(cluster, packages, arguments.rounds)


def compare(cluster: LocalCluster, packages: EnvironmentConfig, rounds: int) -> None:
    for what, make in (("function", request), ("command", command)):
        bare, built = [], []
        for _ in range(rounds):
            bare.append(timed(cluster, make(EnvironmentConfig())))
            built.append(timed(cluster, make(packages)))
        both = [statistics.median(times) * 1000 for times in (bare, built)]
        print(f"{what}, median of {rounds}: bare {both[0]:.0f} ms, in its environment {both[1]:.0f} ms")


def request(environment: EnvironmentConfig) -> JobRequest:
    return JobRequest("bench", Entrypoint.from_callable(os.getpid), _SMALL, environment)


def command(environment: EnvironmentConfig) -> JobRequest:
    return JobRequest("bench", Entrypoint.from_command("true"), _SMALL, environment)


def more(environment: EnvironmentConfig) -> EnvironmentConfig:
    return EnvironmentConfig(pip_packages=[*environment.pip_packages, "cloudpickle"])


def run(cluster: LocalCluster, environment: EnvironmentConfig) -> float:
    return timed(cluster, request(environment))


def timed(cluster: LocalCluster, job: JobRequest) -> float:
    began = time.perf_counter()
    cluster.submit(job).result()
    return time.perf_counter() - began


def built(cluster: LocalCluster) -> str:
    job = cluster.list_jobs(limit=1)[0]
    return next(event.message for event in cluster.events(job.job_id) if event.kind == "TaskStarted")


if __name__ == "__main__":
    main()
