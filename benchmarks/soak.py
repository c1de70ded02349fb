"""Whether controller, worker and zygote grow while jobs come and go: memory and descriptors over minutes, as slopes.

    python -m benchmarks.soak [--seconds 120] [--json]

Jobs that print, return something, register an endpoint or fail run one after the other, and are followed. The first
third is warming up: caches and arenas fill. The slope is the line that fits the rest best (least squares).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.idle import cluster_processes, pss_bytes

from fluster import Entrypoint, JobRequest, LocalCluster, ResourceConfig

EVERY_S = 2.0
NAMES = {
    "fluster.cluster.controller": "controller",
    "fluster.cluster.worker": "worker",
    "fluster.cluster.attempt.zygote": "zygote",
}


@dataclass
class Track:
    """One process over time: seconds, memory in KB, open descriptors."""

    at: list[float] = field(default_factory=list)
    memory_kb: list[float] = field(default_factory=list)
    descriptors: list[float] = field(default_factory=list)

    def look(self, pid: int, at: float) -> None:
        """Adds what it has now."""
        self.at.append(at)
        self.memory_kb.append(pss_bytes(pid) / 1024)
        self.descriptors.append(float(len(os.listdir(f"/proc/{pid}/fd"))))

    def after(self, seconds: float) -> Track:
        """Without its beginning."""
        kept = [n for n, at in enumerate(self.at) if at >= seconds]
        return Track(*([values[n] for n in kept] for values in (self.at, self.memory_kb, self.descriptors)))


def slope(xs: list[float], ys: list[float]) -> float:
    """Of the line that fits best, for one unit of x."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread if spread else 0.0


def work(number: int) -> int:
    """Prints, and every tenth time fails."""
    print("\n".join(f"line {n} of {number}" for n in range(50)))
    if number % 10 == 9:
        raise ValueError("as it was meant to be")
    return number


def run_one(cluster: LocalCluster, number: int) -> None:
    """A job from its launch to its last line, and an endpoint that comes and goes."""
    entrypoint = Entrypoint.from_callable(work, number)
    job_id = cluster.launch(JobRequest("soak", entrypoint, ResourceConfig.with_cpu(cpu=0.5, memory="100MB")))
    endpoint = cluster.register_endpoint(f"soak-{number % 7}", "127.0.0.1:1")
    lines = sum(1 for _ in cluster.logs(job_id, follow=True))
    if lines < 50:
        raise RuntimeError(f"job {job_id} printed 50 lines, {lines} came")
    cluster.unregister_endpoint(endpoint.endpoint_id)


def tracked(seconds: float) -> tuple[int, dict[str, Track]]:
    """How many jobs there were, and how the processes came along."""
    tracks: dict[str, Track] = {}
    with LocalCluster(cpu=2, memory="4GB") as cluster:
        run_one(cluster, 0)
        pids: dict[str, int] = {}
        for pid in cluster_processes():  # by age: what the zygote forks looks like it and comes later
            if (name := _name(pid)) is not None:
                pids.setdefault(name, pid)
        began, jobs, next_look = time.monotonic(), 1, 0.0
        while (at := time.monotonic() - began) < seconds:
            if at >= next_look:
                for name, pid in pids.items():
                    tracks.setdefault(name, Track()).look(pid, at)
                next_look = at + EVERY_S
            run_one(cluster, jobs)
            jobs += 1
        return jobs, tracks


def _name(pid: int) -> str | None:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return None
    return next((NAMES[word] for word in words if word in NAMES), None)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    jobs, tracks = tracked(options.seconds)
    warm_s, job_s = options.seconds / 3, options.seconds / jobs
    figures = {name: _figures(track.after(warm_s), job_s) for name, track in tracks.items()}
    if options.json:
        print(json.dumps({"jobs": jobs, "seconds": options.seconds, **figures}))
        return
    print(f"{jobs} jobs in {options.seconds:g} s")
    for name, each in figures.items():
        print(f"{name:12}" + "  ".join(f"{key} {value}" for key, value in each.items()))


def _figures(track: Track, job_s: float) -> dict[str, float]:
    return {
        "memory_mb": round(track.memory_kb[-1] / 1024, 1),
        "kb_per_1000_jobs": round(slope(track.at, track.memory_kb) * job_s * 1000, 1),
        "descriptors": track.descriptors[-1],
        "descriptors_per_1000_jobs": round(slope(track.at, track.descriptors) * job_s * 1000, 2),
    }


if __name__ == "__main__":
    main()
