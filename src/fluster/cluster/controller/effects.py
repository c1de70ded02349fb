"""Carries out what the rows say about machines; what comes of it returns as events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import assert_never

from fluster.cluster.backend.base import VMBackend
from fluster.cluster.controller.core.events import AllocationObserved, AllocationRefused
from fluster.cluster.controller.core.reconcile import Action, Allocate, Release, reconcile
from fluster.cluster.controller.core.rows import AllocationStatus, Resources
from fluster.cluster.controller.loop import Loop
from fluster.cluster.ids import AllocationId, VMId
from fluster.cluster.resources import GpuConfig, ResourceConfig
from fluster.cluster.states import VMStatus
from fluster.errors import FlusterError, ResourceExhausted

_log = logging.getLogger(__name__)

_READY_TIMEOUT_S = 300.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0
_MAX_ERROR_CHARS = 4_096
_LOOK_EVERY_S = 5.0
"""How often backends are asked whether machines that were ready still are."""
_SWEEP_EVERY_S = 60.0
"""How often backends are asked for all their machines of this cluster, to give back what no row knows."""


class Effects:
    """One task for each allocation that is to be asked for or given back; each step is safe to repeat.

    Args:
        loop: Whose rows are carried out.
        backends: By the names that rows give them.
    """

    def __init__(self, loop: Loop, backends: Mapping[str, VMBackend]) -> None:
        self._loop = loop
        self._backends = backends
        self._rung = asyncio.Event()
        self._tasks: dict[AllocationId, tuple[type[Action], asyncio.Task[None]]] = {}
        self._strays: dict[AllocationId, asyncio.Task[None]] = {}
        self._sweep_at = 0.0

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
            running = [*(task for _, task in self._tasks.values()), *self._strays.values()]
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _start(self, action: Action) -> None:
        if action.allocation_id in self._strays:
            return  # its name is still being freed; looked at again soon
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
                await self._report(action, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _carry_out(self, action: Action) -> None:
        vm_id, backend = VMId(action.allocation_id), self._backend(action.backend)
        match action:
            case Allocate():
                await backend.allocate(_asked(action.resources), allocation_id=action.allocation_id)
                await backend.wait_ready(vm_id, _READY_TIMEOUT_S)
                vm = await backend.get_status(vm_id)
                hosts = vm.hosts or (vm.address,)
                await self._loop.submit(AllocationObserved(action.allocation_id, AllocationStatus.READY, hosts))
            case Release():
                await backend.release(vm_id)
                await self._loop.submit(AllocationObserved(action.allocation_id, AllocationStatus.GONE))
            case _:
                assert_never(action)

    def _backend(self, name: str) -> VMBackend:
        try:
            return self._backends[name]
        except KeyError:
            raise FlusterError(
                f"this controller was started without the backend {name!r}, whose machines it still has; "
                "start it with that backend again to give them back"
            ) from None

    async def _report(self, action: Action, error: Exception) -> None:
        text = (str(error) or type(error).__name__)[:_MAX_ERROR_CHARS]
        if isinstance(action, Release):
            await self._tell(AllocationObserved(action.allocation_id, AllocationStatus.RELEASING, error=text))
        elif isinstance(error, ResourceExhausted):
            await self._tell(AllocationRefused(action.allocation_id, text))
        else:
            await self._tell(AllocationObserved(action.allocation_id, AllocationStatus.REQUESTED, error=text))

    async def _tell(self, event: AllocationObserved | AllocationRefused) -> None:
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
                vm = await self._backend(row.backend).get_status(VMId(row.allocation_id))
            except Exception as error:
                _log.warning("the backend does not tell of %s: %s", row.allocation_id, error)
                continue
            if vm.status is VMStatus.GONE:
                await self._tell(AllocationObserved(row.allocation_id, AllocationStatus.GONE))
        if asyncio.get_running_loop().time() >= self._sweep_at:
            self._sweep_at = asyncio.get_running_loop().time() + _SWEEP_EVERY_S
            for backend in {id(each): each for each in self._backends.values()}.values():
                await self._sweep(backend)

    async def _sweep(self, backend: VMBackend) -> None:
        """Gives back machines that no row knows: an intent is committed before there is a machine."""
        try:
            there = await backend.list_vms()
        except Exception as error:
            _log.warning("a backend does not tell of its machines: %s", error)
            return
        for vm in there:
            allocation_id = AllocationId(vm.vm_id)
            if allocation_id not in self._loop.state.allocations and allocation_id not in self._strays:
                _log.warning("machine %s belongs to no allocation; it is given back", vm.vm_id)
                self._strays[allocation_id] = asyncio.create_task(self._give_back(backend, allocation_id))

    async def _give_back(self, backend: VMBackend, stray: AllocationId) -> None:
        try:
            await backend.release(VMId(stray))
        except Exception as error:  # it is found again by the next sweep
            _log.warning("machine %s, which belongs to no allocation, was not given back: %s", stray, error)
        finally:
            self._strays.pop(stray, None)
            self._rung.set()


def _asked(resources: Resources) -> ResourceConfig:
    if resources.gpu:
        device = GpuConfig(resources.gpu_variant or "auto", resources.gpu)
        return ResourceConfig(device=device, cpu=resources.cpu_milli / 1000, memory=resources.memory_bytes)
    return ResourceConfig(cpu=resources.cpu_milli / 1000, memory=resources.memory_bytes)
