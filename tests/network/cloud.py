"""A cloud whose machines are hosts of a test's network: what the controller asks, and who provides them.

The two are different processes and talk through files of one directory: `NAME.asked` says what a machine is to join,
`NAME.returned` that it is given back, and `NAME.state` whether it is there.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.network.hosts import Network
from tests.network.machines import Machine

from fluster.cluster.attempt.files import write_atomically
from fluster.cluster.ids import AllocationId, VMId
from fluster.cluster.observed import VMInfo
from fluster.cluster.resources import ResourceConfig
from fluster.cluster.states import VMStatus

_LOOK_S = 0.02


class Cloud:
    """The backend, within the controller."""

    def __init__(self, directory: Path, controller_url: str, join_token: Callable[[AllocationId], str]) -> None:
        self._directory = directory
        self._controller_url = controller_url
        self._join_token = join_token

    async def allocate(self, resources: ResourceConfig, *, allocation_id: AllocationId | None = None) -> VMInfo:
        """Asks for a machine."""
        assert allocation_id is not None
        vm_id = VMId(allocation_id)
        if self._info(vm_id).status is VMStatus.GONE:
            for what in ("asked", "returned", "state"):  # of an earlier one of that name
                (self._directory / f"{vm_id}.{what}").unlink(missing_ok=True)
            told = {"controller": self._controller_url, "token": self._join_token(allocation_id), "cpu": resources.cpu}
            write_atomically(self._directory / f"{vm_id}.asked", json.dumps(told).encode())
        return self._info(vm_id)

    async def release(self, vm_id: VMId) -> None:
        """Returns when the machine is off."""
        if self._info(vm_id).status is not VMStatus.GONE:
            (self._directory / f"{vm_id}.returned").touch()
        while self._info(vm_id).status is not VMStatus.GONE:
            await asyncio.sleep(_LOOK_S)

    async def get_status(self, vm_id: VMId) -> VMInfo:
        """How the VM stands."""
        return self._info(vm_id)

    async def list_vms(self) -> list[VMInfo]:
        """All there are."""
        found = [self._info(VMId(path.stem)) for path in self._directory.glob("*.asked")]
        return [info for info in found if info.status is not VMStatus.GONE]

    async def wait_ready(self, vm_id: VMId, timeout: float = 300.0) -> None:
        """Returns when it is on."""
        async with asyncio.timeout(timeout):
            while self._info(vm_id).status is not VMStatus.READY:
                await asyncio.sleep(_LOOK_S)

    async def close(self) -> None:
        """The machines go on."""

    def _info(self, vm_id: VMId) -> VMInfo:
        try:
            status = VMStatus((self._directory / f"{vm_id}.state").read_text())
        except FileNotFoundError:
            asked = (self._directory / f"{vm_id}.asked").exists()
            status = VMStatus.STARTING if asked else VMStatus.GONE
        return VMInfo(vm_id, "", status)


class Provider:
    """Provides what is asked for, in a thread of its own, within the test.

    Attributes:
        machines: Those there are or were, in order, by the names of their hosts.
    """

    def __init__(self, directory: Path, network: Network) -> None:
        self.machines: dict[str, Machine] = {}
        self._directory = directory
        self._network = network
        self._names: dict[str, str] = {}
        self._stack = ExitStack()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="test-provider")

    def __enter__(self) -> Self:
        self._directory.mkdir()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self._stack.close()

    def take_away(self, machine: Machine) -> None:
        """It is gone, as a preempted one is."""
        machine.lose_power()
        (name,) = [name for name, host in self._names.items() if host == machine.host.name]
        self._tell(name, VMStatus.GONE)

    def _run(self) -> None:
        while not self._over.wait(_LOOK_S):
            for asked in sorted(self._directory.glob("*.asked")):
                if not asked.with_suffix(".state").exists():
                    self._start(asked.stem, json.loads(asked.read_text()))
            for returned in sorted(self._directory.glob("*.returned")):
                machine = self.machines[self._names[returned.stem]]
                if machine.off_at is None:
                    machine.lose_power()
                    self._tell(returned.stem, VMStatus.GONE)

    def _start(self, name: str, told: dict[str, str]) -> None:
        host = self._stack.enter_context(self._network.host(f"m{len(self.machines)}"))
        self._names[name] = host.name
        directory = self._directory / host.name
        words = ["--controller", told["controller"], "--cpu", str(told["cpu"]), "--allocation-id", name]
        machine = self.machines[host.name] = Machine(self._network, host, directory, words, told["token"])
        self._stack.callback(machine.end)
        machine.boot()
        self._tell(name, VMStatus.READY)

    def _tell(self, name: str, status: VMStatus) -> None:
        write_atomically(self._directory / f"{name}.state", status.value.encode())
