"""A controller as a whole: how it starts, what it leaves, what ends it."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.controller.remote import (
    SERVE,
    Api,
    Site,
    info,
    inline,
    job_spec,
    launch,
    new_id,
    process,
    site,
    wait_for,
)

from fluster import Cluster, JobStatus
from fluster.cluster.backend.local import LocalBackend
from fluster.cluster.controller import main, retention, turns
from fluster.cluster.controller.server import ControllerServer
from fluster.cluster.controller.store import Store, StoreFull
from fluster.errors import FlusterError, ResourceExhausted, Unreachable
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb

# In this process.


def test_a_controller_serves_until_it_is_shut_down() -> None:
    server = ControllerServer(namespace="team", token="correct-horse")
    with pytest.raises(RuntimeError, match="call `start\\(\\)` first"):
        _ = server.address
    port = server.start()
    state_dir = server._config.state_dir

    assert (server.address, server.token) == (f"http://127.0.0.1:{port}", "correct-horse")
    with Cluster(server.address, token="correct-horse") as cluster:
        assert (cluster.namespace, cluster.list_jobs()) == ("team", [])
    assert (state_dir / "fluster.db").exists()

    server.shutdown()
    server.shutdown()
    assert not state_dir.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_a_state_directory_is_kept_with_its_token(tmp_path: Path) -> None:
    tokens = []
    for _ in range(2):
        with ControllerServer(state_dir=str(tmp_path)) as server:
            tokens.append(server.token)
    assert tokens == [(tmp_path / "admin.token").read_text().strip()] * 2


def test_a_second_controller_on_a_state_directory_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with ControllerServer(state_dir=tmp_path) as first:
        second = ControllerServer(state_dir=tmp_path)
        with pytest.raises(FlusterError, match=str(tmp_path)):
            second.start()
        with Cluster(first.address, token=first.token) as cluster:
            assert cluster.list_jobs() == []


def test_a_port_that_is_taken_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = ControllerServer(port=taken.getsockname()[1])
        with pytest.raises(OSError, match="address already in use"):
            server.start()
    assert not server._config.state_dir.exists()


def test_a_bad_namespace_is_refused() -> None:
    with pytest.raises(ValueError, match="namespace must be 1 to 128 of"):
        ControllerServer(namespace="../x")


def test_a_controller_with_a_local_backend_runs_jobs_on_this_machine() -> None:
    """Job launch allocates a VM and dispatches to its worker."""
    with site(backend=LocalBackend()) as local, Cluster(local.address, token=local.server.token) as cluster:
        job = cluster.submit(lambda: 42)
        assert cluster.wait(job.job_id, timeout=30).status is JobStatus.SUCCEEDED
        assert job.result() == 42
        (worker,) = cluster.workers()
        assert worker.resources.cpu >= 2
        (allocation,) = local.admin(pb.ListAllocationsRequest()).allocations
        assert (allocation.allocation_id, allocation.backend, allocation.status) == ("local-0", "local", "ready")


def test_long_polls_are_told_when_the_controller_stops() -> None:
    with site() as one, ThreadPoolExecutor(2) as pool:
        worker = one.worker()
        job_id, _, _ = one.task(worker)
        waits = [
            pool.submit(Api(one.address, one.server.token), pb.WaitJobsRequest(job_ids=[job_id], wait_s=20)),
            pool.submit(Api(one.address, worker.token), worker.request(wait_s=20)),
        ]
        time.sleep(0.2)
        began = time.monotonic()
        one.server.shutdown()
        assert time.monotonic() - began < 3
        for each in waits:
            with pytest.raises(Unreachable):
                each.result(5)


# Faults of the disk.


def test_running_work_goes_on_and_ends_although_the_disk_is_full(alone: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "FULL_RETRY_S", 0.05)
    worker = alone.worker()
    job_id, uid, task = alone.task(worker)
    other, running, _ = alone.task(worker)
    full = threading.Event()
    full.set()
    commit = Store.commit

    def limited(self: Store, changes: Any) -> list[int]:
        if full.is_set():
            raise StoreFull("no space left")
        return commit(self, changes)

    monkeypatch.setattr(Store, "commit", limited)
    with pytest.raises(ResourceExhausted, match="disk is full"):
        launch(alone.admin)
    with pytest.raises(ResourceExhausted, match="disk is full"):
        task(pb.RegisterEndpointRequest(request_id=new_id(), name="a", address="127.0.0.1:1"))
    worker.report(uid, exit=types_pb.ExitReport(exit_code=0, finished_at=2.0, result=inline(b"42")))
    answer = worker.sync(wait_s=10)  # its end cannot be kept yet, but its lease goes on

    assert (answer.lease_s, answer.superseded, {each.attempt_uid for each in answer.desired}) == (
        300.0,
        False,
        {uid, running},
    )
    assert info(alone.admin, job_id).status is types_pb.JobStatus.RUNNING
    full.clear()
    worker.sync()
    assert info(alone.admin, job_id).status is types_pb.JobStatus.SUCCEEDED
    assert alone.admin(pb.GetResultRequest(job_id=job_id)).result == inline(b"42")
    assert info(alone.admin, other).status is types_pb.JobStatus.RUNNING
    again = pb.LaunchJobRequest(request_id="b", spec=job_spec(cpu=1_000.0))
    wait_for(lambda: alone.admin.post(again).status == 200, "room to be found")


def test_history_that_cannot_be_pruned_now_is_pruned_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_EVERY_S", 0.01)
    outcomes: list[type[Exception] | None] = [StoreFull, OSError, None]
    seen: list[object] = []

    async def prune(controller: object, before: float, keep: int) -> None:
        outcome = outcomes[min(len(seen), 2)]
        seen.append(outcome)
        if outcome is not None:
            raise outcome("full")

    monkeypatch.setattr(retention, "prune", prune)
    with site() as one:
        wait_for(lambda: len(seen) > 3, "retention to go on")
        assert one.admin(pb.ListJobsRequest()).jobs == []


def test_old_jobs_go_with_their_logs_and_results(alone: Site) -> None:
    worker = alone.worker()
    job_ids = []
    for _ in range(3):
        job_id, uid, _ = alone.task(worker)
        worker.push(uid, b"line\n")
        worker.end(uid, result=inline(b"x"))
        job_ids.append(job_id)
    going_on, uid, _ = alone.task(worker)
    worker.push(uid, b"line\n")
    running = alone.server._running
    assert running is not None
    controller = running.controller

    asyncio.run(retention.prune(controller, before=0.0, keep_jobs=1))

    assert [job.job_id for job in alone.admin(pb.ListJobsRequest()).jobs] == [going_on, job_ids[-1]]
    assert set(controller.logs.job_ids()) == {going_on, job_ids[-1]}
    assert alone.admin.post(pb.GetJobStatusRequest(job_id=job_ids[0])).code == "not_found"
    assert controller.state.jobs.keys() == {going_on}


def test_looking_through_a_long_history_for_what_is_old_holds_up_nobody(
    alone: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = alone.server._running
    assert running is not None
    controller = running.controller
    for number in range(100):
        (alone.server._config.state_dir / "logs" / f"j{number}").mkdir()
    looked: set[int] = set()

    def look(*_: object) -> str:
        looked.add(threading.get_ident())
        return "a job"

    monkeypatch.setattr(Store, "job", look)

    asyncio.run(retention.prune(controller, before=0.0, keep_jobs=1))

    assert looked
    assert threading.get_ident() not in looked


BROKEN = """
import sys
from fluster.cluster.controller import main
from fluster.cluster.controller.store import Store, StoreFailed
commit = Store.commit
def failing(self, changes):
    if any(getattr(row, "name", "") == "break-it" for row in changes.rows.values()):
        raise StoreFailed("the disk is broken")
    return commit(self, changes)
Store.commit = failing
sys.exit(main.main(["serve", "--state-dir", sys.argv[1], "--port", "0"]))
"""


def test_a_broken_disk_ends_the_process_with_an_error_after_telling_who_waits(tmp_path: Path) -> None:
    state_dir, errors = tmp_path / "state", tmp_path / "stderr"
    with process([sys.executable, "-c", BROKEN, str(state_dir)], errors) as (controller, _, api):
        kept = launch(api, cpu=1_000.0, name="kept")
        with pytest.raises(Unreachable, match="whether this was taken in is unknown"):
            launch(api, cpu=1_000.0, name="break-it")
        assert controller.wait(10) == 1
    assert "the disk is broken" in errors.read_text()
    with site(state_dir=state_dir) as again:
        assert [job.job_id for job in again.admin(pb.ListJobsRequest()).jobs] == [kept]


# As a process.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0", "--tls-cert", "x.pem"], "--tls-cert and --tls-key belong together"),
        (["--insecure-plaintext-network", "--worker-certificates"], "exclude each other"),
        (["--worker-certificates"], "--worker-certificates needs encrypted connections"),
        (["--port", "65536"], "port must be a whole number from 0 to 65535"),
        (["--port", "-1"], "port must be a whole number from 0 to 65535"),
        (["--worker-lease", "nan"], "worker_lease_s must be a number of seconds"),
        (["--namespace", "../x"], "namespace must be 1 to 128 of"),
        (["--backend", "local", "--workers", "0"], "the number of workers must be a whole number from 1"),
        (["--backend", "local", "--cpu", "-1"], "cpu must be a number of cores"),
    ],
)
def test_what_cannot_be_is_refused_with_one_line_and_exit_code_2(
    tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["serve", "--state-dir", str(tmp_path / "state"), *options]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("fluster controller: ")
    assert words in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_beyond_loopback_nothing_is_bound_that_cannot_be_encrypted(
    tmp_path: Path, host: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)  # as where the library was left out
    assert main.main(["serve", "--state-dir", str(tmp_path / "state"), "--host", host]) == 2
    told = capsys.readouterr().err
    assert f"{host} is reachable from the network, and tokens would cross it in plain text" in told
    assert told.count("\n") == 1
    assert not (tmp_path / "state").exists()


def test_a_token_that_others_can_read_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ControllerServer(state_dir=tmp_path):
        pass
    (tmp_path / "admin.token").chmod(0o644)

    assert main.main(["serve", "--state-dir", str(tmp_path), "--port", "0"]) == 1
    assert "admin.token" in capsys.readouterr().err


def test_sigterm_ends_it_quietly_and_what_ran_is_known_again(tmp_path: Path) -> None:
    state_dir, errors = tmp_path / "state", tmp_path / "stderr"
    for epoch in (1, 2):
        with process([*SERVE, "--state-dir", str(state_dir), "--port", "0"], errors) as (controller, said, api):
            assert said["epoch"] == epoch
            if epoch == 1:
                launch(api, name="stays", cpu=1_000.0)
            assert [job.name for job in api(pb.ListJobsRequest()).jobs] == ["stays"]
            controller.send_signal(signal.SIGTERM)
            assert controller.wait(10) == 0
        assert "Traceback" not in errors.read_text()


def test_a_stranger_writes_no_line_of_its_own_into_the_log(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    with process([*SERVE, "--state-dir", str(tmp_path / "state"), "--port", "0"], errors) as (_, said, _):
        plain = http.client.HTTPConnection(said["address"].removeprefix("http://"), timeout=10)
        plain.request("POST", "/x%0A2026-01-01%20forged%1B%5D0;title%07/y", b"{}", {"content-type": "application/json"})
        assert plain.getresponse().status == 401
        plain.close()
        wait_for(lambda: "forged" in errors.read_text(), "the line on the refused request")
    assert not [line for line in errors.read_text().splitlines() if line.startswith("2026-01-01")]
    assert "\x1b" not in errors.read_text()


def test_controller_and_its_service_never_load_pickle_nor_import_actors(tmp_path: Path) -> None:
    code = (
        "import sys, fluster.cluster.controller.main\n"
        "sys.exit(any(m in ('cloudpickle', 'dill') or m.startswith('fluster.actor') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 0
