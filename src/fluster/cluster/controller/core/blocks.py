"""The workers of a pass in blocks, and blocks of those: where there may be room, without looking at each worker.

Of each block the rooms are known that no other of it outdoes, a few where there are a thousand: what fits into none of
them fits nowhere in the block. Room only shrinks, so what was true of them stays on the safe side; they are looked up
anew once they sent a search into their block in vain.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from fluster.cluster.controller.core.capacity import Room, Slot, fits
from fluster.cluster.controller.core.outline import holds
from fluster.cluster.controller.core.rows import Resources

# Ten thousand rows bring as many equal `Resources`; hashing those themselves costs four times as much as this.
shape = attrgetter("cpu_milli", "memory_bytes", "disk_bytes", "gpu", "slots", "gpu_variant", "tpu_variant")
"""Equal for equal rooms and needs."""

_Best = list[Resources] | None
"""Rooms that no other of the same block outdoes, as they once were; `None`: not looked at yet."""


class Blocks:
    """Room on workers, in their order."""

    def __init__(self, slots: list[Slot]) -> None:
        self._slots = slots
        # Of three levels, each looks at about as many: of a thousand workers at ten, ten and ten.
        self._each = max(4, round(len(slots) ** (1 / 3)))
        self._blocks: list[_Best] = [None] * -(-len(slots) // self._each)
        self._regions: list[_Best] = [None] * -(-len(self._blocks) // self._each)
        self._whole: _Best = None

    def may_hold(self, need: Resources) -> bool:
        """Whether some worker may have room for it."""
        return _may_hold(self._whole, need)

    def first(self, need: Resources, start: int) -> int:
        """The first worker from this one on that has room for the need; how many there are, if none has."""
        each = self._each
        for region in range(start // each**2, len(self._regions)):
            if _may_hold(self._regions[region], need):
                found = self._in_region(need, region, start)
                if found is not None:
                    return found
                self._regions[region] = _best_of(self._blocks[region * each : (region + 1) * each])
        if _may_hold(self._whole, need):
            self._whole = _best_of(self._regions)
        return len(self._slots)

    def _in_region(self, need: Resources, region: int, start: int) -> int | None:
        each = self._each
        first = max(start // each, region * each)
        for block in range(first, min((region + 1) * each, len(self._blocks))):
            if _may_hold(self._blocks[block], need):
                found = self._in_block(need, block, start)
                if found is not None:
                    return found
                self._blocks[block] = _best(slot.free for slot in self._slots[block * each : (block + 1) * each])
        return None

    def _in_block(self, need: Resources, block: int, start: int) -> int | None:
        slots, each, cpu, memory = self._slots, self._each, need.cpu_milli, need.memory_bytes
        for index in range(max(start, block * each), min((block + 1) * each, len(slots))):
            free = slots[index].free
            if cpu <= free.cpu_milli and memory <= free.memory_bytes and fits(need, free):
                return index
        return None


def _may_hold(best: _Best, need: Resources) -> bool:
    if best is None:
        return True
    cpu, memory = need.cpu_milli, need.memory_bytes
    for each in best:  # noqa: SIM110  `any` takes three times as long
        if cpu <= each.cpu_milli and memory <= each.memory_bytes and fits(need, each):
            return True
    return False


def _best_of(parts: list[_Best]) -> _Best:
    """Of several together; `None` while one of them was not looked at."""
    return None if None in parts else _best(each for best in parts for each in best or ())


def _best(rooms: Iterable[Resources | Room]) -> list[Resources]:
    """Those that no other one outdoes."""
    found: list[Resources] = []
    for values in {shape(room) for room in rooms}:
        room = Resources(*values)
        if not any(holds(other, room) for other in found):
            found = [other for other in found if not holds(room, other)]
            found.append(room)
    return found
