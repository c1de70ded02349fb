import asyncio
from pathlib import Path

import pytest

from fluster.cluster.worker.gpu import GpuInventory, Gpus, find_gpus
from fluster.cluster.worker.ports import Ports


def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_gpus_are_found_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "NVIDIA A100-SXM4-80GB, 81920"
    smi(tmp_path, monkeypatch, f"echo '{line}'; echo '{line}'")
    assert find_gpus() == GpuInventory(2, "A100-80GB")


def test_a_number_given_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, "exit 9")
    assert find_gpus(4) == GpuInventory(4, "")
    assert find_gpus(0) == GpuInventory()


@pytest.mark.parametrize("script", ["exit 9", "echo", "true"])
def test_a_driver_that_does_not_answer_means_no_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    smi(tmp_path, monkeypatch, script)
    assert find_gpus().count == 0


def test_different_models_have_no_one_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, "echo 'Tesla T4, 15360'; echo 'NVIDIA L4, [N/A]'")
    assert find_gpus() == GpuInventory(2, "")


async def test_indices_are_handed_out_once_and_come_back() -> None:
    gpus = Gpus(GpuInventory(3))
    assert await gpus.take("a", 2) == (0, 1)
    waiting = asyncio.create_task(gpus.take("b", 2))
    await asyncio.sleep(0)
    assert not waiting.done()
    await gpus.give_back("a")
    async with asyncio.timeout(5):
        assert await waiting == (0, 1)


async def test_adopted_attempts_keep_their_gpus() -> None:
    gpus = Gpus(GpuInventory(2))
    gpus.keep("old", (0,))
    assert await gpus.take("new", 1) == (1,)


async def test_more_than_the_machine_has_is_refused() -> None:
    with pytest.raises(ValueError, match="4 GPUs asked for, this machine has 1"):
        await Gpus(GpuInventory(1)).take("a", 4)


def test_ports_differ_between_live_attempts_and_avoid_those_named() -> None:
    ports = Ports()
    chosen = [ports.choose(f"a{number}") for number in range(50)]
    assert len(set(chosen)) == 50
    even = range(0, 65536, 2)
    assert all(ports.choose(f"b{number}", even) % 2 for number in range(20))


def test_the_previous_attempts_port_is_not_chosen_again() -> None:
    ports = Ports()
    first = ports.choose("a")
    ports.give_back("a")
    assert all(ports.choose(f"b{number}", [first]) != first for number in range(20))
