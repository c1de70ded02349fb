"""The machine's GPUs: how many there are, of which variant, and which attempt has which."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from fluster.cluster.gpu import gpu_variant_of

_NVIDIA_SMI_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class GpuInventory:
    """What there is; all of one variant, empty without GPUs."""

    count: int = 0
    variant: str = ""


def find_gpus(asked: str | int = "auto") -> GpuInventory:
    """The machine's GPUs.

    Args:
        asked: A number to believe, or "auto" to ask `nvidia-smi`, which takes up to a second where there is one.
    """
    found = _ask_nvidia_smi() if asked != 0 else []
    variants = set(found)
    variant = variants.pop() if len(variants) == 1 else ""
    if asked == "auto":
        return GpuInventory(len(found), variant)
    return GpuInventory(int(asked), variant)


def _ask_nvidia_smi() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            query, stdin=subprocess.DEVNULL, capture_output=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=True, text=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [_variant(line) for line in answer.stdout.splitlines() if line.strip()]


def _variant(line: str) -> str:
    name, _, mebibytes = line.rpartition(",")
    try:
        return gpu_variant_of(name.strip(), int(mebibytes) * 2**20)
    except ValueError:  # memory "[N/A]" on integrated GPUs
        return gpu_variant_of((name or line).strip())


class Gpus:
    """Hands GPUs out by index. Callers of `take` wait while too few are free: their predecessors are being stopped."""

    def __init__(self, inventory: GpuInventory) -> None:
        self.inventory = inventory
        self._taken: dict[int, str] = {}
        self._freed = asyncio.Condition()

    async def take(self, uid: str, count: int) -> tuple[int, ...]:
        """Indices for the attempt, the lowest that are free.

        Raises:
            ValueError: The machine never has so many.
        """
        if count > self.inventory.count:
            raise ValueError(f"{count} GPUs asked for, this machine has {self.inventory.count}")
        async with self._freed:
            await self._freed.wait_for(lambda: len(self._free()) >= count)
            chosen = tuple(self._free()[:count])
            self.keep(uid, chosen)
            return chosen

    def keep(self, uid: str, indices: Iterable[int]) -> None:
        """Notes what an adopted attempt was given."""
        self._taken.update((index, uid) for index in indices)

    async def give_back(self, uid: str) -> None:
        """Frees all GPUs of an attempt."""
        async with self._freed:
            self._taken = {index: owner for index, owner in self._taken.items() if owner != uid}
            self._freed.notify_all()

    def _free(self) -> list[int]:
        return [index for index in range(self.inventory.count) if index not in self._taken]
