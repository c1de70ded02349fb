"""Kills at random moments, under load: nothing that was acknowledged is lost, nothing runs twice, every job ends.

`FLUSTER_CHAOS_ROUNDS` sets how many kills there are.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from tests.e2e import lab, programs

from fluster import Entrypoint, JobRequest, JobStatus, LocalCluster, RetryPolicy, Unreachable
from fluster.cluster.ids import JobId

T = TypeVar("T")
_ROUNDS = os.environ.get("FLUSTER_CHAOS_ROUNDS")
pytestmark = pytest.mark.timeout(90 if _ROUNDS is None else 90 + 5 * int(_ROUNDS))


def rounds(default: int) -> int:
    return default if _ROUNDS is None else int(_ROUNDS)


RETRY = RetryPolicy(max_failures=0, backoff_s=0.01, max_backoff_s=0.1)
_UNFINISHED = 10
"""Jobs of one thread that may be unfinished: launching goes as fast as jobs end."""


_PATIENCE_S = 120.0


def insist(ask: Callable[[], T]) -> T:
    """What a controller answers that may be killed for longer than a client has patience, as its caller would ask."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return ask()
        except Unreachable:
            if time.monotonic() > deadline:
                raise


class Load:
    """Launches jobs without pause, each under a request id of its own, and each one to five times."""

    def __init__(self, cluster: LocalCluster, directory: Path, seed: int) -> None:
        self._cluster = cluster
        self._directory = directory
        self._seed = seed
        self._stop = threading.Event()
        self.acknowledged: dict[str, JobId] = {}
        self.errors: list[BaseException] = []

    @contextmanager
    def running(self, threads: int = 2) -> Iterator[None]:
        workers = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            self._stop.set()
            for worker in workers:
                worker.join()

    def _run(self, thread: int) -> None:
        number, waiting = 0, deque[JobId]()
        chance = random.Random(f"{self._seed}:{thread}")
        try:
            while not self._stop.is_set():
                name = f"job-{thread}-{number}"
                entrypoint = Entrypoint.from_callable(programs.note_run, self._directory, name)
                request = JobRequest(name, entrypoint, lab.SMALL, retry=RETRY, request_id=name)
                job_ids = {insist(partial(self._cluster.launch, request)) for _ in range(chance.randint(1, 5))}
                assert len(job_ids) == 1
                self.acknowledged[name] = job_ids.pop()
                number += 1
                waiting.append(self.acknowledged[name])
                if len(waiting) > _UNFINISHED:
                    insist(partial(self._cluster.wait, waiting.popleft(), timeout=_PATIENCE_S))
        except BaseException as error:
            self.errors.append(error)

    def check(self, *, one_attempt: bool) -> None:
        """Every job exists once, has ended well, has run once, and has told everything.

        A worker that dies while it begins an attempt gives it back, so that the one that runs may be the second.
        """
        assert not self.errors
        infos = self._cluster.wait(list(self.acknowledged.values()), timeout=_PATIENCE_S)
        assert {info.job_id: info.name for info in infos} == {v: k for k, v in self.acknowledged.items()}
        wrong = [info for info in infos if info.status is not JobStatus.SUCCEEDED]
        assert not wrong, wrong[0]
        attempts = Counter(info.tasks[0].attempt for info in infos)
        print(f"{len(infos)} jobs, attempts: {dict(attempts)}")
        assert not one_attempt or set(attempts) == {1}
        listed = [info.name for info in self._cluster.list_jobs(name_prefix="job-")]
        assert sorted(listed) == sorted(self.acknowledged)
        ran = sorted(path.name.split(".")[0] for path in self._directory.iterdir())
        assert ran == sorted(self.acknowledged)
        for name, job_id in self.acknowledged.items():
            assert self._cluster.result(job_id, timeout=lab.WITHIN_S) == name
            assert [line.data for line in self._cluster.logs(job_id)] == [f"{name} begins", f"{name} ends"]


VICTIMS: dict[str, Callable[[LocalCluster], list[lab.Process]]] = {
    "controller": lambda cluster: [lab.controller(cluster)],
    "worker": lambda cluster: [lab.worker(cluster)],
    "zygote": lambda cluster: [lab.zygote(cluster)],
    "controller and worker": lambda cluster: [lab.controller(cluster), lab.worker(cluster)],
}


@pytest.mark.parametrize("victims", [["controller"], list(VICTIMS)], ids=["the controller", "anything"])
def test_kills_under_load_lose_nothing_and_run_nothing_twice(tmp_path: Path, victims: list[str]) -> None:
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(1 << 32)))
    print(f"CHAOS_SEED={seed}")  # shown when the test fails
    chance = random.Random(seed)
    with LocalCluster(cpu=4, memory="8GB") as cluster:
        load = Load(cluster, tmp_path, seed)
        with load.running():
            for _ in range(rounds(6)):
                if chance.random() < 0.8:
                    insist(partial(cluster.list_jobs, limit=1))  # else it may be killed again before it serves
                time.sleep(chance.uniform(0.0, 0.5))  # the moment of the kill is what is tried out
                assert not load.errors
                for victim in VICTIMS[chance.choice(victims)](cluster):
                    if victim.runs:
                        victim.kill()
        load.check(one_attempt=victims == ["controller"])
