"""GPU variants: the names a job can ask for.

Source: NVIDIA's list of CUDA GPUs by compute capability (developer.nvidia.com/cuda-gpus): the data center table from
Volta on, the workstation and GeForce models that machines are commonly built with. The spelling is the model's, without
brand, blanks and form factor; memory is named where one model is sold with several sizes.
"""

from __future__ import annotations

from collections.abc import Iterable

from fluster.cluster.refusal import nearest, shown

GPU_VARIANTS: tuple[str, ...] = (
    *("V100", "V100-16GB", "V100-32GB", "T4"),
    *("A2", "A10", "A10G", "A16", "A30", "A40", "A100", "A100-40GB", "A100-80GB"),
    *("L4", "L40", "L40S", "H20", "H100", "H200", "GH200", "B100", "B200", "B300", "GB200", "GB300", "GB10"),
    *("A2000", "A4000", "A4500", "A5000", "A5500", "A6000"),
    *("RTX2000Ada", "RTX4000Ada", "RTX4500Ada", "RTX5000Ada", "RTX6000Ada", "RTXPRO6000"),
    *("RTX2080", "RTX2080Ti", "RTX3060", "RTX3070", "RTX3080", "RTX3090"),
    *("RTX4060", "RTX4070", "RTX4080", "RTX4090", "RTX5070", "RTX5080", "RTX5090"),
)
ANY_GPU = "auto"

_BY_LOWER = {name.lower(): name for name in (ANY_GPU, *GPU_VARIANTS)}


def check_gpu_variant(variant: object) -> str:
    """The listed spelling of a known model, or "auto"; case does not matter.

    Raises:
        ValueError: The model is unknown; the message names the nearest.
    """
    found = _BY_LOWER.get(variant.lower()) if isinstance(variant, str) else None
    if found is None:
        raise ValueError(f"unknown GPU variant {shown(variant)}{nearest(variant, _BY_LOWER.values())}")
    return found


def gpu_satisfies(asked: str, offered: str) -> bool:
    """Whether a GPU of variant ``offered`` is what was ``asked`` for; "A100" takes any of its memory sizes."""
    asked, offered = asked.lower(), offered.lower()
    return asked == ANY_GPU or offered == asked or offered.startswith(f"{asked}-")


def gpu_variant_of(product_name: str, memory_bytes: int | None = None) -> str:
    """The variant of a product as `nvidia-smi` names it ("NVIDIA A100-SXM4-80GB"); the name itself when unknown.

    Args:
        product_name: What the driver calls it.
        memory_bytes: Its memory, for models whose name is sold with several sizes and does not say which.
    """
    words = product_name.replace("-", " ").split()
    model = _longest_model(words)
    if model is None:
        return product_name
    sized = [name.removeprefix(f"{model}-") for name in GPU_VARIANTS if name.startswith(f"{model}-")]
    sizes = [int(size.removesuffix("GB")) for size in sized]
    stated = [size for size in sizes if f"{size}GB" in words]
    if not stated and memory_bytes is not None:
        # Drivers report a little less than the nominal size; none of the sizes are nearer than a factor of two.
        stated = [size for size in sizes if 0.9 * size * 10**9 <= memory_bytes <= 1.1 * size * 2**30]
    return f"{model}-{stated[0]}GB" if stated else model


def _longest_model(words: Iterable[str]) -> str | None:
    """The longest known model spelled by neighbouring words: "RTX 4090" before nothing, "L40S" never as "L40"."""
    listed = [word for word in words if word.lower() not in ("nvidia", "tesla", "geforce", "quadro", "generation")]
    runs = ["".join(listed[i:j]).lower() for i in range(len(listed)) for j in range(i + 1, len(listed) + 1)]
    known = [_BY_LOWER[run] for run in runs if run in _BY_LOWER and run != ANY_GPU]
    return max(known, key=len) if known else None
