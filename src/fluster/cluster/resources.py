"""What one task needs: devices, cores, memory, disk, and where it may run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

from fluster.cluster.gpu import check_gpu_variant
from fluster.cluster.tpu import TpuTopologyInfo, check_tpu_shape, get_tpu_topology
from fluster.cluster.validation import (
    check_cpu,
    check_device_count,
    check_num_tasks,
    check_places,
    check_replicas,
    parse_bytes,
    refuse,
)


@dataclass(frozen=True, slots=True)
class CpuConfig:
    """No accelerator."""

    def chip_count(self) -> int:
        """Accelerator chips of one task."""
        return 0

    def vm_count(self) -> int:
        """Tasks that one replica means."""
        return 1


@dataclass(frozen=True, slots=True)
class GpuConfig:
    """GPUs of one task.

    Attributes:
        variant: A model of `GPU_VARIANTS` in any case, or "auto" for whatever there is.
        count: GPUs each task gets.
    """

    variant: str = "auto"
    count: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "variant", check_gpu_variant(self.variant))
        object.__setattr__(self, "count", check_device_count(self.count, "the GPU count"))

    def chip_count(self) -> int:
        """GPUs of one task."""
        return self.count

    def vm_count(self) -> int:
        """Tasks that one replica means."""
        return 1


@dataclass(frozen=True, slots=True)
class TpuConfig:
    """One TPU slice.

    Attributes:
        variant: The accelerator type: "v5litepod-16".
        topology: A shape with as many chips ("4x4"); `None` for the provider's usual one.
    """

    variant: str
    topology: str | None = None

    def __post_init__(self) -> None:
        get_tpu_topology(self.variant)
        if self.topology is not None:
            check_tpu_shape(self.variant, self.topology)

    def info(self) -> TpuTopologyInfo:
        """The slice's shape."""
        return get_tpu_topology(self.variant)

    def chip_count(self) -> int:
        """Chips of the whole slice."""
        return self.info().chip_count

    def vm_count(self) -> int:
        """VMs of the slice: the tasks that one replica means."""
        return self.info().vm_count


DeviceConfig = CpuConfig | GpuConfig | TpuConfig


class PlacementOptions(TypedDict, total=False):
    """What every factory of `ResourceConfig` passes on besides the sizes."""

    disk: str | int | None
    regions: Sequence[str] | None
    zones: Sequence[str] | None
    preemptible: bool | None


class ReplicaOptions(PlacementOptions, total=False):
    """`PlacementOptions` and the number of tasks."""

    replicas: int


class SliceOptions(PlacementOptions, total=False):
    """`PlacementOptions` and the sizes of one task of a slice."""

    cpu: float
    memory: str | int


@dataclass(frozen=True, slots=True)
class ResourceConfig:
    """What one task needs, and how many tasks there are.

    Attributes:
        device: Accelerators, or `CpuConfig()` for none.
        cpu: Cores of one task; a fraction is a share of one.
        memory: Bytes of one task, or a size like "512MB", "1.5GiB", "8g"; kept as given, see `memory_bytes`.
        disk: Likewise, of its work directory; `None` for no demand.
        replicas: Tasks; with a TPU device, slices.
        regions: Where it may run; `None` for anywhere.
        zones: Likewise.
        preemptible: Whether it must (`True`) or must not (`False`) run on machines that can be taken away;
            `None` when either will do.

    Raises:
        ValueError: A value breaks its rule; the message names both.
    """

    device: DeviceConfig = CpuConfig()
    cpu: float = 1
    memory: str | int = "2GB"
    disk: str | int | None = None
    replicas: int = 1
    regions: Sequence[str] | None = None
    zones: Sequence[str] | None = None
    preemptible: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.device, DeviceConfig):
            raise refuse("device", "a CpuConfig, GpuConfig or TpuConfig", self.device)
        check_cpu(self.cpu)
        parse_bytes(self.memory, "memory")
        if self.disk is not None:
            parse_bytes(self.disk, "disk")
        object.__setattr__(self, "replicas", check_replicas(self.replicas))
        for what in ("regions", "zones"):
            places = getattr(self, what)
            object.__setattr__(self, what, None if places is None else check_places(places, what))
        if self.preemptible not in (None, True, False):
            raise refuse("preemptible", "True, False or None", self.preemptible)
        check_num_tasks(self.num_tasks)

    @classmethod
    def with_cpu(cls, cpu: float = 1, memory: str | int = "2GB", **kw: Unpack[ReplicaOptions]) -> ResourceConfig:
        """Cores and memory alone."""
        return cls(cpu=cpu, memory=memory, **kw)

    @classmethod
    def with_gpu(
        cls,
        gpu_type: str = "auto",
        count: int = 1,
        cpu: float = 4,
        memory: str | int = "16GB",
        **kw: Unpack[ReplicaOptions],
    ) -> ResourceConfig:
        """``count`` GPUs for each task."""
        return cls(device=GpuConfig(gpu_type, count), cpu=cpu, memory=memory, **kw)

    @classmethod
    def with_tpu(cls, tpu_type: str, slice_count: int = 1, **kw: Unpack[SliceOptions]) -> ResourceConfig:
        """One task for each VM of ``slice_count`` slices, all one gang."""
        return cls(device=TpuConfig(tpu_type), replicas=slice_count, **kw)

    @property
    def memory_bytes(self) -> int:
        """Memory of one task."""
        return parse_bytes(self.memory, "memory")

    @property
    def disk_bytes(self) -> int | None:
        """Disk of one task; `None` for no demand."""
        return None if self.disk is None else parse_bytes(self.disk, "disk")

    @property
    def num_tasks(self) -> int:
        """Tasks of the job: replicas, times the VMs of a slice."""
        return self.replicas * self.device.vm_count()


@dataclass(frozen=True, slots=True)
class WorkerResources:
    """What a worker has, or has left.

    Attributes:
        cpu: Cores.
        memory_bytes: Memory.
        disk_bytes: Disk under its state directory.
        gpu_count: GPUs.
        gpu_variant: Their model; empty without one.
        tpu_variant: The slice its machine belongs to; empty without one.
        max_jobs: Attempts it runs at once.
        cgroup: What enforces limits there: "v2", "v1" or "none".
    """

    cpu: float = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    gpu_count: int = 0
    gpu_variant: str = ""
    tpu_variant: str = ""
    max_jobs: int = 0
    cgroup: str = "none"
