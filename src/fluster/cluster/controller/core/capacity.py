"""What fits where: free and total capacity of the workers during one scheduling pass."""

from __future__ import annotations

from dataclasses import dataclass

from fluster.cluster.controller.core.rows import Resources, WorkerRow
from fluster.cluster.controller.core.state import State


@dataclass(slots=True)
class Slot:
    """One worker during one pass; its room only shrinks.

    Attributes:
        left: What running attempts and placements of this pass leave.
        free: That, less what is held back for a gang that waits.
    """

    worker: WorkerRow
    left: Resources
    free: Resources

    def take(self, need: Resources) -> None:
        """A task goes here."""
        self.left = self.left.minus(need)
        self.free = self.free.minus(need)


def fits(need: Resources, have: Resources) -> bool:
    """Whether one task of this need fits into what is there."""
    return (
        need.cpu_milli <= have.cpu_milli
        and need.slots <= have.slots
        and need.memory_bytes <= have.memory_bytes
        and need.disk_bytes <= have.disk_bytes
        and need.gpu <= have.gpu
        and (need.gpu == 0 or variant_matches(need.gpu_variant, have.gpu_variant))
        and (not need.tpu_variant or need.tpu_variant == have.tpu_variant)
    )


def variant_matches(wanted: str, there: str) -> bool:
    """Whether a GPU of this variant will do; "auto" takes any."""
    return wanted in ("", "auto") or wanted.lower() == there.lower()


def times(need: Resources, have: Resources) -> int:
    """How many tasks of this need fit into what is there."""
    if not fits(need, have):
        return 0
    bounds = [have.slots // need.slots if need.slots else have.slots]
    for wanted, there in (
        (need.cpu_milli, have.cpu_milli),
        (need.memory_bytes, have.memory_bytes),
        (need.disk_bytes, have.disk_bytes),
        (need.gpu, have.gpu),
    ):
        if wanted > 0:
            bounds.append(there // wanted)
    return min(bounds)


def slots(state: State) -> list[Slot]:
    """Every worker that may be given work, with what it has left."""
    found = []
    for worker in state.ready_workers():
        free = state.free(worker)
        found.append(Slot(worker, free, free))
    return found


def describe(need: Resources) -> str:
    """The need in words: `2 cpu, 4 GB memory`."""
    parts = [f"{_cpu(need.cpu_milli)} cpu"]
    if need.memory_bytes:
        parts.append(f"{_bytes(need.memory_bytes)} memory")
    if need.disk_bytes:
        parts.append(f"{_bytes(need.disk_bytes)} disk")
    if need.gpu:
        variant = "" if need.gpu_variant in ("", "auto") else f" {need.gpu_variant}"
        parts.append(f"{need.gpu}{variant} gpu")
    if need.tpu_variant:
        parts.append(f"a host of {need.tpu_variant}")
    return ", ".join(parts)


def shortage(need: Resources, have: Resources, what: str) -> list[str]:
    """The dimensions in which this is too little: `2 cpu needed, 1 free`."""
    short = []
    if need.cpu_milli > have.cpu_milli:
        short.append(f"{_cpu(need.cpu_milli)} cpu needed, {_cpu(max(0, have.cpu_milli))} {what}")
    if need.memory_bytes > have.memory_bytes:
        short.append(f"{_bytes(need.memory_bytes)} memory needed, {_bytes(max(0, have.memory_bytes))} {what}")
    if need.disk_bytes > have.disk_bytes:
        short.append(f"{_bytes(need.disk_bytes)} disk needed, {_bytes(max(0, have.disk_bytes))} {what}")
    if need.gpu > have.gpu:
        short.append(f"{need.gpu} gpu needed, {max(0, have.gpu)} {what}")
    elif need.gpu and not variant_matches(need.gpu_variant, have.gpu_variant):
        short.append(f"gpu {need.gpu_variant} needed, {have.gpu_variant or 'none'} {what}")
    if need.tpu_variant and need.tpu_variant != have.tpu_variant:
        short.append(f"tpu {need.tpu_variant} needed, {have.tpu_variant or 'none'} {what}")
    if need.slots > have.slots:
        short.append(f"a place for one more task needed, {max(0, have.slots)} {what}")
    return short


def _cpu(milli: int) -> str:
    return f"{milli / 1000:g}"


def _bytes(count: int) -> str:
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
