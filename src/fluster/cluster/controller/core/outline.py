"""All workers of a pass in outline: what can be said of a thousand of them by looking at a few.

Workers of a cluster are of few kinds. Without this, each waiting job of yet another size would look at each worker.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property

from fluster.cluster.controller.core.capacity import Room, Slot, times
from fluster.cluster.controller.core.rows import Resources


class Outline:
    """The workers of a pass.

    Attributes:
        workers: All of them.
    """

    def __init__(self, workers: list[Slot]) -> None:
        self.workers = workers

    @cached_property
    def _kinds(self) -> Counter[Resources]:
        return Counter(slot.worker.resources for slot in self.workers)

    def in_all(self, need: Resources) -> int:
        """How many tasks of this need the workers would hold together if nothing else ran."""
        return sum(number * times(need, kind) for kind, number in self._kinds.items())

    @cached_property
    def best(self) -> list[Slot]:
        """Those that no other one outdoes in all it has and in all it has left. Looked at once nothing more changes."""
        found: list[Slot] = []
        for slot in self.workers:
            if not any(_outdoes(other, slot) for other in found):
                found = [other for other in found if not _outdoes(slot, other)]
                found.append(slot)
        return found


def _outdoes(one: Slot, other: Slot) -> bool:
    return holds(one.left, other.left) and holds(one.worker.resources, other.worker.resources)


def holds(one: Resources | Room, other: Resources | Room) -> bool:
    """Whether the one is at least as much as the other, and of its kind."""
    return (
        one.cpu_milli >= other.cpu_milli
        and one.memory_bytes >= other.memory_bytes
        and one.disk_bytes >= other.disk_bytes
        and one.gpu >= other.gpu
        and one.slots >= other.slots
        and one.gpu_variant == other.gpu_variant
        and one.tpu_variant == other.tpu_variant
    )
