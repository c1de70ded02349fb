"""Carries out what the rows say about machines, as `controller.effects` does: each task dies with its controller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluster.cluster.controller.core.events import AllocationObserved, AllocationRefused
from fluster.cluster.controller.core.reconcile import Action, Allocate, Release, reconcile
from fluster.cluster.controller.core.rows import AllocationStatus
from fluster.cluster.controller.turns import Answer
from fluster.cluster.ids import AllocationId
from fluster.cluster.states import VMStatus
from fluster.errors import FlusterError, ResourceExhausted
from fluster.testing.sim.clock import Outcome, Task, sleep

if TYPE_CHECKING:
    from fluster.testing.sim.controller import Controller
    from fluster.testing.sim.simulation import Simulation

_READY_TIMEOUT_S = 300.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0
_LOOK_EVERY_S = 5.0
_SWEEP_EVERY_S = 60.0


class Effects:
    """Of one controller."""

    def __init__(self, sim: Simulation, controller: Controller) -> None:
        self._sim = sim
        self._controller = controller
        self._tasks: dict[AllocationId, tuple[type[Action], Task]] = {}
        self._strays: dict[AllocationId, Task] = {}
        self._rung = False
        self._sweep_at = 0.0
        self._looking = Task(self._keep_looking())

    def ring(self) -> None:
        """Looks at the rows again, soon."""
        if not self._rung:
            self._rung = True
            self._controller.later(0.001, self._act)

    def end(self) -> None:
        """The controller is gone. What a call has reached in the backend goes on there."""
        self._looking.cancel()
        for _, task in self._tasks.values():
            task.cancel()
        for task in list(self._strays.values()):  # a task that ends takes itself out
            task.cancel()

    def _act(self) -> None:
        self._rung = False
        for action in reconcile(self._controller.state):
            if action.allocation_id in self._strays:
                continue
            under_way = self._tasks.get(action.allocation_id)
            if under_way is not None and not under_way[1].done:
                if under_way[0] is type(action):
                    continue
                under_way[1].cancel()
            self._tasks[action.allocation_id] = type(action), Task(self._until_done(action))

    async def _until_done(self, action: Action) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            try:
                await self._carry_out(action)
            except FlusterError as error:
                await self._report(action, error)
            else:
                return
            await sleep(self._sim.clock, pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _report(self, action: Action, error: FlusterError) -> None:
        if isinstance(action, Release):
            await self._tell(AllocationObserved(action.allocation_id, AllocationStatus.RELEASING, error=str(error)))
        elif isinstance(error, ResourceExhausted):
            await self._tell(AllocationRefused(action.allocation_id, str(error)))
        else:
            await self._tell(AllocationObserved(action.allocation_id, AllocationStatus.REQUESTED, error=str(error)))

    async def _carry_out(self, action: Action) -> None:
        backend, allocation_id = self._sim.backend, action.allocation_id
        match action:
            case Allocate():
                await backend.allocate(allocation_id, action.backend, action.resources, self._sim.new_machine)
                await backend.wait_ready(allocation_id, _READY_TIMEOUT_S)
                await backend.get_status(allocation_id)
                await self._submit(AllocationObserved(allocation_id, AllocationStatus.READY, (allocation_id,)))
            case Release():
                await backend.release(allocation_id)
                await self._submit(AllocationObserved(allocation_id, AllocationStatus.GONE))

    async def _submit(self, event: AllocationObserved | AllocationRefused) -> None:
        outcome: Outcome[str] = Outcome()

        def reply(answer: Answer) -> None:
            if isinstance(answer, str):
                outcome.give(answer)
            else:
                outcome.fail(answer)

        # Whoever asks while the controller stands still waits until it goes on.
        self._controller.later(0.0, lambda: self._controller.submit(event, reply))
        await outcome

    async def _tell(self, event: AllocationObserved | AllocationRefused) -> None:
        try:
            await self._submit(event)
        except FlusterError:
            pass

    async def _keep_looking(self) -> None:
        """Notes machines that went away by themselves."""
        while True:
            for row in list(self._controller.state.allocations.values()):
                if row.status is AllocationStatus.READY:
                    status = self._sim.backend.look(row.allocation_id)
                    if status is VMStatus.GONE:
                        await self._tell(AllocationObserved(row.allocation_id, AllocationStatus.GONE))
            if self._sim.clock.now >= self._sweep_at:
                self._sweep_at = self._sim.clock.now + _SWEEP_EVERY_S
                await self._sweep()
            self.ring()
            await sleep(self._sim.clock, _LOOK_EVERY_S)

    async def _sweep(self) -> None:
        """Gives back machines that no row knows."""
        for vm in await self._sim.backend.list_vms():
            if vm not in self._controller.state.allocations and vm not in self._strays:
                self._strays[vm] = Task(self._give_back(vm))

    async def _give_back(self, stray: AllocationId) -> None:
        try:
            await self._sim.backend.release(stray)
        except FlusterError:
            pass
        finally:
            self._strays.pop(stray, None)
