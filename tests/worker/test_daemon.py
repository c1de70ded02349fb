"""The worker's process: `python -m fluster.cluster.worker`."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from tests.worker.fakes import JOIN, WITHIN_S, FakeController, controller, refuse_always

from fluster.cluster.worker import files
from fluster.cluster.worker.messages import callable_entrypoint, command_entrypoint, inline_payload
from fluster.rpc.client import ConnectClient
from fluster.rpc.gen.fluster.cluster.v1 import worker_pb as pb
from fluster.rpc.gen.fluster.cluster.v1.controller_pb import AttemptSpec
from fluster.rpc.gen.fluster.cluster.v1.types_pb import Cause, TaskState

SERVE = [sys.executable, "-P", "-m", "fluster.cluster.worker"]


@asynccontextmanager
async def daemon(state_dir: Path, *arguments: str, **options: Any) -> AsyncIterator[Process]:
    command = [*SERVE, "serve", "--state-dir", str(state_dir), *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, **options)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def announced(process: Process) -> dict[str, str]:
    assert process.stdout is not None
    async with asyncio.timeout(WITHIN_S):
        line = await process.stdout.readline()
    found: dict[str, str] = json.loads(line)
    return found


async def ended(process: Process) -> int:
    async with asyncio.timeout(WITHIN_S):
        return await process.wait()


def joining(fake: FakeController, tmp_path: Path) -> list[str]:
    (tmp_path / "token").write_text(f"{JOIN}\n")
    return ["--controller", fake.address, "--token-file", str(tmp_path / "token")]


def command(*argv: str) -> AttemptSpec:
    return AttemptSpec(entrypoint=command_entrypoint(argv), num_tasks=1, world_size=1, job_id="j")


SAY_PID_AND_SLEEP = command("sh", "-c", "echo $$; exec sleep 60")


async def started(fake: FakeController, uid: str) -> int:
    """Its pid, once it has printed it."""
    await fake.want(uid, SAY_PID_AND_SLEEP)
    await fake.until(lambda: fake.log_of(uid).endswith(b"\n"))
    return int(fake.log_of(uid))


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def until(accept: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not accept():
            await asyncio.sleep(0.02)


async def test_a_standalone_worker_tells_where_it_serves_and_ends_with_its_jobs(tmp_path: Path) -> None:
    async with daemon(tmp_path / "w", "--gpus", "0") as process:
        told = await announced(process)
        token = Path(told["token_file"]).read_text()
        with closing(ConnectClient(told["address"], "fluster.cluster.v1.WorkerService", token=token)) as client:
            request = pb.WorkerServiceRunJobRequest(job_id="j", entrypoint=command_entrypoint(["sleep", "60"]))
            await asyncio.to_thread(client.unary, "RunJob", request, pb.WorkerServiceRunJobResponse)
            ask = pb.WorkerServiceGetJobStatusRequest(job_id="j")
            async with asyncio.timeout(WITHIN_S):
                while (
                    await asyncio.to_thread(client.unary, "GetJobStatus", ask, pb.WorkerServiceGetJobStatusResponse)
                ).state is not TaskState.RUNNING:
                    await asyncio.sleep(0.02)
        process.terminate()
        assert await ended(process) == 0


async def test_a_killed_worker_goes_on_with_the_same_process_when_it_is_started_again(tmp_path: Path) -> None:
    async with controller() as fake:
        async with daemon(tmp_path / "w", *joining(fake, tmp_path)) as first:
            pid = await started(fake, "a-1")
            first.kill()
            await ended(first)
        assert exists(pid)
        async with daemon(tmp_path / "w", *joining(fake, tmp_path)):
            await fake.until(lambda: len({each.incarnation for each in fake.syncs}) == 2)
            seen = fake.observed("a-1")
            assert seen is not None
            assert (seen.state, seen.exit) == (TaskState.RUNNING, None)
            await fake.want("a-1", stop=True)
            assert (await fake.end_of("a-1")).cause is Cause.TERMINATED
        assert fake.log_of("a-1") == b"%d\n" % pid
        assert len({each.worker_id for each in fake.registered}) == 1
        assert len({each.credential_sha256 for each in fake.registered}) == 2  # each daemon's own


async def test_an_attempt_that_ends_while_no_daemon_is_there_is_reported_with_its_logs(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with controller() as fake:
        async with daemon(tmp_path / "w", *joining(fake, tmp_path)) as first:
            await fake.want("a-1", command("sh", "-c", f"echo before; read x < {gate}; echo after; exit 3"))
            await fake.until(lambda: fake.log_of("a-1"))
            first.kill()
            await ended(first)
        with await asyncio.to_thread(open, gate, "w"):
            pass
        await until(lambda: (tmp_path / "w" / "attempts" / "a-1" / "exit.json").exists())
        async with daemon(tmp_path / "w", *joining(fake, tmp_path)):
            end = await fake.end_of("a-1")
        assert (end.exit_code, end.cause) == (3, Cause.EXIT)
        assert fake.logs_at_end["a-1"] == b"before\nafter\n"


async def test_sigterm_leaves_a_joined_workers_attempts_running(tmp_path: Path) -> None:
    async with controller() as fake:
        async with daemon(tmp_path / "w", *joining(fake, tmp_path)) as process:
            pid = await started(fake, "a-1")
            process.terminate()
            assert await ended(process) == 0
        assert exists(pid)
        assert "a-1" not in fake.ends
        async with daemon(tmp_path / "w", *joining(fake, tmp_path)) as process:
            await fake.want("a-1", stop=True)
            await fake.end_of("a-1")


async def test_a_worker_that_is_let_go_ends_and_says_that_it_has_left(tmp_path: Path) -> None:
    async with controller() as fake, daemon(tmp_path / "w", *joining(fake, tmp_path)) as process:
        pid = await started(fake, "a-1")
        fake.leave = True
        await fake.change()
        assert await ended(process) == 0
        assert not exists(pid)
        assert fake.ends["a-1"].cause is Cause.PREEMPTED
        assert files.has_left(tmp_path / "w")


async def test_a_released_worker_ends_what_runs_on_sigterm(tmp_path: Path) -> None:
    async with controller() as fake, daemon(tmp_path / "w", *joining(fake, tmp_path)) as process:
        pid = await started(fake, "a-1")
        files.release(tmp_path / "w")
        process.terminate()
        assert await ended(process) == 0
        assert not exists(pid)
        assert files.has_left(tmp_path / "w")


async def test_a_worker_whose_lifeline_was_cut_while_it_started_makes_no_directory(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(write_end)
    try:
        async with daemon(tmp_path / "state", "--lifeline-fd", str(read_end), pass_fds=(read_end,)) as process:
            assert await ended(process) == 0
    finally:
        os.close(read_end)
    assert not (tmp_path / "state").exists()


async def test_when_the_lifeline_is_cut_everything_ends_at_once(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    try:
        async with controller() as fake:
            arguments = [*joining(fake, tmp_path), "--lifeline-fd", str(read_end)]
            async with daemon(tmp_path / "w", *arguments, pass_fds=(read_end,)) as process:
                pid = await started(fake, "a-1")
                os.close(write_end)
                write_end = -1
                assert await ended(process) == 0
                await until(lambda: not exists(pid))
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)


async def test_what_a_dead_worker_left_running_can_be_ended(tmp_path: Path) -> None:
    async with controller() as fake:
        async with daemon(tmp_path / "w", *joining(fake, tmp_path)) as process:
            pid = await started(fake, "a-1")
            end = [*SERVE, "end", "--state-dir", str(tmp_path / "w")]
            refused = await asyncio.create_subprocess_exec(*end, stderr=PIPE)
            _, said = await refused.communicate()
            assert refused.returncode == 1
            assert str(process.pid) in said.decode()
            process.kill()
            await ended(process)
        assert exists(pid)
        assert await ended(await asyncio.create_subprocess_exec(*end, stderr=DEVNULL)) == 0
        assert not exists(pid)


async def test_a_second_worker_on_a_state_directory_is_refused_in_one_line(tmp_path: Path) -> None:
    async with daemon(tmp_path / "w") as first:
        await announced(first)
        async with daemon(tmp_path / "w") as second:
            assert second.stderr is not None
            assert await ended(second) == 1
            said = (await second.stderr.read()).decode().splitlines()
            assert len(said) == 1
            assert f"process {first.pid}" in said[0]


async def test_a_worker_nobody_lets_in_says_so_and_exits_with_4(tmp_path: Path) -> None:
    async with controller() as fake:
        fake.refuse = refuse_always("RegisterWorker")
        async with daemon(tmp_path / "w", *joining(fake, tmp_path)) as process:
            assert process.stderr is not None
            assert await ended(process) == 4
            assert b"Traceback" not in await process.stderr.read()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--cpu", "0"),
        ("--cpu", "nan"),
        ("--memory", "much"),
        ("--gpus", "-1"),
        ("--worker-id", "../x"),
        ("--what",),
        ("--host", "0.0.0.0"),
    ],
)
async def test_options_that_break_their_rule_exit_with_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    async with daemon(tmp_path / "w", *arguments) as process:
        assert process.stderr is not None
        assert await ended(process) == 2
        assert b"Traceback" not in await process.stderr.read()


async def test_the_daemon_never_loads_cloudpickle(tmp_path: Path) -> None:
    async with controller() as fake:
        arguments = joining(fake, tmp_path)
        command_line = [sys.executable, "-X", "importtime", *SERVE[1:], "serve", "--state-dir", str(tmp_path / "w")]
        process = await asyncio.create_subprocess_exec(*command_line, *arguments, stdout=DEVNULL, stderr=PIPE)
        payload = inline_payload(cloudpickle.dumps((print, ("hello",), {})))
        await fake.want("a-1", AttemptSpec(entrypoint=callable_entrypoint(payload), num_tasks=1))
        assert (await fake.end_of("a-1")).cause is Cause.UNSPECIFIED
        process.terminate()
        _, imported = await process.communicate()
        assert b"fluster.cluster.worker.sync" in imported
        assert b"cloudpickle" not in imported
