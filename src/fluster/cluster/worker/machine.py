"""What this machine offers to attempts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def cpu_count() -> float:
    """Cores this process may use: those of its affinity, or the quota of its cgroup where that is less."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota = _cgroup_text("cpu.max")
    if quota is not None:
        amount, _, period = quota.partition(" ")
        if amount.isdigit() and period.isdigit() and int(period):
            cores = min(cores, int(amount) / int(period))
    return cores


def memory_bytes() -> int:
    """Memory of the machine, or of this process's cgroup where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (_cgroup_text("memory.max"), _cgroup_text("memory/memory.limit_in_bytes"))
    return min([total, *(int(limit) for limit in limits if limit is not None and limit.isdigit())])


def free_disk_bytes(path: Path) -> int:
    """What is free where attempts keep their files."""
    return shutil.disk_usage(path).free


def _cgroup_text(name: str) -> str | None:
    try:
        return (_CGROUP / name).read_text().strip()
    except OSError:
        return None
