"""The zygote: dies with its worker, is replaced when it dies, and takes everything along when the lifeline breaks."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fluster.cluster.attempt import proc
from fluster.cluster.worker.cgroup import WorkerCgroups
from fluster.cluster.worker.runtime import ExitRecord, Gone, Running
from fluster.cluster.worker.zygote import Zygote, ZygoteDied


def rest() -> Any:
    def work() -> None:
        import signal

        print("ready")
        signal.pause()

    return work


def zygote_of(it: Any) -> int:
    pid: int = it.runtime._zygotes.own.pid
    return pid


@contextlib.contextmanager
def lifeline() -> Iterator[tuple[int, Any]]:
    """The descriptor of a lifeline, and a function that cuts it."""
    reading, writing = os.pipe()
    held = [writing]

    def cut() -> None:
        while held:
            os.close(held.pop())

    try:
        yield reading, cut
    finally:
        cut()
        os.close(reading)


async def test_preparing_starts_the_zygote_and_attempts_come_from_it(lab: Any) -> None:
    async with lab() as it:
        await it.runtime.prepare()
        before = zygote_of(it)
        ended = await it.run(lambda: __import__("os").getpid())
        assert zygote_of(it) == before
    assert ended.value != before


async def test_no_process_is_used_twice(lab: Any) -> None:
    async with lab() as it:
        pids = [(await it.run(lambda: __import__("os").getpid())).value for _ in range(5)]
    assert len(set(pids)) == 5


async def test_attempts_do_not_see_each_others_changes(lab: Any) -> None:
    def change() -> str:
        import json

        found = getattr(json, "changed", "no")
        json.changed = "yes"  # type: ignore[attr-defined]
        return found

    async with lab() as it:
        assert [(await it.run(change)).value for _ in range(3)] == ["no", "no", "no"]


async def test_a_dead_zygote_is_replaced_and_running_attempts_go_on(lab: Any, until: Any, alive: Any) -> None:
    async with lab() as it:
        attempt = it.attempt(rest())
        running = await it.runtime.start(attempt)
        dead = zygote_of(it)
        os.kill(dead, signal.SIGKILL)
        assert (await it.run(lambda: 5)).value == 5
        assert zygote_of(it) != dead
        assert await it.runtime.observe(attempt.uid) == running
        end = await it.finish(attempt.uid)
    assert isinstance(end, ExitRecord)
    assert end.stop_requested


async def test_a_zygote_killed_under_load_loses_no_attempt_and_runs_none_twice(lab: Any, tmp_path: Path) -> None:
    def work(path: str) -> None:
        with open(path, "a") as file:
            file.write("run\n")

    async with lab() as it:
        await it.runtime.prepare()
        attempts = [it.attempt(work, str(tmp_path / f"runs-{n}")) for n in range(12)]
        starting = [asyncio.create_task(it.runtime.start(attempt)) for attempt in attempts]
        while sum(task.done() for task in starting) < 4:
            await asyncio.sleep(0)
        os.kill(zygote_of(it), signal.SIGKILL)
        ends = await asyncio.gather(*starting)
        ends = [await it.runtime.wait(attempt.uid) for attempt in attempts]
    assert [end.exit_code for end in ends] == [0] * 12
    assert [(tmp_path / f"runs-{n}").read_text() for n in range(12)] == ["run\n"] * 12


async def test_an_idle_spare_that_is_killed_is_replaced(lab: Any, until: Any) -> None:
    async with lab() as it:
        await it.runtime.prepare()
        until(lambda: proc.children(zygote_of(it)))
        (spare,) = proc.children(zygote_of(it))
        os.kill(spare, signal.SIGKILL)
        until(lambda: proc.start_time(spare) is None)
        assert (await it.run(lambda: 5)).value == 5


async def test_a_start_whose_shim_is_killed_before_it_took_the_request_is_flusters_fault(lab: Any, until: Any) -> None:
    async with lab() as it:
        await it.runtime.prepare()
        until(lambda: len(proc.descendants(zygote_of(it))) == 2)
        (shim,) = proc.children(zygote_of(it))
        os.kill(shim, signal.SIGSTOP)
        starting = asyncio.create_task(it.runtime.start(it.attempt(int)))
        await asyncio.wait((starting,), timeout=0.1)
        os.kill(shim, signal.SIGKILL)
        end = await asyncio.wait_for(starting, 10)
    assert isinstance(end, ExitRecord)
    assert end.fluster_fault
    assert end.start_error == "the attempt's shim was killed before it began"


async def test_a_start_whose_shim_is_killed_before_it_answered_is_gone_because_it_may_have_run(
    lab: Any, until: Any, alive: Any
) -> None:
    async with lab() as it:
        await it.runtime.prepare()
        until(lambda: len(proc.descendants(zygote_of(it))) == 2)
        (shim,) = proc.children(zygote_of(it))
        (process,) = proc.children(shim)
        os.kill(process, signal.SIGSTOP)  # it never says that it has begun
        attempt = it.attempt(int)
        starting = asyncio.create_task(it.runtime.start(attempt))
        while not (attempt.directory / "running.json").exists():
            await asyncio.sleep(0.001)
        os.kill(shim, signal.SIGKILL)
        assert await asyncio.wait_for(starting, 10) == Gone()
        assert not alive(process)


async def test_starting_an_attempt_again_that_lost_its_shim_does_not_make_it_one_that_never_ran(
    lab: Any, until: Any
) -> None:
    async with lab() as it:
        attempt = it.attempt(rest())
        await it.runtime.start(attempt)
        os.kill(json.loads((attempt.directory / "running.json").read_text())["shim"], signal.SIGKILL)
        assert await asyncio.wait_for(it.runtime.wait(attempt.uid), 10) == Gone()
        assert await it.runtime.start(attempt) == Gone()


async def test_closing_the_zygote_leaves_no_process(until: Any) -> None:
    zygote = await Zygote.start(os.sys.executable, WorkerCgroups())  # type: ignore[attr-defined]
    until(lambda: len(proc.descendants(zygote.pid)) == 2)
    pids = [zygote.pid, *proc.descendants(zygote.pid)]
    await zygote.close()
    assert not zygote.alive
    assert [pid for pid in pids if proc.start_time(pid) is not None] == []


async def test_an_interpreter_that_cannot_be_a_zygote_is_an_error_naming_it() -> None:
    with pytest.raises(ZygoteDied, match="/no/such/python"):
        await Zygote.start("/no/such/python", WorkerCgroups())
    with pytest.raises(ZygoteDied, match="status 1"):
        await Zygote.start("/bin/false", WorkerCgroups())


async def test_without_a_zygote_a_start_is_flusters_fault(lab: Any) -> None:
    async with lab(python="/no/such/python") as it:
        end = await it.runtime.start(it.attempt(int))
    assert isinstance(end, ExitRecord)
    assert end.fluster_fault
    assert end.start_error is not None
    assert "/no/such/python" in end.start_error


@pytest.mark.parametrize("enforcement", ["auto", "none"])
async def test_a_cut_lifeline_ends_zygote_shims_and_trees_at_once(
    lab: Any, until: Any, alive: Any, tmp_path: Path, enforcement: str
) -> None:
    pids = tmp_path / "pids"

    def work() -> None:
        import os
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
        with open(pids, "a") as file:
            file.write(f"{os.getpid()}\n")
        signal.pause()

    with lifeline() as (descriptor, cut):
        async with lab(enforcement=enforcement, lifeline_fd=descriptor) as it:
            attempt = it.attempt(work)
            running = await it.runtime.start(attempt)
            assert isinstance(running, Running)
            until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
            shim = json.loads((attempt.directory / "running.json").read_text())["shim"]
            tree = [shim, zygote_of(it), *map(int, pids.read_text().split())]
            cut()
            end = await asyncio.wait_for(it.runtime.wait(attempt.uid), 5)
            until(lambda: not any(alive(pid) for pid in tree))
    assert end.signal == signal.SIGKILL
    assert not end.stop_requested


async def test_an_attempt_does_not_inherit_the_lifeline(lab: Any) -> None:
    with lifeline() as (descriptor, _):
        async with lab(lifeline_fd=descriptor) as it:
            ended = await it.run(lambda: sorted(map(int, __import__("os").listdir("/proc/self/fd"))))
            command = await it.run(command=("ls", "/proc/self/fd"))
    assert ended.value == [0, 1, 2, 3]
    assert command.stdout.split() == ["0", "1", "2", "3"]


async def test_a_large_environment_gets_through(lab: Any) -> None:
    large = {f"VARIABLE_{number}": "x" * 100 for number in range(3000)}
    async with lab() as it:
        ended = await it.run(lambda: len(__import__("os").environ), environment=large)
    assert ended.value == len(os.environ) + len(large) + 1


async def test_many_attempts_at_once(lab: Any) -> None:
    async with lab() as it:
        attempts = [it.attempt(lambda n: n * n, n) for n in range(30)]
        await asyncio.gather(*(it.runtime.start(attempt) for attempt in attempts))
        ends = await asyncio.gather(*(it.runtime.wait(attempt.uid) for attempt in attempts))
    assert [end.exit_code for end in ends] == [0] * 30
