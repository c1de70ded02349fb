"""What the controller needs of whoever provides machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from fluster.cluster.ids import AllocationId, VMId
from fluster.cluster.observed import VMInfo
from fluster.cluster.resources import ResourceConfig


class VMBackend(Protocol):
    """Allocates machines, each with a worker on it, and gives them back. Every method may be repeated.

    A VM is one allocation: one machine, or the hosts of one slice. Its id is its allocation's.
    """

    async def allocate(self, resources: ResourceConfig, *, allocation_id: AllocationId | None = None) -> VMInfo:
        """Asks for a machine; returns before it is ready.

        Args:
            resources: What it is to have.
            allocation_id: The same id gives the same VM; `None`: any one that fits.

        Raises:
            ResourceExhausted: There is none to be had now.
        """
        ...

    async def release(self, vm_id: VMId) -> None:
        """Gives the machine back; returns when nothing of it is left. One that is unknown is given back already."""
        ...

    async def get_status(self, vm_id: VMId) -> VMInfo:
        """How the VM stands; one that is unknown is gone."""
        ...

    async def list_vms(self) -> list[VMInfo]:
        """Every VM of this cluster that is not gone, those that no caller remembers included."""
        ...

    async def wait_ready(self, vm_id: VMId, timeout: float = 300.0) -> None:
        """Returns when the VM's worker answers.

        Raises:
            TimeoutError: It did not within `timeout` seconds; the message says what is known.
            FlusterError: It is gone.
        """
        ...

    async def close(self) -> None:
        """Lets go of what belongs to this process; the machines go on."""
        ...


@runtime_checkable
class JoinsController(Protocol):
    """A backend that can be told which controller its workers join."""

    def join(self, controller_url: str, join_token: Callable[[AllocationId], str]) -> None:
        """Workers started from now on join that controller, unless another one was given before.

        Args:
            controller_url: Where it is reached.
            join_token: Makes the token that the worker of an allocation joins with.
        """
        ...
