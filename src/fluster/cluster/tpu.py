"""TPU slice shapes: how many chips, hosts and VMs each Cloud TPU accelerator type has.

Source: the "configurations" tables of Google's Cloud TPU documentation, one page for each generation
(cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from fluster.cluster.refusal import nearest, refuse, shown


@dataclass(frozen=True, slots=True)
class TpuTopologyInfo:
    """One slice shape.

    Attributes:
        name: The accelerator type, as Cloud TPU spells it: "v5litepod-16".
        chip_count: Chips of the whole slice.
        host_count: Physical machines it spreads over.
        vm_count: VMs it shows up as; one worker and one task each.
        chips_per_vm: Chips that one VM, so one task, sees.
    """

    name: str
    chip_count: int
    host_count: int
    vm_count: int
    chips_per_vm: int


def _named_by_cores(generation: str, core_counts: Iterable[int]) -> list[TpuTopologyInfo]:
    """v4 and v5p: the number in the name counts TensorCores, two a chip; a host is one VM with four chips."""
    rows = []
    for cores in core_counts:
        hosts = cores // 8
        rows.append(TpuTopologyInfo(f"{generation}-{cores}", cores // 2, hosts, hosts, 4))
    return rows


def _named_by_chips(generation: str, chip_counts: Iterable[int]) -> list[TpuTopologyInfo]:
    """v5e and v6e: the number counts chips, eight a host. Up to eight make one VM; larger slices have VMs of four."""
    rows = []
    for chips in chip_counts:
        per_vm = chips if chips <= 8 else 4
        rows.append(TpuTopologyInfo(f"{generation}-{chips}", chips, max(1, chips // 8), chips // per_vm, per_vm))
    return rows


TPU_TOPOLOGIES: tuple[TpuTopologyInfo, ...] = (
    *_named_by_cores("v4", (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)),
    *_named_by_chips("v5litepod", (1, 4, 8, 16, 32, 64, 128, 256)),
    *_named_by_cores("v5p", (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 12288)),
    *_named_by_chips("v6e", (1, 4, 8, 16, 32, 64, 128, 256)),
)
"""Every slice shape Fluster knows, by generation and size."""

_BY_NAME = {topology.name: topology for topology in TPU_TOPOLOGIES}
_SHAPE = re.compile(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4}){1,2}")


def get_tpu_topology(variant: object) -> TpuTopologyInfo:
    """The slice shape of an accelerator type.

    Raises:
        ValueError: The type is unknown; the message names the nearest.
    """
    found = _BY_NAME.get(variant) if isinstance(variant, str) else None
    if found is None:
        raise ValueError(f"unknown TPU variant {shown(variant)}{nearest(variant, _BY_NAME)}")
    return found


def check_tpu_shape(variant: object, shape: object) -> str:
    """A shape such as "4x4" that has as many chips as the accelerator type."""
    chips = get_tpu_topology(variant).chip_count
    if not isinstance(shape, str) or not _SHAPE.fullmatch(shape) or prod(map(int, shape.split("x"))) != chips:
        raise refuse("topology", f"a shape like '4x4' of the {chips} chips that {variant} has", shape)
    return shape
