"""Stopping: SIGTERM for the whole tree, a grace, SIGKILL; and how soon an end is known."""

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from fluster.cluster.attempt import proc
from fluster.cluster.attempt.cgroup import AttemptCgroup
from fluster.cluster.attempt.tree import Tree
from fluster.cluster.worker.runtime import Running


def rest() -> Any:
    def work() -> None:
        import signal

        print("ready")
        signal.pause()

    return work


async def _start(it: Any, until: Any, *arguments: Any, **fields: Any) -> tuple[str, Running]:
    attempt = it.attempt(*arguments, **fields)
    running = await it.runtime.start(attempt)
    until(lambda: "ready" in it.runtime.logs(attempt.uid).stdout.read_text())
    return attempt.uid, running


async def test_stop_is_sigterm_and_recorded_as_asked_for(lab: Any, until: Any) -> None:
    async with lab() as it:
        uid, _ = await _start(it, until, rest())
        await it.runtime.stop(uid)
        end = await it.runtime.wait(uid)
    assert end.stop_requested
    assert end.signal == signal.SIGTERM


async def test_a_program_may_end_as_it_likes_within_the_grace(lab: Any, until: Any) -> None:
    def work() -> None:
        import signal
        import sys

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print("ready")
        signal.pause()

    async with lab() as it:
        uid, _ = await _start(it, until, work)
        await it.runtime.stop(uid)
        end = await it.runtime.wait(uid)
    assert end.stop_requested
    assert end.exit_code == 0


async def test_children_have_the_grace_too_when_the_first_process_ends_at_once(
    lab: Any, until: Any, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    child = f"trap 'sleep 0.2; echo yes > {saved}; exit' TERM; echo ready; while :; do sleep 0.01; done"
    async with lab() as it:
        uid, _ = await _start(it, until, command=("sh", "-c", 'sh -c "$0" & wait', child))
        await it.runtime.stop(uid)
        await it.runtime.wait(uid)
    assert saved.read_text() == "yes\n"


async def test_a_stopped_process_hears_the_order(lab: Any, until: Any) -> None:
    def work() -> None:
        import os
        import signal
        import sys

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
        print("ready")
        os.kill(os.getpid(), signal.SIGSTOP)
        signal.pause()

    async with lab() as it:
        uid, _ = await _start(it, until, work)
        await it.runtime.stop(uid)
        assert (await it.runtime.wait(uid)).exit_code == 5


async def test_repeating_shortens_the_grace_and_never_lengthens_it(lab: Any, until: Any) -> None:
    def work() -> None:
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("ready")
        while True:
            signal.pause()

    async with lab() as it:
        uid, _ = await _start(it, until, work)
        began = time.monotonic()
        for grace_s in (60.0, 0.3, 30.0):
            await it.runtime.stop(uid, grace_s)
        end = await asyncio.wait_for(it.runtime.wait(uid), 5)
    assert end.signal == signal.SIGKILL
    assert time.monotonic() - began >= 0.3


async def test_stopping_what_has_ended_is_harmless_and_leaves_its_record(lab: Any) -> None:
    async with lab() as it:
        ended = await it.run(int)
        await it.runtime.stop(ended.directory.name)
        assert await it.runtime.wait(ended.directory.name) == ended.record
    assert not ended.record.stop_requested


async def test_stop_during_the_start_is_heard(lab: Any) -> None:
    async with lab() as it:
        attempt = it.attempt(rest())
        starting = asyncio.create_task(it.runtime.start(attempt))
        await asyncio.sleep(0)
        await it.runtime.stop(attempt.uid, 1.0)
        await starting
        assert (await asyncio.wait_for(it.runtime.wait(attempt.uid), 5)).stop_requested


async def test_a_job_that_signals_its_process_group_does_not_hit_its_shim(lab: Any) -> None:
    async with lab() as it:
        ended = await it.run(lambda: __import__("os").killpg(0, 9))
    assert ended.record.signal == signal.SIGKILL


async def test_garbage_on_the_control_fifo_is_ignored(lab: Any, until: Any) -> None:
    async with lab() as it:
        uid, _ = await _start(it, until, rest())
        with open(it.root / uid / "control", "wb") as fifo:
            fifo.write(b"\xff\xfe stop\nstop\nstop nan\nstop x\n\n")
        await it.runtime.stop(uid)
        assert (await it.runtime.wait(uid)).signal == signal.SIGTERM


async def test_a_killed_process_is_known_at_once_by_all_who_wait(lab: Any, until: Any) -> None:
    async def kill_one(it: Any) -> float:
        """Seconds until its end is known."""
        uid, running = await _start(it, until, rest())
        assert await it.runtime.observe(uid) == running
        waiting = [asyncio.create_task(it.runtime.wait(uid)) for _ in range(5)]
        await asyncio.sleep(0)
        killed_at = time.monotonic()
        os.kill(running.pid, signal.SIGKILL)
        ends = await asyncio.gather(*waiting)
        took = time.monotonic() - killed_at
        assert await it.runtime.observe(uid) == ends[0]
        assert {end.signal for end in ends} == {signal.SIGKILL}
        return took

    # A busy machine delays some, a pause on the way would delay all.
    async with lab() as it:
        assert min([await kill_one(it) for _ in range(3)]) < 0.5


async def test_a_cancelled_waiter_disturbs_nobody(lab: Any, until: Any) -> None:
    async with lab() as it:
        uid, _ = await _start(it, until, rest())
        hasty = asyncio.create_task(it.runtime.wait(uid))
        await asyncio.sleep(0)
        hasty.cancel()
        await asyncio.gather(hasty, return_exceptions=True)
        await it.runtime.stop(uid)
        assert (await it.runtime.wait(uid)).stop_requested


async def test_an_attempt_nobody_started_is_named(lab: Any) -> None:
    async with lab() as it:
        with pytest.raises(LookupError, match="no attempt 'nobody'"):
            await it.runtime.wait("nobody")


async def test_a_forgotten_attempt_is_unknown_and_a_running_one_is_kept(lab: Any, until: Any) -> None:
    async with lab() as it:
        uid, running = await _start(it, until, rest())
        await it.runtime.forget(uid)
        assert await it.runtime.observe(uid) == running
        await it.finish(uid)
        await it.runtime.forget(uid)
        with pytest.raises(LookupError):
            it.runtime.logs(uid)


def test_parents_hear_of_a_stop_before_their_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell whose child had ended before would go on with its next command, as if all were well."""
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(proc, "descendants", lambda _: [33, 40, 32])
    monkeypatch.setattr(os, "kill", lambda pid, number: told.append((pid, number)))
    Tree(AttemptCgroup(())).terminate()
    assert told == [(pid, number) for number in (signal.SIGTERM, signal.SIGCONT) for pid in (33, 40, 32)]


def test_processes_are_found_before_their_children(until: Any) -> None:
    with subprocess.Popen(["sh", "-c", "sh -c 'sleep 60; :'; :"], start_new_session=True) as first:
        until(lambda: len(proc.descendants(first.pid)) == 2)
        second, third = proc.descendants(first.pid)
        assert (proc.children(first.pid), proc.children(second)) == ([second], [third])
        os.killpg(first.pid, signal.SIGKILL)
