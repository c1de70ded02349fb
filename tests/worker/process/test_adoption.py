"""What a worker finds of attempts that an earlier one started, and that an attempt never has two processes."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from fluster.cluster.attempt import proc
from fluster.cluster.worker.remains import REMOVED, RESTARTED
from fluster.cluster.worker.runtime import ExitRecord, Gone, Running

# Of this process alone: what is left of an attempt is found by its uid, also by a runtime of another test.
SURVIVOR = f"survivor-{os.getpid()}"
WORKER = """
import asyncio, json, os, sys
from pathlib import Path
from fluster.cluster.worker.cgroup import find_cgroups
from fluster.cluster.worker.process_runtime import ProcessRuntime
from fluster.cluster.worker.runtime import AttemptStart

async def main(name, enforcement, directory, uid):
    runtime = ProcessRuntime(name, cgroups=find_cgroups(name, enforcement=enforcement))
    path = Path(directory)
    running = await runtime.start(AttemptStart(uid, path, None, dict(os.environ), path))
    print(json.dumps({"attempt": running.pid, "zygote": runtime._zygotes.own.pid}), flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


def counting(path: Path) -> Any:
    """A function that counts its runs in a file and then rests, until it is told to return by another file."""

    def work() -> str:
        import signal

        with open(path, "a") as file:
            file.write("run\n")
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.pause()
        return "value"

    return work


@contextlib.contextmanager
def _killed_worker(tmp_path: Path, until: Any, enforcement: str, target: Any, uid: str = SURVIVOR) -> Any:
    """An attempt whose worker was killed with -9: its directory, and the pid of its process."""
    directory = tmp_path / uid
    directory.mkdir()
    (directory / "entrypoint").write_bytes(cloudpickle.dumps((target, (), {})))
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, f"killed-{os.getpid()}", enforcement, str(directory), uid],
        stdout=subprocess.PIPE,
    )
    assert worker.stdout is not None
    pids = json.loads(worker.stdout.readline())
    started = proc.start_time(pids["zygote"])
    assert started is not None
    worker.kill()
    worker.wait()
    worker.stdout.close()
    until(lambda: not proc.is_running(pids["zygote"], started))
    proc.reap(pids["zygote"])
    try:
        yield directory, pids["attempt"]
    finally:
        for orphan in proc.children(os.getpid()):
            proc.reap(orphan)  # this process became a subreaper with its first runtime


@pytest.mark.parametrize("enforcement", ["auto", "none"])
async def test_an_attempt_goes_on_when_its_worker_is_killed_and_the_next_one_adopts_it(
    lab: Any, until: Any, tmp_path: Path, enforcement: str
) -> None:
    runs = tmp_path / "runs"
    with _killed_worker(tmp_path, until, enforcement, counting(runs)) as (directory, pid):
        until(lambda: runs.exists() and runs.read_text() == "run\n")
        async with lab(enforcement=enforcement, name=f"killed-{os.getpid()}") as it:
            found = await it.runtime.adopt(SURVIVOR, directory)
            assert isinstance(found, Running)
            assert found.pid == pid
            os.kill(pid, signal.SIGUSR1)
            end = await asyncio.wait_for(it.runtime.wait(SURVIVOR), 10)
    assert end.exit_code == 0
    assert runs.read_text() == "run\n"


async def test_an_adopted_attempt_can_be_stopped(lab: Any, until: Any, tmp_path: Path) -> None:
    with _killed_worker(tmp_path, until, "auto", counting(tmp_path / "runs")) as (directory, _):
        async with lab(name=f"killed-{os.getpid()}") as it:
            await it.runtime.adopt(SURVIVOR, directory)
            await it.runtime.stop(SURVIVOR, 5.0)
            end = await asyncio.wait_for(it.runtime.wait(SURVIVOR), 10)
    assert end.stop_requested


async def test_starting_an_attempt_that_an_earlier_worker_started_gives_its_process(
    lab: Any, until: Any, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    with _killed_worker(tmp_path, until, "auto", counting(runs)) as (_, pid):
        async with lab(name=f"killed-{os.getpid()}") as it:
            running = await it.runtime.start(it.attempt(counting(runs), uid=SURVIVOR))
            assert isinstance(running, Running)
            assert running.pid == pid
            await it.finish(SURVIVOR)
    assert runs.read_text() == "run\n"


async def test_an_end_in_the_workers_absence_is_found_on_record(lab: Any, until: Any, tmp_path: Path) -> None:
    with _killed_worker(tmp_path, until, "auto", counting(tmp_path / "runs")) as (directory, pid):
        os.kill(pid, signal.SIGKILL)
        until((directory / "exit.json").exists)
        async with lab() as it:
            found = await it.runtime.adopt(SURVIVOR, directory)
            assert isinstance(found, ExitRecord)
            assert found.signal == signal.SIGKILL
            assert await it.runtime.wait(SURVIVOR) == found


@pytest.mark.parametrize("enforcement", ["auto", "none"])
async def test_a_tree_whose_shim_was_killed_is_ended_and_gone(
    lab: Any, until: Any, alive: Any, tmp_path: Path, enforcement: str
) -> None:
    pids = tmp_path / "pids"

    def work() -> None:
        import os
        import signal

        for leave in (False, True):
            if os.fork() == 0:
                if leave:
                    os.setsid()
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                break
        with open(pids, "a") as file:
            file.write(f"{os.getpid()}\n")
        signal.pause()

    with _killed_worker(tmp_path, until, enforcement, work) as (directory, _):
        until(lambda: pids.exists() and len(pids.read_text().split()) == 3)
        shim = json.loads((directory / "running.json").read_text())["shim"]
        os.kill(shim, signal.SIGKILL)
        until(lambda: not alive(shim))
        async with lab(enforcement=enforcement, name=f"killed-{os.getpid()}") as it:
            assert await it.runtime.adopt(SURVIVOR, directory) == Gone()
            assert not [pid for pid in pids.read_text().split() if alive(int(pid))]
            again = await it.runtime.start(it.attempt(int, uid=SURVIVOR))
    assert again == Gone() or isinstance(again, ExitRecord)


async def test_a_killed_shim_of_this_worker_ends_the_attempt_as_gone(
    lab: Any, until: Any, alive: Any, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"

    def work() -> None:
        import os
        import signal

        if os.fork() == 0:
            os.setsid()
            # Neither marker, nor session, nor parents lead to this one: only its being an orphan of the zygote does.
            if os.fork():
                os._exit(0)
            script = f"echo $$ >> {pids}; trap '' TERM; while :; do sleep 1; done"
            os.execve("/bin/sh", ["sh", "-c", script], {"PATH": "/bin:/usr/bin"})
        with open(pids, "a") as file:
            file.write(f"{os.getpid()}\n")
        signal.pause()

    async with lab(enforcement="none") as it:
        attempt = it.attempt(work)
        await it.runtime.start(attempt)
        until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        os.kill(json.loads((attempt.directory / "running.json").read_text())["shim"], signal.SIGKILL)
        assert await asyncio.wait_for(it.runtime.wait(attempt.uid), 10) == Gone()
        until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))


async def test_an_attempt_of_another_boot_is_gone(lab: Any, tmp_path: Path) -> None:
    directory = tmp_path / "old"
    directory.mkdir()
    mine = {"pid": os.getpid(), "started": proc.start_time(os.getpid())}
    record: dict[str, Any] = {
        **mine,
        "shim": mine["pid"],
        "shim_started": mine["started"],
        "started_at": 1.0,
        "hierarchies": [],
    }
    (directory / "running.json").write_text(json.dumps({**record, "boot_id": "another"}))
    async with lab() as it:
        assert await it.runtime.adopt("old", directory) == RESTARTED
        assert await it.runtime.observe("old") == RESTARTED


async def test_a_pid_that_now_belongs_to_somebody_else_is_left_alone(lab: Any, tmp_path: Path) -> None:
    directory = tmp_path / "recycled"
    directory.mkdir()
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as bystander:
        record = {"pid": bystander.pid, "started": 1, "shim": bystander.pid, "shim_started": 1, "started_at": 1.0}
        (directory / "running.json").write_text(json.dumps({**record, "boot_id": proc.boot_id(), "hierarchies": []}))
        async with lab() as it:
            assert await it.runtime.adopt("recycled", directory) == Gone()
        assert bystander.poll() is None
        bystander.kill()


async def test_an_attempt_without_a_directory_is_gone(lab: Any, tmp_path: Path) -> None:
    async with lab() as it:
        assert await it.runtime.adopt("never", tmp_path / "never") == REMOVED


async def test_an_attempt_found_gone_is_never_started_later(lab: Any, tmp_path: Path) -> None:
    async with lab() as it:
        attempt = it.attempt(int)
        assert await it.runtime.adopt(attempt.uid, attempt.directory) == Gone()
        await it.runtime.forget(attempt.uid)
        end = await it.runtime.start(attempt)
    assert isinstance(end, ExitRecord)
    assert end.fluster_fault
    assert not (attempt.directory / "result").exists()


async def test_the_same_attempt_started_five_times_at_once_is_one_process(lab: Any, until: Any, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    async with lab() as it, lab() as other:
        attempt = it.attempt(counting(runs))
        starts = [each.runtime.start(attempt) for each in (it, it, other, it, other)]
        found = await asyncio.gather(*starts)
        assert len({running.pid for running in found}) == 1
        until(runs.exists)
        await asyncio.gather(it.finish(attempt.uid), other.runtime.wait(attempt.uid))
    assert runs.read_text() == "run\n"


async def test_starting_an_ended_attempt_gives_its_record(lab: Any) -> None:
    async with lab() as it:
        attempt = it.attempt(int)
        await it.runtime.start(attempt)
        end = await it.runtime.wait(attempt.uid)
        assert await it.runtime.start(attempt) == end
        await it.runtime.forget(attempt.uid)
        assert await it.runtime.start(attempt) == end


async def test_closing_leaves_attempts_running_for_the_next_runtime(lab: Any, until: Any, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    async with lab() as it:
        attempt = it.attempt(counting(runs))
        running = await it.runtime.start(attempt)
        until(runs.exists)
        await it.runtime.close()
        async with lab() as other:
            assert await other.runtime.adopt(attempt.uid, attempt.directory) == running
            os.kill(running.pid, signal.SIGUSR1)
            assert (await other.runtime.wait(attempt.uid)).exit_code == 0
