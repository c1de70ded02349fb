"""Carries out what the rows say about machines; what comes of it returns as events."""

from __future__ import annotations

import asyncio
import logging
from typing import assert_never

from fluster.cluster.backend.base import VMBackend
from fluster.cluster.controller.core.events import AllocationObserved
from fluster.cluster.controller.core.reconcile import Action, Allocate, Release, reconcile
from fluster.cluster.controller.core.rows import AllocationStatus, Resources
from fluster.cluster.controller.loop import Loop
from fluster.cluster.ids import AllocationId, VMId
from fluster.cluster.resources import GpuConfig, ResourceConfig
from fluster.cluster.states import VMStatus
from fluster.errors import FlusterError

_log = logging.getLogger(__name__)

_READY_TIMEOUT_S = 300.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0
_MAX_ERROR_CHARS = 4_096
_LOOK_EVERY_S = 5.0
"""How often the backend is asked whether machines that were ready still are."""


class Effects:
    """One task for each allocation that is to be asked for or given back; each step is safe to repeat."""

    def __init__(self, loop: Loop, backend: VMBackend) -> None:
        self._loop = loop
        self._backend = backend
        self._rung = asyncio.Event()
        self._tasks: dict[AllocationId, tuple[type[Action], asyncio.Task[None]]] = {}

    def act(self) -> None:
        """Looks at the rows again, soon."""
        self._rung.set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            await self._look()  # what died with the controller before this one is started again at once
            while True:
                for action in reconcile(self._loop.state):
                    self._start(action)
                try:
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await self._rung.wait()
                    self._rung.clear()
                except TimeoutError:
                    await self._look()
        finally:
            running = [task for _, task in self._tasks.values()]
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _start(self, action: Action) -> None:
        under_way = self._tasks.get(action.allocation_id)
        if under_way is not None and not under_way[1].done():
            if under_way[0] is type(action):
                return
            under_way[1].cancel()  # what was asked for is to be given back
        task = asyncio.create_task(self._until_done(action))
        self._tasks[action.allocation_id] = (type(action), task)
        task.add_done_callback(lambda done: self._forget(action.allocation_id, done))

    def _forget(self, allocation_id: AllocationId, done: asyncio.Task[None]) -> None:
        current = self._tasks.get(allocation_id)
        if current is not None and current[1] is done:
            del self._tasks[allocation_id]

    async def _until_done(self, action: Action) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            try:
                await self._carry_out(action)
                return
            except Exception as error:
                _log.warning("%s: %s", action, error, exc_info=not isinstance(error, FlusterError | TimeoutError))
                await self._report(action, str(error) or type(error).__name__)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _carry_out(self, action: Action) -> None:
        vm_id = VMId(action.allocation_id)
        match action:
            case Allocate():
                await self._backend.allocate(_asked(action.resources), allocation_id=action.allocation_id)
                await self._backend.wait_ready(vm_id, _READY_TIMEOUT_S)
                vm = await self._backend.get_status(vm_id)
                hosts = vm.hosts or (vm.address,)
                await self._loop.submit(AllocationObserved(action.allocation_id, AllocationStatus.READY, hosts))
            case Release():
                await self._backend.release(vm_id)
                await self._loop.submit(AllocationObserved(action.allocation_id, AllocationStatus.GONE))
            case _:
                assert_never(action)

    async def _report(self, action: Action, error: str) -> None:
        status = AllocationStatus.REQUESTED if isinstance(action, Allocate) else AllocationStatus.RELEASING
        await self._tell(AllocationObserved(action.allocation_id, status, error=error[:_MAX_ERROR_CHARS]))

    async def _tell(self, event: AllocationObserved) -> None:
        """What cannot be taken in now is seen again at the next look, or when the action is tried again."""
        try:
            await self._loop.submit(event)
        except FlusterError as error:
            _log.warning("what the backend says of %s was not taken in: %s", event.allocation_id, error)

    async def _look(self) -> None:
        """Notes machines that went away by themselves."""
        for row in list(self._loop.state.allocations.values()):
            if row.status is not AllocationStatus.READY:
                continue
            try:
                vm = await self._backend.get_status(VMId(row.allocation_id))
            except Exception as error:
                _log.warning("the backend does not tell of %s: %s", row.allocation_id, error)
                continue
            if vm.status is VMStatus.GONE:
                await self._tell(AllocationObserved(row.allocation_id, AllocationStatus.GONE))


def _asked(resources: Resources) -> ResourceConfig:
    if resources.gpu:
        device = GpuConfig(resources.gpu_variant or "auto", resources.gpu)
        return ResourceConfig(device=device, cpu=resources.cpu_milli / 1000, memory=resources.memory_bytes)
    return ResourceConfig(cpu=resources.cpu_milli / 1000, memory=resources.memory_bytes)
