"""What is done about machines: asked for, given back, and swept when no row knows them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from fluster.cluster.controller.core.events import AllocationObserved, AllocationRefused
from fluster.cluster.controller.core.rows import AllocationRow, AllocationStatus, Resources
from fluster.cluster.controller.core.state import State
from fluster.cluster.controller.effects import Effects
from fluster.cluster.controller.loop import Loop
from fluster.cluster.ids import AllocationId, VMId
from fluster.cluster.observed import VMInfo
from fluster.cluster.resources import ResourceConfig
from fluster.cluster.states import VMStatus
from fluster.errors import ResourceExhausted

MACHINE = Resources(1_000, 10**9)


class Cloud:
    """Machines by name, each ready at once; or none to be had."""

    def __init__(self, *there: str, stockout: bool = False) -> None:
        self.there = {VMId(name): VMStatus.READY for name in there}
        self._stockout = stockout

    async def allocate(self, resources: ResourceConfig, *, allocation_id: AllocationId | None = None) -> VMInfo:
        if self._stockout:
            raise ResourceExhausted("no machines in this zone")
        vm_id = VMId(allocation_id or "")
        self.there[vm_id] = VMStatus.READY
        return await self.get_status(vm_id)

    async def release(self, vm_id: VMId) -> None:
        self.there.pop(vm_id, None)

    async def get_status(self, vm_id: VMId) -> VMInfo:
        return VMInfo(vm_id, "host:1", self.there.get(vm_id, VMStatus.GONE))

    async def list_vms(self) -> list[VMInfo]:
        return [await self.get_status(vm_id) for vm_id in self.there]

    async def wait_ready(self, vm_id: VMId, timeout: float = 300.0) -> None:
        assert vm_id in self.there

    async def close(self) -> None:
        pass


class Told:
    """Takes the place of the loop: rows that stand still, and what is submitted."""

    def __init__(self, *rows: AllocationRow) -> None:
        self.state = State(allocations={row.allocation_id: row for row in rows})
        self.events: list[object] = []

    async def submit(self, event: object) -> str:
        self.events.append(event)
        return ""


def row(name: str, status: AllocationStatus = AllocationStatus.READY, backend: str = "near") -> AllocationRow:
    return AllocationRow(AllocationId(name), backend, MACHINE, 0.0, status)


def act(told: Told, backends: dict[str, Cloud], until: Callable[[], bool]) -> None:
    async def run() -> None:
        effects = asyncio.create_task(Effects(cast(Loop, told), backends).run())
        try:
            async with asyncio.timeout(10):
                while not until():
                    await asyncio.sleep(0.01)
        finally:
            effects.cancel()
            await asyncio.gather(effects, return_exceptions=True)

    asyncio.run(run())


def test_machines_that_no_row_knows_are_given_back_and_no_others() -> None:
    near, far = Cloud("known", "stray"), Cloud("far-stray")
    act(Told(row("known")), {"near": near, "far": far}, lambda: len(near.there) == 1 and not far.there)
    assert set(near.there) == {"known"}


def test_a_machine_is_asked_of_the_backend_that_its_row_names() -> None:
    near, far = Cloud(), Cloud()
    told = Told(row("a", AllocationStatus.REQUESTED, "far"))
    act(told, {"near": near, "far": far}, lambda: bool(told.events))
    assert (set(near.there), set(far.there)) == (set(), {"a"})
    assert told.events[0] == AllocationObserved(AllocationId("a"), AllocationStatus.READY, ("host:1",))


def test_a_stockout_is_told_apart_from_other_faults() -> None:
    told = Told(row("a", AllocationStatus.REQUESTED))
    act(told, {"near": Cloud(stockout=True)}, lambda: bool(told.events))
    assert told.events[0] == AllocationRefused(AllocationId("a"), "no machines in this zone")


def test_machines_of_a_backend_that_is_not_there_any_more_are_named() -> None:
    told = Told(row("a", AllocationStatus.RELEASING, "gone"))
    act(told, {"near": Cloud()}, lambda: bool(told.events))
    (event,) = told.events[:1]
    assert isinstance(event, AllocationObserved)
    assert "without the backend 'gone'" in event.error
