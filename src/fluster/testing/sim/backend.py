"""A backend whose machines cost nothing: stockouts, slow boots, reclaimed machines, and calls that fail half-way."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from fluster.cluster.controller.core.rows import Resources
from fluster.cluster.ids import AllocationId
from fluster.cluster.states import VMStatus
from fluster.errors import FlusterError, ResourceExhausted, Unreachable
from fluster.testing.sim.clock import Clock, sleep
from fluster.testing.sim.config import Faults
from fluster.testing.sim.machines import Machine
from fluster.testing.sim.story import Story

MakeMachine = Callable[[AllocationId, Resources], Machine]


@dataclass(slots=True)
class _Vm:
    machine: Machine
    status: VMStatus
    serial: int


class Backend:
    """The cloud, with all its zones. It outlives controllers, and so does what a call of theirs has set going.

    Attributes:
        faults: May be exchanged at any time.
        vms: Machines there are, by the id of their allocation.
    """

    def __init__(
        self, clock: Clock, chance: random.Random, faults: Faults, story: Story, dry_zones: tuple[str, ...] = ()
    ) -> None:
        self.faults = faults
        self.vms: dict[AllocationId, _Vm] = {}
        self._clock = clock
        self._chance = chance
        self._story = story
        self._serial = 0
        self._dry = dry_zones

    async def allocate(self, allocation_id: AllocationId, zone: str, resources: Resources, make: MakeMachine) -> None:
        """Asks for a machine, which `make` makes and which is not started yet; the same id gives the same one."""
        await self._before("allocate", allocation_id)
        if allocation_id not in self.vms:
            if zone in self._dry:
                raise ResourceExhausted(f"zone {zone} has no machines")
            if self._chance.random() < self.faults.late_machines:
                self._create_later(allocation_id, resources, make)
                raise Unreachable("the call timed out", address="cloud")
            if self._chance.random() < self.faults.stockouts:
                raise ResourceExhausted("no such machines are left in this zone")
            self.create(allocation_id, make(allocation_id, resources))
        await self._after("allocate")

    def _create_later(self, allocation_id: AllocationId, resources: Resources, make: MakeMachine) -> None:
        def late() -> None:
            if allocation_id not in self.vms:
                self.create(allocation_id, make(allocation_id, resources))

        self._clock.after(self._chance.uniform(5, 300), late)

    def create(self, allocation_id: AllocationId, machine: Machine) -> None:
        """The machine is being made."""
        self._serial += 1
        vm = self.vms[allocation_id] = _Vm(machine, VMStatus.STARTING, self._serial)
        if self._chance.random() < self.faults.never_boots:
            self._story.tell("VmCreated", worker=machine.name, text="never boots")
            return
        slow = self._chance.random() < self.faults.slow_boots
        boot_s = self._chance.uniform(60, 400) if slow else self._chance.uniform(3, 30)
        self._story.tell("VmCreated", worker=machine.name, text=f"boots in {boot_s:.0f} s")

        def booted() -> None:
            if self.vms.get(allocation_id) is vm:
                vm.status = VMStatus.READY
                machine.start()

        self._clock.after(boot_s, booted)

    async def wait_ready(self, allocation_id: AllocationId, timeout_s: float) -> None:
        """Returns when the machine is up."""
        until = self._clock.now + timeout_s
        while True:
            status = self.look(allocation_id)
            if status is VMStatus.READY:
                return
            if status is VMStatus.GONE:
                raise FlusterError(f"there is no VM {allocation_id!r}")
            if self._clock.now >= until:
                raise FlusterError(f"the VM {allocation_id!r} did not answer in {timeout_s:g} s")
            await sleep(self._clock, 1.0)

    async def get_status(self, allocation_id: AllocationId) -> VMStatus:
        """How the machine stands."""
        await sleep(self._clock, 0.02)
        return self.look(allocation_id)

    def look(self, allocation_id: AllocationId) -> VMStatus:
        """How the machine stands, at once."""
        vm = self.vms.get(allocation_id)
        return VMStatus.GONE if vm is None else vm.status

    async def list_vms(self) -> list[AllocationId]:
        """Every machine there is."""
        await sleep(self._clock, 0.1)
        return sorted(self.vms)

    async def release(self, allocation_id: AllocationId) -> None:
        """Gives the machine back; returns when nothing of it is left."""
        await self._before("release", allocation_id)
        if (vm := self.vms.get(allocation_id)) is not None:
            await sleep(self._clock, self._chance.uniform(0.5, 20))
            if self.vms.get(allocation_id) is vm:
                self.remove(allocation_id)
        await self._after("release")

    def remove(self, allocation_id: AllocationId) -> None:
        """The machine is gone, whoever wanted that."""
        vm = self.vms.pop(allocation_id)
        self._story.tell("VmGone", worker=vm.machine.name)
        vm.machine.gone = True
        vm.machine.lose_power()

    async def _before(self, what: str, allocation_id: AllocationId) -> None:
        await sleep(self._clock, self._chance.uniform(0.05, 1.0))
        if self._chance.random() < self.faults.backend_errors / 2:
            raise Unreachable(f"{what} of {allocation_id} did not get through", address="cloud")

    async def _after(self, what: str) -> None:
        await sleep(self._clock, 0.05)
        if self._chance.random() < self.faults.backend_errors / 2:
            raise Unreachable(f"the answer to {what} was lost", address="cloud")
