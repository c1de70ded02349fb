"""What runs, and what was asked, while processes are killed again and again.

`FLUSTER_CHAOS_ROUNDS` sets how many kills there are, `FLUSTER_CHAOS_LOSSES` and `FLUSTER_CHAOS_LAUNCHES` the others.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tests.e2e import lab
from tests.e2e.lab import Witness
from tests.e2e.outside import Server
from tests.e2e.test_chaos import insist

from fluster import Cause, Cluster, Entrypoint, JobRequest, JobStatus, LocalCluster, ResourceExhausted

_KILLS = int(os.environ.get("FLUSTER_CHAOS_ROUNDS", "3"))
_LOSSES = int(os.environ.get("FLUSTER_CHAOS_LOSSES", "2"))
_LAUNCHES = int(os.environ.get("FLUSTER_CHAOS_LAUNCHES", "200"))
pytestmark = pytest.mark.timeout(90 + 6 * _KILLS + 20 * _LOSSES + _LAUNCHES // 5)
_PROVEN_S = 25.0
"""So soon work is tried again whose end is proven."""
_THREADS = 4


@pytest.mark.parametrize("victim", [lab.controller, lab.worker], ids=["the controller", "the worker"])
def test_jobs_run_on_however_often_a_process_is_killed(
    tmp_path: Path, victim: Callable[[LocalCluster], lab.Process]
) -> None:
    witnesses = [Witness.at(tmp_path / f"witness-{number}") for number in range(3)]
    with LocalCluster(cpu=4, memory="8GB") as cluster:
        jobs = [cluster.submit(each.request(lingers=True)) for each in witnesses]
        processes = [each.wait_for_run() for each in witnesses]
        for _ in range(_KILLS):
            if random.random() < 0.8:
                insist(partial(cluster.list_jobs, limit=1))  # a controller that never serves lets leases run out
            victim(cluster).kill()
            time.sleep(random.uniform(0.0, 0.3))  # the moment of the next kill is what is tried out
            assert all(process.runs for process in processes)
        for job, witness, process in zip(jobs, witnesses, processes, strict=True):
            witness.let_end()
            count = insist(partial(job.result, timeout=120.0))
            assert lab.printed(cluster, job.job_id) == list(range(count))
            assert (job.info().tasks[0].attempt, witness.runs) == (1, [process.pid])


def test_lost_work_is_tried_again_as_often_as_its_budget_allows_and_soon(tmp_path: Path) -> None:
    """A worker dies with all it runs, as when its machine restarts: it comes back without the attempt."""
    witness = Witness.at(tmp_path / "witness")
    waited = []
    with LocalCluster(cpu=4, memory="8GB") as cluster:
        job = cluster.submit(witness.request(max_preemptions=_LOSSES))
        for number in range(1, _LOSSES + 2):
            process = witness.wait_for_run(number)
            record = lab.running(cluster._state_dir, job.job_id, attempt=number)
            lab.worker(cluster).kill()
            for each in (lab.Process.of(record.shim), process):
                if each.runs:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(each.pid, signal.SIGKILL)
            died_at = time.monotonic()
            if number <= _LOSSES:
                lab.wait_until(lambda number=number: len(witness.runs) > number, "it runs again", 60.0)  # type: ignore[misc]
                waited.append(time.monotonic() - died_at)
        info = job.wait(timeout=lab.WITHIN_S)
        assert (info.status, info.cause, info.tasks[0].attempt) == (JobStatus.FAILED, Cause.WORKER_LOST, _LOSSES + 1)
        assert len(witness.runs) == _LOSSES + 1
    print(f"{_LOSSES} losses, tried again after {sorted(waited)[len(waited) // 2]:.2f} s, at most {max(waited):.2f} s")
    assert max(waited) < _PROVEN_S


class Asker:
    """Launches jobs that nobody runs, each one to five times under one request id, each from any thread."""

    def __init__(self, server: Server, seed: int) -> None:
        self.answers: dict[str, set[str]] = {}
        self.sent = 0
        self._server = server
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        names = [f"job-{number}" for number in range(_LAUNCHES)]
        self._queue = [name for name in names for _ in range(self._chance.randint(1, 5))]
        # Near each other, so that one overtakes the other, yet not one after the other.
        self._queue.sort(key=lambda name: int(name.split("-")[1]) + self._chance.uniform(0, 30), reverse=True)

    @property
    def is_done(self) -> bool:
        return not self._queue

    def ask(self) -> None:
        with self._server.client() as client:
            while True:
                with self._lock:
                    if not self._queue:
                        return
                    name = self._queue.pop()
                job_id = insist(partial(_launch, client, name))
                with self._lock:
                    self.sent += 1
                    self.answers.setdefault(name, set()).add(job_id)


def _launch(client: Cluster, name: str) -> str:
    while True:
        try:
            return client.launch(JobRequest(name, Entrypoint.from_command("true"), lab.SMALL, request_id=name))
        except ResourceExhausted:  # more waits than it can queue
            time.sleep(0.1)


def test_each_launch_makes_one_job_however_often_it_is_sent_and_whoever_is_killed(tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(1 << 32)))
    print(f"CHAOS_SEED={seed}")  # shown when the test fails
    chance, kills = random.Random(seed), 0
    with Server(tmp_path / "state") as server:
        asker = Asker(server, seed)
        threads = [lab.in_thread(asker.ask) for _ in range(_THREADS)]
        while not asker.is_done:
            time.sleep(chance.uniform(0.1, 1.0))
            server.end(signal.SIGKILL)
            server.start()
            kills += 1
        for thread in threads:
            thread.result(120.0)
        assert len(asker.answers) == _LAUNCHES
        assert Counter(len(ids) for ids in asker.answers.values()) == {1: _LAUNCHES}
        with server.client() as client:
            listed = Counter(info.name for info in client.list_jobs(name_prefix="job-"))
        assert listed == Counter(asker.answers.keys())
    print(f"{_LAUNCHES} launches sent {asker.sent} times, {kills} kills")
