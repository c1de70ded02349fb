"""Why a gang waits, in numbers a person can act on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fluster.cluster.controller.core.capacity import Room, Slot, fits, slice_of, times, variant_matches
from fluster.cluster.controller.core.outline import Outline
from fluster.cluster.controller.core.rows import AllocationStatus, JobRow, Resources
from fluster.cluster.controller.core.state import State
from fluster.cluster.states import WorkerStatus


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a gang was not placed. `would_fit`: it could run here if nothing else did."""

    text: str
    would_fit: bool


def reason(outline: Outline, job: JobRow, count: int) -> Reason:
    """Why a gang of so many tasks was not placed on these workers; where there is one at least."""
    need = job.resources
    able = [slot for slot in outline.best if fits(need, slot.worker.resources)]
    if not able:
        return Reason(_too_large(need, outline.best), would_fit=False)
    if job.slice_hosts:
        return _slices(outline.workers, job, count)
    if count > 1:
        return _gang(outline, need, count)
    nearest = max((slot.left for slot in able), key=lambda left: _nearness(need, left))
    short = ", ".join(shortage(need, nearest, "free"))
    return Reason(short or f"{describe(need)} needed and there, but held back", would_fit=True)


def _gang(outline: Outline, need: Resources, count: int) -> Reason:
    asked = f"{count} tasks of {describe(need)} at once needed"
    in_all = outline.in_all(need)
    if in_all < count:
        return Reason(f"{asked}, room for {in_all} on all workers together", would_fit=False)
    now = sum(times(need, slot.left) for slot in outline.workers)
    return Reason(f"{asked}, room for {now} now" + (", but held back" if now >= count else ""), would_fit=True)


def _slices(workers: list[Slot], job: JobRow, count: int) -> Reason:
    wanted = slices_wanted(job, count)
    hosts = "1 host" if job.slice_hosts == 1 else f"{job.slice_hosts} hosts"
    asked = f"{_count(wanted, 'whole slice')} of {job.resources.tpu_variant} ({hosts} each) needed"
    able = (slot for slot in workers if fits(job.resources, slot.worker.resources))
    in_all = len(whole_slices(able, job.slice_hosts))
    if in_all < wanted:
        return Reason(f"{asked}, {in_all} on all workers together", would_fit=False)
    free = (slot for slot in workers if fits(job.resources, slot.left))
    now = len(whole_slices(free, job.slice_hosts))
    return Reason(f"{asked}, {now} free" + (", but held back" if now >= wanted else ""), would_fit=True)


def slices_wanted(job: JobRow, count: int) -> int:
    """Slices that so many tasks take."""
    return -(-count // job.slice_hosts)


def whole_slices(workers: Iterable[Slot], hosts: int) -> list[list[Slot]]:
    """Slices of which all hosts are among these workers."""
    by_slice: dict[str, list[Slot]] = {}
    for slot in workers:
        by_slice.setdefault(slice_of(slot.worker), []).append(slot)
    return [group for group in by_slice.values() if len(group) == hosts]


def no_worker(state: State) -> str:
    """Why no worker may be given work."""
    errors = sorted({row.error for row in state.allocations.values() if row.error})
    if errors:
        return f"no worker is ready: {errors[0]}"
    joined = {worker.allocation_id for worker in state.workers.values()}
    starting = sum(
        1
        for row in state.allocations.values()
        if row.status in (AllocationStatus.REQUESTED, AllocationStatus.READY) and row.allocation_id not in joined
    )
    if starting:
        return f"no worker is ready yet: {starting} starting"
    found = Counter("lost" if w.status is WorkerStatus.LOST else "leaving" for w in state.workers.values())
    if found:
        return f"no worker is ready: {', '.join(f'{number} {what}' for what, number in sorted(found.items()))}"
    return "no worker has joined this cluster"


def _too_large(need: Resources, workers: list[Slot]) -> str:
    """The worker that lacks least, dimension by dimension."""
    nearest = max((slot.worker.resources for slot in workers), key=lambda have: _nearness(need, have))
    return "no worker can hold one task: " + ", ".join(shortage(need, nearest, "on the largest worker"))


def _nearness(need: Resources, have: Resources | Room) -> tuple[int, int, int]:
    return -len(shortage(need, have, "")), have.cpu_milli, have.memory_bytes


def describe(need: Resources) -> str:
    """The need in words: `2 cpu, 4 GB memory`."""
    parts = [f"{shown_cpu(need.cpu_milli)} cpu"]
    if need.memory_bytes:
        parts.append(f"{shown_bytes(need.memory_bytes)} memory")
    if need.disk_bytes:
        parts.append(f"{shown_bytes(need.disk_bytes)} disk")
    if need.gpu:
        variant = "" if need.gpu_variant in ("", "auto") else f" {need.gpu_variant}"
        parts.append(f"{need.gpu}{variant} gpu")
    if need.tpu_variant:
        parts.append(f"a host of {need.tpu_variant}")
    return ", ".join(parts)


def shortage(need: Resources, have: Resources | Room, what: str) -> list[str]:
    """The dimensions in which this is too little: `2 cpu needed, 1 free`."""
    short = []
    for wanted, there, unit, shown in (
        (need.cpu_milli, have.cpu_milli, " cpu", shown_cpu),
        (need.memory_bytes, have.memory_bytes, " memory", shown_bytes),
        (need.disk_bytes, have.disk_bytes, " disk", shown_bytes),
        (need.gpu, have.gpu, " gpu", str),
    ):
        if wanted > there:
            short.append(f"{_shown(wanted, shown)}{unit} needed, {_shown(there, shown)} {what}")
    if 0 < need.gpu <= have.gpu and not variant_matches(need.gpu_variant, have.gpu_variant):
        short.append(f"gpu {need.gpu_variant} needed, {have.gpu_variant or 'none'} {what}")
    if need.tpu_variant and need.tpu_variant != have.tpu_variant:
        short.append(f"tpu {need.tpu_variant} needed, {have.tpu_variant or 'none'} {what}")
    if need.slots > have.slots:
        short.append(f"a place for one more task needed, {max(0, have.slots)} {what}")
    return short


def _shown(number: int, shown: Callable[[int], str]) -> str:
    return shown(max(0, number))


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"


def shown_cpu(milli: int) -> str:
    """Cores."""
    return f"{milli / 1000:g}"


def shown_bytes(count: int) -> str:
    """Bytes, in the largest unit that fits."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
