import pytest

from fluster.cluster.gpu import GPU_VARIANTS, gpu_satisfies, gpu_variant_of
from fluster.cluster.types import (
    TPU_TOPOLOGIES,
    CpuConfig,
    GpuConfig,
    ResourceConfig,
    TpuConfig,
    get_tpu_topology,
)
from fluster.cluster.validation import MAX_TASKS

BAD_NUMBERS = [-1, 0, 2**63 - 1, 10**400, float("nan"), float("inf"), float("-inf"), True, "3", None]


def test_resources_have_the_documented_defaults() -> None:
    made = ResourceConfig()
    assert (made.device, made.cpu, made.memory, made.disk, made.replicas) == (CpuConfig(), 1, "2GB", None, 1)
    assert (made.regions, made.zones, made.preemptible) == (None, None, None)


def test_factories_have_the_documented_defaults() -> None:
    assert ResourceConfig.with_cpu() == ResourceConfig(cpu=1, memory="2GB")
    assert ResourceConfig.with_gpu() == ResourceConfig(GpuConfig("auto", 1), cpu=4, memory="16GB")
    assert ResourceConfig.with_tpu("v4-8") == ResourceConfig(TpuConfig("v4-8"), replicas=1)


def test_factories_pass_on_what_else_is_given() -> None:
    made = ResourceConfig.with_cpu(2, "1g", disk="5GB", replicas=3, regions=["r"], zones=["z"], preemptible=True)
    assert (made.disk_bytes, made.num_tasks, made.regions, made.zones) == (5_000_000_000, 3, ("r",), ("z",))


# Memory and disk.


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        *((1, 1), (1024, 1024), ("1", 1), ("512B", 512), ("2147483648", 2**31)),
        *(("1KB", 10**3), ("512MB", 512 * 10**6), ("2GB", 2 * 10**9), ("3TB", 3 * 10**12)),
        *(("1KiB", 2**10), ("512MiB", 2**29), ("1.5GiB", 3 * 2**29), ("2TiB", 2**41)),
        *(("1k", 2**10), ("1m", 2**20), ("8g", 2**33), ("1t", 2**40), ("8G", 2**33)),
        *(("2gb", 2 * 10**9), ("2Gb", 2 * 10**9), ("1gIb", 2**30), (" 2 GB ", 2 * 10**9)),
        *(("4.35GB", 4_350_000_000), ("0.1KB", 100), ("1.0000000001TB", 10**12 + 100)),
    ],
)
def test_a_size_means_that_many_bytes_and_is_kept_as_given(given: str | int, meant: int) -> None:
    made = ResourceConfig(memory=given, disk=given)
    assert (made.memory_bytes, made.disk_bytes) == (meant, meant)
    assert (made.memory, made.disk) == (given, given)


@pytest.mark.parametrize(
    "given",
    [
        *(
            "",
            "GB",
            "-1GB",
            "0",
            "0GB",
            "0.0000001KB",
            "1e9",
            "nan",
            "inf",
            "2GB2",
            "2 G B",
            "1,5GB",
            "1.GB",
            ".5GB",
            "2PB",
        ),
        *("2Gi", "٣GB", "9" * 60, "9" * 6000, "9999999999TB", "2GB\0", 1.5, 2e9, b"2GB"),
        *(value for value in BAD_NUMBERS if value != "3"),
    ],
    ids=lambda value: ascii(value)[:20] if not isinstance(value, int) else f"{float(min(value, 2**70)):g}",
)
def test_any_other_size_is_refused_with_examples(given: object) -> None:
    with pytest.raises(ValueError, match=r"memory must be bytes or a size like '512MB', '1\.5GiB' or '8g'"):
        ResourceConfig(memory=given)  # type: ignore[arg-type]
    if given is not None:
        with pytest.raises(ValueError, match="disk must be bytes"):
            ResourceConfig(disk=given)  # type: ignore[arg-type]


# Numbers.


@pytest.mark.parametrize("given", BAD_NUMBERS, ids=lambda value: ascii(value)[:20] if value != 10**400 else "huge")
def test_cpu_is_a_positive_finite_number_of_cores(given: object) -> None:
    with pytest.raises(ValueError, match=r"cpu must be a number of cores from 0\.001"):
        ResourceConfig(cpu=given)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [0.001, 0.5, 2, 1_000_000])
def test_cpu_may_be_a_fraction_or_far_more_than_any_machine_has(given: float) -> None:
    assert ResourceConfig(cpu=given).cpu == given


@pytest.mark.parametrize("given", [-1, 0, MAX_TASKS + 1, 2**63 - 1, 1.0, True, "3", None])
def test_replicas_are_a_whole_number_up_to_the_bound(given: object) -> None:
    with pytest.raises(ValueError, match="replicas must be a whole number from 1 to 10000"):
        ResourceConfig(replicas=given)  # type: ignore[arg-type]


def test_slices_with_too_many_tasks_in_all_are_refused() -> None:
    assert ResourceConfig.with_tpu("v5p-12288", 6).num_tasks == 9216
    with pytest.raises(ValueError, match="the number of tasks must be a whole number from 1 to 10000, got 10752"):
        ResourceConfig.with_tpu("v5p-12288", 7)


@pytest.mark.parametrize("given", ["us-central1", ["", "a"], ["a b"], ["-a"], ["x" * 64], [3], 3, ["r"] * 101])
@pytest.mark.parametrize("what", ["regions", "zones"])
def test_places_are_a_sequence_of_names(what: str, given: object) -> None:
    with pytest.raises(ValueError, match=what):
        ResourceConfig(**{what: given})  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["yes", 2, ()])
def test_preemptible_is_true_false_or_none(given: object) -> None:
    with pytest.raises(ValueError, match="preemptible must be True, False or None"):
        ResourceConfig(preemptible=given)  # type: ignore[arg-type]


def test_a_device_is_one_of_the_three() -> None:
    with pytest.raises(ValueError, match="device must be a CpuConfig, GpuConfig or TpuConfig"):
        ResourceConfig(device="v4-8")  # type: ignore[arg-type]


# Devices.


def test_devices_count_chips_and_vms() -> None:
    assert (CpuConfig().chip_count(), CpuConfig().vm_count()) == (0, 1)
    assert (GpuConfig("H100", 8).chip_count(), GpuConfig("H100", 8).vm_count()) == (8, 1)
    assert (TpuConfig("v5litepod-16").chip_count(), TpuConfig("v5litepod-16").vm_count()) == (16, 4)


@pytest.mark.parametrize("given", [-1, 0, 2**63 - 1, 1.5, True, None])
def test_a_gpu_count_is_a_positive_whole_number(given: object) -> None:
    with pytest.raises(ValueError, match="the GPU count must be a whole number from 1"):
        GpuConfig("auto", given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("given", "nearest"), [("H1000", "H100"), ("a100-80", "A100-80GB"), ("RTX4091", "RTX4090")])
def test_an_unknown_gpu_is_refused_with_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown GPU variant '{given}'; the nearest are .*{nearest}"):
        GpuConfig(given)


@pytest.mark.parametrize("given", ["", "no such thing", None, 3])
def test_a_gpu_near_nothing_is_refused_with_the_known_ones(given: object) -> None:
    with pytest.raises(ValueError, match=r"unknown GPU variant .*; known are auto, V100"):
        GpuConfig(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", GPU_VARIANTS)
def test_gpu_variants_are_taken_in_any_case(variant: str) -> None:
    assert GpuConfig(variant.lower()).variant == GpuConfig(variant.upper()).variant == variant


@pytest.mark.parametrize(
    ("product", "memory", "variant"),
    [
        ("NVIDIA A100-SXM4-80GB", None, "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", None, "A100-40GB"),
        ("NVIDIA A100-PCIE-40GB", None, "A100-40GB"),
        ("A100-SXM-80GB", 85_198_045_184, "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", None, "H100"),
        ("NVIDIA H100 NVL", None, "H100"),
        ("NVIDIA H200", None, "H200"),
        ("NVIDIA B200", None, "B200"),
        ("NVIDIA L4", None, "L4"),
        ("NVIDIA L40S", None, "L40S"),
        ("Tesla T4", None, "T4"),
        ("Tesla V100-SXM2-16GB", 16_945_512_448, "V100-16GB"),
        ("Tesla V100-DGXS-32GB", None, "V100-32GB"),
        ("NVIDIA A10G", None, "A10G"),
        ("NVIDIA RTX A6000", None, "A6000"),
        ("NVIDIA RTX 6000 Ada Generation", None, "RTX6000Ada"),
        ("NVIDIA GeForce RTX 4090", None, "RTX4090"),
        ("NVIDIA GeForce RTX 2080 Ti", None, "RTX2080Ti"),
        ("Some Other 9000", None, "Some Other 9000"),
    ],
)
def test_the_drivers_name_of_a_gpu_gives_its_variant(product: str, memory: int | None, variant: str) -> None:
    assert gpu_variant_of(product, memory) == variant


def test_a_model_without_its_memory_takes_any_size_of_it_and_nothing_else() -> None:
    assert gpu_satisfies("A100", "A100-80GB")
    assert gpu_satisfies("auto", "whatever")
    assert not gpu_satisfies("A100-40GB", "A100-80GB")
    assert not gpu_satisfies("L4", "L40")
    assert not gpu_satisfies("A10", "A100-80GB")


@pytest.mark.parametrize(
    ("given", "nearest"), [("v5litepod-17", "v5litepod-1"), ("v5e-16", "v5p-16"), ("V6E-8", "v6e-8")]
)
def test_an_unknown_tpu_is_refused_with_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown TPU variant '{given}'; the nearest are .*{nearest}"):
        TpuConfig(given)
    with pytest.raises(ValueError, match="unknown TPU variant"):
        get_tpu_topology(given)


@pytest.mark.parametrize(
    ("variant", "chips", "hosts", "vms", "chips_per_vm"),
    [
        ("v4-8", 4, 1, 1, 4),
        ("v4-4096", 2048, 512, 512, 4),
        ("v5litepod-1", 1, 1, 1, 1),
        ("v5litepod-8", 8, 1, 1, 8),
        ("v5litepod-16", 16, 2, 4, 4),
        ("v5litepod-256", 256, 32, 64, 4),
        ("v5p-8", 4, 1, 1, 4),
        ("v5p-12288", 6144, 1536, 1536, 4),
        ("v6e-4", 4, 1, 1, 4),
        ("v6e-8", 8, 1, 1, 8),
        ("v6e-256", 256, 32, 64, 4),
    ],
)
def test_slice_shapes_are_those_of_the_providers_tables(
    variant: str, chips: int, hosts: int, vms: int, chips_per_vm: int
) -> None:
    found = get_tpu_topology(variant)
    assert (found.chip_count, found.host_count, found.vm_count, found.chips_per_vm) == (chips, hosts, vms, chips_per_vm)


def test_every_slice_shape_adds_up_and_is_listed_once() -> None:
    assert len({topology.name for topology in TPU_TOPOLOGIES}) == len(TPU_TOPOLOGIES)
    assert {topology.name.split("-")[0] for topology in TPU_TOPOLOGIES} == {"v4", "v5litepod", "v5p", "v6e"}
    for topology in TPU_TOPOLOGIES:
        assert topology.vm_count * topology.chips_per_vm == topology.chip_count


def test_a_topology_must_have_as_many_chips_as_the_slice() -> None:
    assert TpuConfig("v5litepod-16", "4x4").topology == "4x4"
    assert TpuConfig("v4-16", "2x2x2").topology == "2x2x2"


@pytest.mark.parametrize("given", ["4x8", "16", "4x4x4x4", "x", "0x0", "-4x-4", "4X4", "", 16, "99999999999x1"])
def test_any_other_topology_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match="topology must be a shape like '4x4' of the 16 chips that v5litepod-16 has"):
        TpuConfig("v5litepod-16", given)  # type: ignore[arg-type]
