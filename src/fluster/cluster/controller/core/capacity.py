"""What fits where: the room of each worker during one scheduling pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fluster.cluster.controller.core.rows import Resources, WorkerRow


@dataclass(slots=True)
class Room:
    """Capacity that is counted down in place: a pass over a thousand workers takes and gives thousands of times.

    A TPU host is taken as a whole: while a task has its chips, `tpu_variant` is empty.
    """

    cpu_milli: int
    memory_bytes: int
    disk_bytes: int
    gpu: int
    slots: int
    gpu_variant: str
    tpu_variant: str

    def take(self, need: Resources) -> None:
        """A task goes here."""
        self.cpu_milli -= need.cpu_milli
        self.memory_bytes -= need.memory_bytes
        self.slots -= need.slots
        if need.disk_bytes:  # rare, as what follows
            self.disk_bytes -= need.disk_bytes
        if need.gpu:
            self.gpu -= need.gpu
        if need.tpu_variant:
            self.tpu_variant = ""

    def give(self, need: Resources) -> None:
        """A task that is here is taken to have ended."""
        self.cpu_milli += need.cpu_milli
        self.memory_bytes += need.memory_bytes
        self.disk_bytes += need.disk_bytes
        self.gpu += need.gpu
        self.slots += need.slots
        if need.tpu_variant:
            self.tpu_variant = need.tpu_variant

    def copy(self) -> Room:
        """Another one, to be counted on its own."""
        return room(self)

    def resources(self) -> Resources:
        """As a value."""
        return Resources(
            self.cpu_milli,
            self.memory_bytes,
            self.disk_bytes,
            self.gpu,
            self.slots,
            self.gpu_variant,
            self.tpu_variant,
        )


def room(have: Resources | Room) -> Room:
    """As much room as this."""
    return Room(
        have.cpu_milli,
        have.memory_bytes,
        have.disk_bytes,
        have.gpu,
        have.slots,
        have.gpu_variant,
        have.tpu_variant,
    )


@dataclass(slots=True)
class Slot:
    """One worker during one pass; its room only shrinks.

    Attributes:
        left: What running attempts and placements of this pass leave; the state's own until one is taken.
        free: That, less what is held back for a gang that waits; the same object where nothing is.
        taken: What the placements of this pass took.
    """

    worker: WorkerRow
    left: Room
    free: Room
    taken: list[Resources] = field(default_factory=list)

    def take(self, need: Resources) -> None:
        """A task goes here."""
        if not self.taken:
            self._own()
        self.taken.append(need)
        left = self.left
        left.take(need)
        if self.free is not left:
            self.free.take(need)

    def _own(self) -> None:
        held_back = self.free is not self.left
        self.left = self.left.copy()
        if not held_back:
            self.free = self.left

    def hold_back(self, need: Resources) -> None:
        """Room for one task is kept for the gang that waits."""
        if self.free is self.left:
            self.free = self.left.copy()
        self.free.take(need)


@dataclass(slots=True)
class Use:
    """What tasks that run, or are placed, reserve together."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    gpu: int = 0

    def add(self, need: Resources, count: int = 1) -> None:
        """So many tasks more."""
        self.cpu_milli += need.cpu_milli * count
        self.memory_bytes += need.memory_bytes * count
        self.gpu += need.gpu * count


def whole(have: Iterable[Resources]) -> Use:
    """What several have together."""
    use = Use()
    for each in have:
        use.add(each)
    return use


def fits(need: Resources, have: Resources | Room) -> bool:
    """Whether one task of this need fits into what is there."""
    return (
        need.cpu_milli <= have.cpu_milli
        and need.slots <= have.slots
        and need.memory_bytes <= have.memory_bytes
        and need.disk_bytes <= have.disk_bytes
        and need.gpu <= have.gpu
        and (not need.gpu or variant_matches(need.gpu_variant, have.gpu_variant))
        and (not need.tpu_variant or need.tpu_variant == have.tpu_variant)
    )


def variant_matches(wanted: str, there: str) -> bool:
    """Whether a GPU of this variant will do; "auto" takes any."""
    return wanted in ("", "auto") or wanted.lower() == there.lower()


def times(need: Resources, have: Resources | Room) -> int:
    """How many tasks of this need fit into what is there; of a TPU host at most one."""
    if not fits(need, have):
        return 0
    if need.tpu_variant:
        return 1
    count = have.slots // need.slots
    if need.cpu_milli:
        count = min(count, have.cpu_milli // need.cpu_milli)
    if need.memory_bytes:
        count = min(count, have.memory_bytes // need.memory_bytes)
    if need.disk_bytes:
        count = min(count, have.disk_bytes // need.disk_bytes)
    if need.gpu:
        count = min(count, have.gpu // need.gpu)
    return count


def slice_of(worker: WorkerRow) -> str:
    """The slice a worker's host belongs to: its allocation, or itself alone when it was started by hand."""
    return worker.allocation_id or worker.worker_id
