"""A worker under a controller: the whole daemon but for its process, with real attempts and real RPC."""

import asyncio
import contextlib
import hashlib
import io
import os
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from tests.worker.fakes import JOIN, WITHIN_S, FakeController, controller, refuse_always

from fluster.cluster.worker.link import ControllerLink
from fluster.cluster.worker.logs import LogShipper
from fluster.cluster.worker.manager import JobManager
from fluster.cluster.worker.messages import blob_payload, callable_entrypoint, command_entrypoint, inline_payload
from fluster.cluster.worker.process_runtime import ProcessRuntime
from fluster.cluster.worker.ship import ToController
from fluster.cluster.worker.state import WorkerState
from fluster.cluster.worker.sync import Sync
from fluster.cluster.worker.variables import Surroundings
from fluster.errors import NotPermitted
from fluster.rpc.gen.fluster.cluster.v1.controller_pb import AttemptSpec, RegisterWorkerRequest
from fluster.rpc.gen.fluster.cluster.v1.types_pb import (
    Cause,
    EntrypointSpec,
    EnvironmentSpec,
    Outcome,
    ResourceSpec,
    TaskState,
    WorkerResources,
)


class Worker:
    """What the daemon is made of; `done` ends when Sync does."""

    def __init__(
        self, state_dir: Path, address: str, *, join_token: str | None = JOIN, idle_exit_s: float | None = None
    ) -> None:
        self.now = time.monotonic
        self.state = WorkerState(state_dir, worker_id="w-test")
        self.link = ControllerLink(address, self.state.identity.token)
        self.sync = Sync(
            self.link,
            self.state,
            RegisterWorkerRequest(resources=WorkerResources(cpu=2.0)),
            join_token=lambda: join_token,
            clock=lambda: self.now(),
            idle_exit_s=idle_exit_s,
        )
        shipper = LogShipper(self.link.push_logs)
        self.manager = JobManager(
            ProcessRuntime(f"test-{os.getpid()}", subreaper=False),
            state_dir=state_dir,
            surroundings=Surroundings("w-test", address, base=dict(os.environ)),
            delivery=ToController(self.link, shipper),
            on_change=self.sync.changed,
        )
        self.done = asyncio.create_task(self.sync.run(self.manager))
        self._shipping = asyncio.create_task(shipper.run())

    async def close(self) -> None:
        for task in (self.done, self._shipping):
            task.cancel()
        await asyncio.gather(self.done, self._shipping, return_exceptions=True)
        await self.manager.close()
        self.link.close()
        self.state.close()


@asynccontextmanager
async def worker(state_dir: Path, address: str, **options: Any) -> AsyncIterator[Worker]:
    made = Worker(state_dir, address, **options)
    try:
        yield made
    finally:
        await made.close()


def command(*argv: str, **more: Any) -> AttemptSpec:
    fields: dict[str, Any] = {"num_tasks": 1, "world_size": 1, "attempt": 1, "job_id": "job-1", "token": "flt_secret"}
    return AttemptSpec(entrypoint=command_entrypoint(argv), **{**fields, **more})


def py(code: str, **more: Any) -> AttemptSpec:
    return command(sys.executable, "-c", code, **more)


def running(fake: FakeController, uid: str) -> Callable[[], bool]:
    return lambda: (seen := fake.observed(uid)) is not None and seen.state is TaskState.RUNNING


async def open_gate(gate: Path) -> None:
    with await asyncio.to_thread(open, gate, "w"):
        pass


async def test_a_worker_joins_and_runs_what_is_desired(tmp_path: Path) -> None:
    async with controller() as fake, worker(tmp_path, fake.address):
        await fake.want("a-1", command("echo", "hello"))
        end = await fake.end_of("a-1")
        assert (end.exit_code, end.cause) == (0, Cause.UNSPECIFIED)
        assert fake.registered[0].worker_id == "w-test"
        assert fake.registered[0].credential_sha256 != ""


async def test_logs_have_arrived_completely_when_the_end_is_reported(tmp_path: Path) -> None:
    async with controller() as fake, worker(tmp_path, fake.address):
        await fake.want("a-1", py("for n in range(200_000): print('line', n)"))
        await fake.end_of("a-1")
        assert fake.logs_at_end["a-1"] == b"".join(b"line %d\n" % n for n in range(200_000))


async def test_an_ended_attempt_is_dropped_with_its_directory(tmp_path: Path) -> None:
    async with controller() as fake, worker(tmp_path, fake.address):
        await fake.want("a-1", command("true"))
        await fake.end_of("a-1")
        await fake.until(lambda: not fake.syncs[-1].observed)
        assert not (tmp_path / "attempts" / "a-1").exists()


async def test_the_stop_flag_ends_a_running_attempt(tmp_path: Path) -> None:
    async with controller() as fake, worker(tmp_path, fake.address):
        await fake.want("a-1", command("sleep", "60"))
        await fake.until(running(fake, "a-1"))
        await fake.want("a-1", stop=True)
        end = await fake.end_of("a-1")
        assert (end.cause, end.stop_requested, end.exit_code) == (Cause.TERMINATED, True, 143)


async def test_an_attempt_to_be_stopped_before_it_came_never_runs(tmp_path: Path) -> None:
    async with controller() as fake, worker(tmp_path, fake.address):
        await fake.want("a-1", py(f"open({str(tmp_path / 'ran')!r}, 'w')"), stop=True)
        end = await fake.end_of("a-1")
        assert (end.cause, end.has_field("exit_code")) == (Cause.TERMINATED, False)
        assert not (tmp_path / "ran").exists()


async def test_an_attempt_that_is_not_desired_any_more_is_stopped_and_dropped(tmp_path: Path) -> None:
    async with controller() as fake, worker(tmp_path, fake.address):
        await fake.want("a-1", py("import os, time; print(os.getpid(), flush=True); time.sleep(60)"))
        await fake.until(lambda: fake.log_of("a-1"))
        pid = int(fake.log_of("a-1"))
        await fake.unwant("a-1")
        await fake.until(lambda: not fake.syncs[-1].observed)
        assert not Path(f"/proc/{pid}").exists()
        assert "a-1" not in fake.ends


async def test_rank_0_tells_its_master_port_before_the_others_start(tmp_path: Path) -> None:
    async with controller() as fake, worker(tmp_path, fake.address):
        gang: dict[str, Any] = {"num_tasks": 2, "world_size": 2, "local_world_size": 2}
        await fake.want("a-0", command("sh", "-c", "echo $MASTER_ADDR:$MASTER_PORT $RANK; sleep 60", **gang))
        await fake.until(lambda: (seen := fake.observed("a-0")) is not None and seen.master_port)
        first = fake.observed("a-0")
        assert first is not None
        await fake.want(
            "a-1",
            command(
                *("sh", "-c", "echo $MASTER_ADDR:$MASTER_PORT $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE"),
                **gang,
                task_index=1,
                local_rank=1,
                master_port=first.master_port,
            ),
        )
        await fake.end_of("a-1")
        assert fake.log_of("a-1").decode() == f"127.0.0.1:{first.master_port} 1 2 1 2\n"
        await fake.until(lambda: fake.log_of("a-0"))
        assert fake.log_of("a-0").decode() == f"127.0.0.1:{first.master_port} 0\n"
        await fake.want("a-0", stop=True)
        await fake.end_of("a-0")


async def test_the_token_comes_as_a_private_file_and_never_as_a_variable(tmp_path: Path) -> None:
    async with controller() as fake, worker(tmp_path, fake.address):
        await fake.want("a-1", command("sh", "-c", "stat -c %a $FLUSTER_TOKEN_FILE; cat $FLUSTER_TOKEN_FILE; env"))
        await fake.end_of("a-1")
        mode, rest = fake.log_of("a-1").decode().split("\n", 1)
        assert mode == "600"
        assert rest.startswith("flt_secret")
        assert rest.count("flt_secret") == 1
        assert f"FLUSTER_CLUSTER_ADDRESS={fake.address}" in rest
        assert "FLUSTER_ATTEMPT_UID=a-1" in rest


async def test_a_large_callable_and_a_large_result_travel_as_blobs(tmp_path: Path) -> None:
    async with controller() as fake, worker(tmp_path, fake.address):
        pickled = cloudpickle.dumps((bytes.__add__, (os.urandom(3_000_000), b"!"), {}))
        sha256 = hashlib.sha256(pickled).hexdigest()
        fake.blobs[sha256] = bytearray(pickled)
        entrypoint: EntrypointSpec = callable_entrypoint(blob_payload(sha256))
        await fake.want("a-1", AttemptSpec(entrypoint=entrypoint, num_tasks=1, world_size=1))
        end = await fake.end_of("a-1")
        assert end.cause is Cause.UNSPECIFIED, end.error_message
        assert end.result is not None
        content = end.result.content
        assert content is not None
        assert content.field == "blob"
        kind = Outcome.from_binary(bytes(fake.blobs[content.value])).kind
        assert kind is not None
        assert kind.field == "value"
        assert len(cloudpickle.loads(kind.value)) == 3_000_001


async def test_a_damaged_callable_fails_the_build_and_not_by_the_users_fault(tmp_path: Path) -> None:
    async with controller() as fake, worker(tmp_path, fake.address):
        fake.blobs["ab" * 32] = bytearray(b"something else")
        await fake.want("a-1", AttemptSpec(entrypoint=callable_entrypoint(blob_payload("ab" * 32)), num_tasks=1))
        payload = inline_payload(b"abc")
        payload.sha256 = "cd" * 32
        await fake.want("a-2", AttemptSpec(entrypoint=callable_entrypoint(payload), num_tasks=1))
        for uid in ("a-1", "a-2"):
            end = await fake.end_of(uid)
            assert (end.cause, end.fluster_fault, end.user_fault) == (Cause.BUILD_FAILED, True, False)


def hostile_workspace() -> bytes:
    buffer, entry = io.BytesIO(), tarfile.TarInfo("../../../evil")
    entry.size = 1
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(entry, io.BytesIO(b"x"))
    return buffer.getvalue()


async def test_a_workspace_that_leads_out_or_arrives_damaged_fails_the_build_and_harms_nobody(tmp_path: Path) -> None:
    async with controller() as fake, worker(tmp_path / "state" / "worker", fake.address):
        content = hostile_workspace()
        hostile = hashlib.sha256(content).hexdigest()
        fake.blobs = {hostile: bytearray(content), "ab" * 32: bytearray(b"something else")}
        for uid, sha256 in (("a-1", hostile), ("a-2", "ab" * 32)):
            spec = py("print('ran')")
            spec.environment = EnvironmentSpec(workspace_hash=sha256)
            await fake.want(uid, spec)
        end = await fake.end_of("a-1")
        assert (end.cause, end.user_fault) == (Cause.BUILD_FAILED, True)
        assert "must not be unpacked: '../../../evil' is no path inside" in end.error_message
        end = await fake.end_of("a-2")
        assert (end.cause, end.fluster_fault) == (Cause.BUILD_FAILED, True)
        assert not list(tmp_path.rglob("evil"))
        await fake.want("a-3", py("print('lives')"))
        assert (await fake.end_of("a-3")).cause is Cause.UNSPECIFIED


async def test_a_controller_that_goes_away_and_returns_costs_nothing(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with controller() as fake, worker(tmp_path / "w", fake.address):
        await fake.want("a-1", py(f"print(1, flush=True); open({str(gate)!r}).read(); print(2)"))
        await fake.until(lambda: fake.log_of("a-1") == b"1\n")
        assert fake.server is not None
        port = fake.server.port
        await fake.stop()
        await open_gate(gate)
        fake.epoch += 1
        await fake.serve(port)
        end = await fake.end_of("a-1")
        assert end.exit_code == 0
        assert fake.logs_at_end["a-1"] == b"1\n2\n"


async def test_a_log_store_that_lost_its_last_bytes_gets_them_again(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with controller() as fake, worker(tmp_path / "w", fake.address):
        await fake.want("a-1", py(f"print('a' * 999, flush=True); open({str(gate)!r}).read(); print('b' * 999)"))
        await fake.until(lambda: len(fake.log_of("a-1")) == 1000)
        for log in fake.logs.values():
            del log[500:]
        real = fake.push_logs

        async def as_a_store_does(request: Any, ctx: Any) -> Any:
            from fluster.rpc.gen.fluster.cluster.v1.controller_pb import LogPosition, PushLogsResponse

            sizes = {(c.attempt_uid, c.stream): len(fake.log_of(c.attempt_uid, c.stream)) for c in request.chunks}
            if any(c.offset > sizes[c.attempt_uid, c.stream] for c in request.chunks):
                return PushLogsResponse(
                    positions=[LogPosition(attempt_uid=u, stream=s, size=n) for (u, s), n in sizes.items()]
                )
            return await real(request, ctx)

        fake.push_logs = as_a_store_does  # type: ignore[method-assign]
        await fake.stop()
        await fake.serve(int(fake.address.rpartition(":")[2]))
        await open_gate(gate)
        await fake.end_of("a-1")
        assert fake.logs_at_end["a-1"] == b"a" * 999 + b"\n" + b"b" * 999 + b"\n"


@pytest.mark.parametrize("other", [{"epoch": 4}, {"incarnation": "copy"}], ids=["older", "copy"])
async def test_a_controller_of_an_older_epoch_or_on_a_copy_is_not_obeyed(tmp_path: Path, other: dict[str, Any]) -> None:
    async with controller(epoch=5) as fake, worker(tmp_path, fake.address):
        await fake.want("a-1", command("sleep", "60"))
        await fake.until(running(fake, "a-1"))
        obeyed = {name: getattr(fake, name) for name in other}
        vars(fake).update(other)
        await fake.unwant("a-1")
        before = len(fake.syncs)
        await fake.until(lambda: len(fake.syncs) >= before + 2)
        assert running(fake, "a-1")()
        vars(fake).update(obeyed)
        await fake.until(lambda: not fake.syncs[-1].observed)


@pytest.mark.parametrize("other", [{"epoch": 4}, {"incarnation": "copy"}], ids=["older", "copy"])
async def test_a_restarted_worker_remembers_whom_it_obeyed(tmp_path: Path, other: dict[str, Any]) -> None:
    async with controller(epoch=5) as fake:
        async with worker(tmp_path, fake.address):
            await fake.until(lambda: fake.syncs)
        vars(fake).update(other)
        async with worker(tmp_path, fake.address):
            await fake.until(lambda: len(fake.registered) >= 3)
        assert {(each.known_epoch, each.known_incarnation) for each in fake.syncs} == {(5, "controller")}


async def test_when_the_lease_runs_out_everything_is_stopped_and_reported_as_lost(tmp_path: Path) -> None:
    async with controller(lease_s=1.5) as fake, worker(tmp_path, fake.address):
        await fake.want("a-1", py("import os, time; print(os.getpid(), flush=True); time.sleep(60)"))
        await fake.until(lambda: fake.log_of("a-1"))
        pid, port = int(fake.log_of("a-1")), int(fake.address.rpartition(":")[2])
        await fake.stop()
        async with asyncio.timeout(WITHIN_S):
            while Path(f"/proc/{pid}").exists():
                await asyncio.sleep(0.02)
        await fake.serve(port)
        end = await fake.end_of("a-1")
        assert (end.cause, end.stop_requested) == (Cause.WORKER_LOST, False)


async def test_a_worker_that_was_away_for_longer_than_its_lease_stops_what_it_finds(tmp_path: Path) -> None:
    async with controller(lease_s=2.0) as fake:
        async with worker(tmp_path, fake.address):
            await fake.want("a-1", command("sleep", "60"))
            await fake.until(running(fake, "a-1"))
        until = time.monotonic() + 2.1
        while time.monotonic() < until:
            await asyncio.sleep(0.05)
        async with worker(tmp_path, fake.address):
            end = await fake.end_of("a-1")
        assert end.cause is Cause.WORKER_LOST


async def test_a_restarted_worker_renews_its_credential_with_the_old_one_and_keeps_its_attempts(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with controller() as fake:
        async with worker(tmp_path / "w", fake.address):
            code = f"import os; print(os.getpid(), flush=True); open({str(gate)!r}).read(); print('on')"
            await fake.want("a-1", py(code))
            await fake.until(lambda: fake.log_of("a-1"))
        pid = int(fake.log_of("a-1"))
        async with worker(tmp_path / "w", fake.address, join_token=None):
            await fake.until(lambda: len({each.incarnation for each in fake.syncs}) == 2)
            first = next(each for each in fake.syncs if each.incarnation == fake.syncs[-1].incarnation)
            assert [each.attempt_uid for each in first.observed] == ["a-1"]
            assert first.observed[0].state is TaskState.RUNNING
            await open_gate(gate)
            end = await fake.end_of("a-1")
        assert end.exit_code == 0
        assert fake.logs_at_end["a-1"].decode() == f"{pid}\non\n"
        assert len({each.credential_sha256 for each in fake.registered}) == 2
        assert len({each.incarnation for each in fake.registered}) == 2


async def test_an_end_that_was_not_heard_is_reported_by_the_next_daemon(tmp_path: Path) -> None:
    async with controller() as fake:
        fake.drop_ended = False
        async with worker(tmp_path, fake.address):
            await fake.want("a-1", command("sh", "-c", "exit 7"))
            await fake.end_of("a-1")
        fake.ends.clear()
        async with worker(tmp_path, fake.address):
            assert (await fake.end_of("a-1")).exit_code == 7


async def test_an_unknown_incarnation_registers_again(tmp_path: Path) -> None:
    async with controller() as fake, worker(tmp_path, fake.address):
        await fake.until(lambda: fake.syncs)
        fake.reregister = True
        await fake.change()
        await fake.until(lambda: len(fake.registered) == 2)
        await fake.want("a-1", command("true"))
        await fake.end_of("a-1")


async def test_a_worker_that_is_let_go_stops_everything_reports_and_ends(tmp_path: Path) -> None:
    async with controller() as fake, worker(tmp_path, fake.address) as leaving:
        await fake.want("a-1", command("sleep", "60"))
        await fake.until(running(fake, "a-1"))
        fake.leave = True
        await fake.change()
        end = await fake.end_of("a-1")
        assert (end.cause, end.stop_requested) == (Cause.PREEMPTED, False)
        async with asyncio.timeout(WITHIN_S):
            await leaving.done
        assert leaving.sync.has_left
        assert fake.syncs[-1].observed  # with the report it was done, and asked no more


async def test_a_refused_worker_says_so(tmp_path: Path) -> None:
    async with controller() as fake:
        fake.refuse = refuse_always("RegisterWorker")
        async with worker(tmp_path, fake.address) as refused:
            with pytest.raises(NotPermitted, match="not you"):
                async with asyncio.timeout(WITHIN_S):
                    await asyncio.shield(refused.done)


async def test_a_worker_without_controller_and_work_ends_if_told_to(tmp_path: Path) -> None:
    async with controller(lease_s=1.0) as fake, worker(tmp_path, fake.address, idle_exit_s=0.5) as idle:
        await fake.until(lambda: fake.syncs)
        await fake.stop()
        async with asyncio.timeout(WITHIN_S):
            await idle.done
        assert not idle.sync.has_left
        await fake.serve()


async def test_logs_of_an_attempt_nobody_wants_do_not_hold_up_others(tmp_path: Path) -> None:
    async with controller() as fake, worker(tmp_path, fake.address):

        def refuse(method: str, request: Any) -> None:
            if method == "PushLogs" and any(chunk.attempt_uid == "a-1" for chunk in request.chunks):
                raise ValueError("no such attempt")

        fake.refuse = refuse
        await fake.want("a-1", command("echo", "unwanted"))
        await fake.want("a-2", command("echo", "wanted"))
        await fake.end_of("a-1")
        await fake.end_of("a-2")
        assert fake.logs_at_end["a-2"] == b"wanted\n"


async def test_a_second_daemon_on_one_state_directory_is_refused(tmp_path: Path) -> None:
    from fluster.errors import AlreadyExists

    with contextlib.closing(WorkerState(tmp_path)), pytest.raises(AlreadyExists, match=str(os.getpid())):
        WorkerState(tmp_path)


async def test_environment_given_by_a_local_cluster_is_used(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    async with controller() as fake, worker(tmp_path / "w", fake.address):
        world = EnvironmentSpec(working_directory=str(tmp_path / "here"), env_vars={"X": "1"})
        await fake.want("a-1", command("sh", "-c", "pwd; echo $X $TMPDIR", environment=world, resources=ResourceSpec()))
        await fake.end_of("a-1")
        lines = fake.log_of("a-1").decode().split("\n")
        assert lines[0] == str(tmp_path / "here")
        assert lines[1].startswith("1 ")
        assert "/attempts/a-1/tmp" in lines[1]
