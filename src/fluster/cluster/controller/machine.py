"""What this machine offers when a local backend is asked for all of it."""

from __future__ import annotations

import os
from pathlib import Path

from fluster.cluster.controller.core.rows import Resources

_UNBOUNDED_SLOTS = 100_000
"""What cpu and memory do not bound, its worker does."""
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def this_machine(cpu: float | None = None, memory_bytes: int | None = None) -> Resources:
    """All of the machine, or as much of it as is said."""
    return Resources(
        cpu_milli=int((cpu if cpu is not None else _cpu()) * 1000),
        memory_bytes=memory_bytes if memory_bytes is not None else _memory_bytes(),
        slots=_UNBOUNDED_SLOTS,
    )


def _cpu() -> float:
    """Cores this process may use, at least 2: one that waits for its child must not starve it."""
    return float(max(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def _memory_bytes() -> int:
    """Memory of the machine, or of the cgroup this process is in, whichever is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _LIMITS:
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total
