"""Jobs of a standalone worker, with real processes."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import cloudpickle
import pytest
from protobuf import Oneof

from fluster.cluster.states import Cause, TaskState
from fluster.cluster.worker.delivery import StaysHere
from fluster.cluster.worker.docker_runtime import DockerRuntime
from fluster.cluster.worker.gpu import GpuInventory
from fluster.cluster.worker.manager import JobManager
from fluster.cluster.worker.process_runtime import ProcessRuntime
from fluster.cluster.worker.runtime import Runtime
from fluster.cluster.worker.standalone import JobState
from fluster.errors import AlreadyExists, JobNotFound
from fluster.rpc.gen.fluster.cluster.v1.types_pb import EnvironmentSpec, GpuDevice, LogStream, Outcome, ResourceSpec

WITHIN_S = 20.0


def py(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@asynccontextmanager
async def manager_of(
    path: Path, max_concurrent_jobs: int = 10, runtime: Runtime | None = None
) -> AsyncIterator[JobManager]:
    runtime = runtime or ProcessRuntime(f"test-{os.getpid()}", subreaper=False)
    manager = JobManager(runtime, max_concurrent_jobs, state_dir=path)
    try:
        yield manager
    finally:
        await manager.close()


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def make_runtime(request: pytest.FixtureRequest) -> Callable[[], Runtime]:
    name = f"test-{os.getpid()}"
    if request.param == "process":
        return lambda: ProcessRuntime(name, subreaper=False)
    image = request.getfixturevalue("docker_image")
    return lambda: DockerRuntime(name, image=image)


async def until(manager: JobManager, job_id: str, accept: Callable[[JobState], bool]) -> JobState:
    async with asyncio.timeout(WITHIN_S):
        while not accept(state := await manager.get_status(job_id)):
            await asyncio.sleep(0.01)
        return state


async def ended(manager: JobManager, job_id: str) -> JobState:
    async with asyncio.timeout(WITHIN_S):
        return await manager.wait_job(job_id)


async def output(manager: JobManager, job_id: str) -> str:
    pieces = [piece async for piece in manager.stream_logs(job_id) if piece.stream is LogStream.STDOUT]
    return b"".join(piece.data for piece in pieces).decode()


async def test_submit_job_check_status_transitions(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as manager:
        gate = tmp_path / "gate"
        os.mkfifo(gate)
        accepted = await manager.submit_job("job", py(f"open({str(gate)!r}).read()"))
        assert accepted.state is TaskState.PENDING
        running = await until(manager, "job", lambda job: job.state is TaskState.RUNNING)
        assert running.started_at is not None
        with await asyncio.to_thread(open, gate, "w"):
            pass
        done = await ended(manager, "job")
        assert (done.state, done.exit_code, done.cause, done.error_message) == (TaskState.SUCCEEDED, 0, None, "")
        assert done.finished_at is not None
        assert done.finished_at >= running.started_at


async def test_stream_logs_from_running_job(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as manager:
        gate = tmp_path / "gate"
        os.mkfifo(gate)
        await manager.submit_job("job", py(f"print('first', flush=True); open({str(gate)!r}).read(); print('last')"))
        seen = b""
        async with asyncio.timeout(WITHIN_S):
            async for piece in manager.stream_logs("job"):
                if not seen:
                    assert (await manager.get_status("job")).state is TaskState.RUNNING
                    with await asyncio.to_thread(open, gate, "w"):
                        pass
                assert piece.offset == len(seen)
                seen += piece.data
        assert seen == b"first\nlast\n"


async def test_kill_running_job(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as manager:
        await manager.submit_job("job", ["sleep", "60"])
        await until(manager, "job", lambda job: job.state is TaskState.RUNNING)
        await manager.kill_job("job")
        done = await ended(manager, "job")
        assert (done.state, done.cause, done.exit_code) == (TaskState.STOPPED, Cause.TERMINATED, 143)
        await manager.kill_job("job")


async def test_kill_by_force_ends_a_job_that_ignores_sigterm(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as manager:
        code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
        await manager.submit_job("job", py(code))
        async with asyncio.timeout(WITHIN_S):
            async for _ in manager.stream_logs("job"):
                break
        await manager.kill_job("job", force=True)
        assert (await ended(manager, "job")).exit_code == 137


async def test_concurrent_job_limits_enforced(tmp_path: Path) -> None:
    async with manager_of(tmp_path, max_concurrent_jobs=2) as manager:
        for number in range(3):
            await manager.submit_job(f"job-{number}", ["sleep", "60"])
        for number in range(2):
            await until(manager, f"job-{number}", lambda job: job.state is TaskState.RUNNING)
        assert (await manager.get_status("job-2")).state is TaskState.PENDING
        await manager.kill_job("job-0", force=True)
        await until(manager, "job-2", lambda job: job.state is TaskState.RUNNING)
        assert (await manager.get_status("job-1")).state is TaskState.RUNNING
        for number in (1, 2):
            await manager.kill_job(f"job-{number}", force=True)
            await ended(manager, f"job-{number}")


async def test_a_job_killed_while_it_waits_never_runs(tmp_path: Path) -> None:
    async with manager_of(tmp_path, max_concurrent_jobs=1) as manager:
        await manager.submit_job("first", ["sleep", "60"])
        await until(manager, "first", lambda job: job.state is TaskState.RUNNING)
        await manager.submit_job("second", py(f"open({str(tmp_path / 'ran')!r}, 'w')"))
        await manager.kill_job("second")
        done = await ended(manager, "second")
        assert (done.state, done.exit_code) == (TaskState.STOPPED, None)
        await manager.kill_job("first", force=True)
        await ended(manager, "first")
        assert not (tmp_path / "ran").exists()


async def test_the_same_job_five_times_at_once_is_one_process(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as manager:
        command = py(f"open({str(tmp_path / 'ran')!r}, 'a').write('x')")
        await asyncio.gather(*(manager.submit_job("job", command) for _ in range(5)))
        assert (await ended(manager, "job")).state is TaskState.SUCCEEDED
        assert (await manager.submit_job("job", command)).state is TaskState.SUCCEEDED
        assert (tmp_path / "ran").read_text() == "x"


async def test_an_id_names_one_job(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as manager:
        await manager.submit_job("job", ["true"])
        with pytest.raises(AlreadyExists):
            await manager.submit_job("job", ["false"])
        await ended(manager, "job")


async def test_a_callable_gives_its_return_value(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as manager:
        await manager.submit_job("job", cloudpickle.dumps((pow, (2, 10), {})))
        done = await ended(manager, "job")
        assert done.state is TaskState.SUCCEEDED, done.error_message
        kind = Outcome.from_binary(done.result).kind
        assert kind is not None
        assert kind.field == "value"
        assert cloudpickle.loads(kind.value) == 1024


async def test_a_large_return_value_is_not_lost(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as manager:
        await manager.submit_job("job", cloudpickle.dumps((bytes, (500_000,), {})))
        done = await ended(manager, "job")
        kind = Outcome.from_binary(done.result).kind
        assert kind is not None
        assert kind.field == "value"
        assert cloudpickle.loads(kind.value) == bytes(500_000)


def _raise(text: str) -> None:
    print("about to fail")
    raise LookupError(text)


async def test_an_exception_names_type_text_and_last_lines(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as manager:
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        try:
            await manager.submit_job("job", cloudpickle.dumps((_raise, ("no shard 7",), {})))
        finally:
            cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
        done = await ended(manager, "job")
        assert (done.state, done.cause) == (TaskState.FAILED, Cause.EXCEPTION)
        assert done.error_message.startswith("LookupError: no shard 7\n")
        assert "last lines of" in done.error_message


@pytest.mark.parametrize(
    ("code", "cause", "exit_code", "says"),
    [
        ("import sys; print('oh no', file=sys.stderr); sys.exit(3)", Cause.EXIT, 3, "exited with code 3"),
        ("import os; os._exit(256 + 5)", Cause.EXIT, 5, "exited with code 5"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", Cause.SIGNAL, 137, "killed by SIGKILL"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", Cause.SIGNAL, 139, "killed by SIGSEGV"),
    ],
)
async def test_every_end_has_one_cause(tmp_path: Path, code: str, cause: Cause, exit_code: int, says: str) -> None:
    async with manager_of(tmp_path) as manager:
        await manager.submit_job("job", py(code))
        done = await ended(manager, "job")
        assert (done.state, done.cause, done.exit_code) == (TaskState.FAILED, cause, exit_code)
        assert says in done.error_message
        if exit_code == 3:
            assert done.error_message.endswith("last lines of stderr:\noh no")


async def test_the_time_limit_ends_a_job(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as manager:
        await manager.submit_job("job", ["sleep", "60"], timeout_s=0.2)
        done = await ended(manager, "job")
        assert (done.cause, done.state) == (Cause.TIME_LIMIT, TaskState.FAILED)
        assert "0.2 s" in done.error_message


async def test_a_missing_command_fails_to_start_with_127(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as manager:
        await manager.submit_job("job", ["no-such-program"])
        done = await ended(manager, "job")
        assert (done.cause, done.exit_code) == (Cause.START_FAILED, 127)
        assert "no-such-program" in done.error_message


async def test_files_beyond_the_disk_asked_for_end_a_job(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as manager:
        code = "import time; open('big', 'wb').write(bytes(3_000_000)); time.sleep(60)"
        await manager.submit_job("job", py(code), resources=ResourceSpec(cpu=1.0, disk_bytes=1_000_000))
        done = await ended(manager, "job")
        assert done.cause is Cause.DISK_FULL
        assert "1,000,000 asked for" in done.error_message


async def test_variables_reach_the_job_and_secrets_of_the_worker_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUSTER_TOKEN", "hush")
    monkeypatch.setenv("OF_THE_WORKER", "seen")
    async with manager_of(tmp_path) as manager:
        await manager.submit_job("job", ["env"], {"MINE": "yes=no"})
        await ended(manager, "job")
        variables = dict(line.split("=", 1) for line in (await output(manager, "job")).splitlines())
    assert variables["MINE"] == "yes=no"
    assert variables["OF_THE_WORKER"] == "seen"
    assert "FLUSTER_TOKEN" not in variables
    assert variables["FLUSTER_JOB_ID"] == "job"
    assert variables["RANK"] == "0"


async def test_a_variable_of_flusters_own_is_refused(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as manager:
        with pytest.raises(ValueError, match="FLUSTER_"):
            await manager.submit_job("job", ["true"], {"FLUSTER_TOKEN": "x"})


@pytest.mark.parametrize("job_id", ["", "../up", "a/b", "a..b", ".hidden", "x" * 200, "nul\0"])
async def test_an_id_that_leads_elsewhere_is_refused(tmp_path: Path, job_id: str) -> None:
    async with manager_of(tmp_path) as manager:
        with pytest.raises(ValueError, match="uid"):
            await manager.submit_job(job_id, ["true"])


async def test_an_unknown_job_is_not_found(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as manager:
        with pytest.raises(JobNotFound):
            await manager.get_status("nobody")
        with pytest.raises(JobNotFound):
            await manager.kill_job("nobody")


async def test_what_this_worker_cannot_provide_fails_the_build(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as manager:
        await manager.submit_job("job", ["true"], environment=EnvironmentSpec(docker_image="python:3.12"))
        done = await ended(manager, "job")
        assert done.cause is Cause.BUILD_FAILED
        assert "docker_image" in done.error_message


async def test_a_callable_of_another_python_fails_the_build_naming_both(
    tmp_path: Path, make_runtime: Callable[[], Runtime]
) -> None:
    async with manager_of(tmp_path, runtime=make_runtime()) as manager:
        world = EnvironmentSpec(submitter_python="3.99")
        await manager.submit_job("job", cloudpickle.dumps((print, (), {})), environment=world)
        done = await ended(manager, "job")
        assert done.cause is Cause.BUILD_FAILED
        assert "3.99" in done.error_message
        assert "{}.{}".format(*sys.version_info) in done.error_message


async def test_a_restarted_manager_goes_on_with_running_and_waiting_jobs(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with manager_of(tmp_path, max_concurrent_jobs=1) as manager:
        code = f"import os; print(os.getpid(), flush=True); open({str(gate)!r}).read(); print('through')"
        await manager.submit_job("running", py(code))
        await manager.submit_job("waiting", ["echo", "late"])
        await until(manager, "running", lambda job: job.state is TaskState.RUNNING)
    async with manager_of(tmp_path, max_concurrent_jobs=1) as manager:
        assert (await manager.get_status("running")).state is TaskState.RUNNING
        assert (await manager.get_status("waiting")).state is TaskState.PENDING
        with await asyncio.to_thread(open, gate, "w"):
            pass
        assert (await ended(manager, "running")).state is TaskState.SUCCEEDED
        assert (await ended(manager, "waiting")).state is TaskState.SUCCEEDED
        assert (await output(manager, "running")).endswith("\nthrough\n")
        assert len((await output(manager, "running")).splitlines()) == 2
    async with manager_of(tmp_path) as manager:
        assert (await manager.get_status("running")).state is TaskState.SUCCEEDED


async def test_a_manager_without_a_directory_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    runtime = ProcessRuntime(f"test-{os.getpid()}", subreaper=False)
    manager = JobManager(runtime)
    await manager.submit_job("job", ["sleep", "60"])
    await until(manager, "job", lambda job: job.state is TaskState.RUNNING)
    await manager.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
async def test_on_a_full_disk_attempts_fail_with_that_cause_and_the_worker_lives(
    tmp_path: Path, make_runtime: Callable[[], Runtime]
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = await asyncio.create_subprocess_exec("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small))
    if await mounted.wait() != 0:
        pytest.skip("needs to mount a file system")
    try:
        async with manager_of(small, runtime=make_runtime()) as manager:
            fill = "head -c 100000000 /dev/zero > big"
            await manager.submit_job("filler", ["sh", "-c", f"{fill}; exit 1"])
            done = await ended(manager, "filler")
            assert done.cause is Cause.DISK_FULL, done
            await manager.submit_job("next", ["true"])
            assert (await ended(manager, "next")).cause is Cause.DISK_FULL
            (small / "attempts" / "filler" / "work" / "big").unlink()
            await manager.submit_job("later", ["true"])
            assert (await ended(manager, "later")).state is TaskState.SUCCEEDED
    finally:
        unmounted = await asyncio.create_subprocess_exec("umount", "-l", str(small))
        assert await unmounted.wait() == 0


async def test_a_log_beyond_its_cap_loses_its_oldest_bytes_and_readers_see_a_marker(tmp_path: Path) -> None:
    runtime = ProcessRuntime(f"test-{os.getpid()}", subreaper=False)
    manager = JobManager(runtime, state_dir=tmp_path, delivery=StaysHere(cap_bytes=1 << 20, look_s=0.01))
    try:
        gate = tmp_path / "gate"
        os.mkfifo(gate)
        code = f"print('x' * 4_000_000, flush=True); open({str(gate)!r}).read(); print('last')"
        await manager.submit_job("job", py(code))
        log = tmp_path / "attempts" / "job" / "stdout"
        async with asyncio.timeout(WITHIN_S):
            while not log.exists() or log.stat().st_size < 4_000_000 or log.stat().st_blocks * 512 > 2_000_000:
                await asyncio.sleep(0.01)
        with await asyncio.to_thread(open, gate, "w"):
            pass
        assert (await ended(manager, "job")).state is TaskState.SUCCEEDED
        text = await output(manager, "job")
        assert text.startswith("[fluster: ")
        assert text.endswith("x\nlast\n")
        assert len(text) < 2_000_000
    finally:
        await manager.close()


async def test_gpus_are_handed_out_by_index_and_come_back_at_the_end(tmp_path: Path) -> None:
    def gpus(count: int) -> ResourceSpec:
        device: Oneof[Literal["gpu"], GpuDevice] = Oneof("gpu", GpuDevice(variant="auto", count=count))
        return ResourceSpec(cpu=1.0, device=device)

    say = "echo got=$CUDA_VISIBLE_DEVICES"
    runtime = ProcessRuntime(f"test-{os.getpid()}", subreaper=False)
    manager = JobManager(runtime, state_dir=tmp_path, gpus=GpuInventory(2))
    try:
        await manager.submit_job("holder", ["sh", "-c", f"{say}; exec sleep 60"], resources=gpus(1))
        await until(manager, "holder", lambda job: job.state is TaskState.RUNNING)
        for job_id in ("a", "b"):
            await manager.submit_job(job_id, ["sh", "-c", say], resources=gpus(1))
            await ended(manager, job_id)
            assert await output(manager, job_id) == "got=1\n"
        await manager.submit_job("none", ["sh", "-c", say])
        await ended(manager, "none")
        assert await output(manager, "none") == "got=\n"
        await manager.submit_job("both", ["sh", "-c", say], resources=gpus(2))
        await until(manager, "both", lambda job: job.state is TaskState.BUILDING)
        await manager.kill_job("holder", force=True)
        await ended(manager, "both")
        assert await output(manager, "both") == "got=0,1\n"
        await manager.submit_job("many", ["true"], resources=gpus(3))
        assert (await ended(manager, "many")).cause is Cause.BUILD_FAILED
    finally:
        await manager.close()
