"""What an idle LocalCluster costs: memory of all its processes, and processor time over a while.

    python benchmarks/idle.py [--seconds 20]

Memory is the proportional set size: pages that processes share are counted once.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from fluster import LocalCluster


def cluster_processes() -> list[int]:
    """Processes below this one, those included whose parent has ended (they share the lifeline's session)."""
    parents = {int(entry.name): _stat(entry)[1] for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found = {os.getpid()}
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return sorted(found - {os.getpid()})
        found |= more


def _stat(entry: Path) -> tuple[float, int]:
    """Processor seconds and parent of a process."""
    try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(fields[1])


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    with LocalCluster() as cluster:
        assert cluster.submit(int, 1).result() == 1
        time.sleep(3)  # what starting and the one job left to do is done
        pids = cluster_processes()
        before = {pid: _stat(Path(f"/proc/{pid}"))[0] for pid in pids}
        time.sleep(options.seconds)
        for pid in pids:
            used = _stat(Path(f"/proc/{pid}"))[0] - before[pid]
            name = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            module = next((word for word in name.split() if word.startswith("fluster.")), name[:40])
            print(f"{module:<40}{pss_bytes(pid) / 1e6:8.1f} MB{100 * used / options.seconds:8.2f} % of a core")
        memory = sum(pss_bytes(pid) for pid in pids)
        processor = sum(_stat(Path(f"/proc/{pid}"))[0] - before[pid] for pid in pids)
        print(f"{'in all':<40}{memory / 1e6:8.1f} MB{100 * processor / options.seconds:8.2f} % of a core")


if __name__ == "__main__":
    main()
