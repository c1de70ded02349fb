"""Time, memory, processes and cpu: what holds, with control groups and without, and what the record says."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fluster.cluster.attempt.cgroup import AttemptCgroup, Bounds
from fluster.cluster.worker.cgroup import find_cgroups
from fluster.cluster.worker.runtime import Limits

MB = 1_000_000
both = pytest.mark.parametrize("enforcement", ["auto", "none"])


def eat(bytes_: int) -> Any:
    """A function that takes that much memory and keeps it until it is stopped."""

    def work() -> None:
        import signal

        kept = b"x" * bytes_
        print(len(kept))
        signal.pause()

    return work


async def test_the_time_limit_ends_the_attempt(lab: Any) -> None:
    async with lab() as it:
        ended = await it.run(lambda: __import__("signal").pause(), limits=Limits(time_s=0.2))
    assert ended.record.timed_out
    assert ended.record.signal == signal.SIGTERM
    assert not ended.record.stop_requested
    assert ended.record.finished_at - ended.record.started_at >= 0.19


async def test_the_time_limit_ends_an_attempt_that_ignores_sigterm(lab: Any) -> None:
    def stay() -> None:
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()

    async with lab(time_limit_grace_s=0.2) as it:
        ended = await it.run(stay, limits=Limits(time_s=0.2))
    assert ended.record.timed_out
    assert ended.record.signal == signal.SIGKILL


async def test_an_attempt_that_ends_in_time_is_not_timed_out(lab: Any) -> None:
    async with lab() as it:
        ended = await it.run(int, limits=Limits(time_s=30))
    assert not ended.record.timed_out
    assert ended.record.exit_code == 0


@both
async def test_memory_past_the_limit_is_out_of_memory_with_the_peak(lab: Any, enforcement: str) -> None:
    async with lab(enforcement=enforcement) as it:
        ended = await it.run(eat(400 * MB), limits=Limits(memory_bytes=100 * MB))
    assert ended.record.out_of_memory
    assert ended.record.signal == signal.SIGKILL
    assert ended.record.peak_memory_bytes > 90 * MB


@both
async def test_memory_within_the_limit_is_reported_and_harmless(lab: Any, enforcement: str) -> None:
    def work() -> int:
        return len(b"x" * (100 * MB))

    async with lab(enforcement=enforcement) as it:
        ended = await it.run(work, limits=Limits(memory_bytes=400 * MB))
    assert ended.value == 100 * MB
    assert not ended.record.out_of_memory
    assert 100 * MB < ended.record.peak_memory_bytes < 250 * MB


async def test_a_child_killed_for_memory_that_fails_the_attempt_is_out_of_memory(lab: Any) -> None:
    def work() -> None:
        import subprocess
        import sys

        done = subprocess.run([sys.executable, "-c", "x = b'x' * 400_000_000"])
        sys.exit(done.returncode != 0)

    async with lab() as it:
        if it.runtime.enforcement == "none":
            pytest.skip("needs control groups")
        ended = await it.run(work, limits=Limits(memory_bytes=100 * MB))
    assert ended.record.exit_code == 1
    assert ended.record.out_of_memory


async def test_an_attempt_that_copes_with_a_child_killed_for_memory_succeeds(lab: Any) -> None:
    def work() -> int:
        import subprocess
        import sys

        return subprocess.run([sys.executable, "-c", "x = b'x' * 400_000_000"]).returncode

    async with lab() as it:
        if it.runtime.enforcement == "none":
            pytest.skip("needs control groups")
        ended = await it.run(work, limits=Limits(memory_bytes=100 * MB))
    assert ended.value == -signal.SIGKILL
    assert ended.record.exit_code == 0
    assert not ended.record.out_of_memory


async def test_a_memory_limit_below_what_a_process_needs_is_out_of_memory(lab: Any) -> None:
    async with lab() as it:
        if it.runtime.enforcement == "none":
            pytest.skip("needs control groups")
        ended = await it.run(eat(MB), limits=Limits(memory_bytes=1 << 16))
    assert ended.record.out_of_memory


@both
async def test_a_fork_bomb_is_held_by_the_process_limit(lab: Any, enforcement: str) -> None:
    def bomb() -> int:
        import os
        import signal

        forked = 0
        try:
            while forked < 400:
                if os.fork() == 0:
                    signal.pause()
                forked += 1
        except BlockingIOError:
            return forked
        signal.pause()
        return forked

    async with lab(enforcement=enforcement) as it:
        ended = await it.run(bomb, limits=Limits(pids=50))
        assert (await it.run(int)).value == 0, "the worker is well"
    if enforcement == "none" or it.runtime.enforcement == "none":
        assert ended.record.signal == signal.SIGKILL
        assert "the limit is 50" in ended.stderr
    else:
        assert ended.value == 49


async def test_the_shared_memory_of_many_processes_counts_once(lab: Any) -> None:
    def work() -> None:
        import os
        import signal

        kept = b"x" * (100 * MB)
        for _ in range(6):
            os.fork()
        assert kept
        signal.pause()

    async with lab(enforcement="none") as it:
        ended = await it.run(work, limits=Limits(memory_bytes=500 * MB, time_s=1.0))
    assert ended.record.timed_out, "it was sampled several times and never found too large"
    assert not ended.record.out_of_memory
    assert ended.record.peak_memory_bytes > 100 * MB


@pytest.mark.root
async def test_an_attempt_that_fills_the_disk_still_ends_on_record(lab: Any, tmp_path: Path) -> None:
    def fill() -> None:
        with open("filler", "wb") as file:
            while True:
                file.write(b"x" * 4096)

    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small disk")
    try:
        async with lab() as it:
            ended = await it.run(fill)
            assert ended.record.exit_code == 1
            assert not ended.has_result
            (ended.directory / "filler").unlink()
            assert (await it.run(lambda: 5)).value == 5
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.root
async def test_a_fork_that_the_machine_refuses_is_flusters_fault(lab: Any, until: Any) -> None:
    groups = AttemptCgroup.below(find_cgroups("test-refused-forks").parents)
    pids = next((each.path for each in groups.hierarchies if "pids" in each.controllers), None)
    if pids is None:
        groups.remove()
        pytest.skip("needs control groups")
    groups.limit(Bounds(cpu=1.0, cpu_quota=False, memory_bytes=None, pids=1))
    async with lab(enforcement="none") as it:
        await it.runtime.prepare()
        (pids / "cgroup.procs").write_text(str(it.runtime._zygotes.own.pid))
        # One spare may have been forked before.
        starts = [await it.runtime.start(it.attempt(int, uid=f"start-{number}")) for number in range(2)]
    assert starts[1].fluster_fault
    assert starts[1].exit_code is None
    assert "cannot fork" in starts[1].start_error
    assert groups.remove()
    find_cgroups("test-refused-forks").remove_leftovers()
