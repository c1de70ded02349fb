"""A function with a package that this program does not have: built once on the machine that runs it, then found.

python examples/own_packages.py [--package cowsay] [--module cowsay]
"""

from __future__ import annotations

import argparse
import importlib.util
import time

from fluster import Entrypoint, EnvironmentConfig, JobRequest, current_cluster


def version_there(module: str) -> str:
    """Which file the job imports the module from."""
    import importlib

    found = importlib.import_module(module).__file__
    assert found is not None
    return found


def main() -> None:
    """Runs the same job twice, and tells what its environment took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", default="cowsay")
    parser.add_argument("--module", default="cowsay")
    arguments = parser.parse_args()
    print(f"{arguments.module} is here: {importlib.util.find_spec(arguments.module) is not None}")
    cluster = current_cluster()
    environment = EnvironmentConfig(pip_packages=[arguments.package])
    for attempt in ("first", "second"):
        request = JobRequest(
            "own-packages", Entrypoint.from_callable(version_there, arguments.module), environment=environment
        )
        began = time.perf_counter()
        job = cluster.submit(request)
        where = job.result()
        took = time.perf_counter() - began
        told = next(event.message for event in cluster.events(job.job_id) if event.kind == "TaskStarted")
        print(f"{attempt} job, {took:.1f} s: {told}; it imported {where}")


if __name__ == "__main__":
    main()
