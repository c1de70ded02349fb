"""Jobs print numbered lines without pause and die of everything: what they printed last is there, once and in order.

`FLUSTER_DEATHS`: how many jobs die.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.e2e import lab, programs
from tests.e2e.mortal import MortalServer
from tests.e2e.outside import joined_worker

from fluster import Cause, Cluster, Entrypoint, JobRequest, ResourceConfig, RetryPolicy
from fluster.cluster.ids import JobId
from fluster.cluster.observed import JobInfo

DEATHS = int(os.environ.get("FLUSTER_DEATHS", "40"))
AT_ONCE = 20
LINES = 2_000
WAYS: dict[str, Callable[[JobInfo], bool]] = {
    "exit": lambda info: info.cause is Cause.EXIT and info.exit_code == 3,
    "SIGKILL": lambda info: info.cause is Cause.SIGNAL and info.exit_code == 128 + signal.SIGKILL,
    "SIGSEGV": lambda info: info.cause is Cause.SIGNAL and info.exit_code == 128 + signal.SIGSEGV,
    "SIGABRT": lambda info: info.cause is Cause.SIGNAL and info.exit_code == 128 + signal.SIGABRT,
    "exception": lambda info: info.cause is Cause.EXCEPTION,
    "out of memory": lambda info: info.cause is Cause.OUT_OF_MEMORY,
}
pytestmark = pytest.mark.timeout(60 + DEATHS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MortalServer]:
    with MortalServer(tmp_path_factory.mktemp("mortal") / "state") as server:
        yield server


@pytest.fixture
def cluster(server: MortalServer, tmp_path: Path) -> Iterator[Cluster]:
    with server.client() as client, joined_worker(client, tmp_path / "w"):
        yield client


def test_what_jobs_print_before_they_die_is_complete_while_their_controller_dies_too(
    server: MortalServer, cluster: Cluster
) -> None:
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(1 << 32)))
    print(f"CHAOS_SEED={seed}")
    chance, died, crashes = random.Random(seed), Counter[str](), 0
    while died.total() < DEATHS:
        # Some 4 boundaries for each job: the controller dies now and then, also soon after it was started again.
        server.fuse.arm(chance.randint(1, 40), after_that=chance.randint(1, 40))
        ways = [chance.choice(list(WAYS)) for _ in range(AT_ONCE)]
        lines = [chance.randrange(LINES) for _ in ways]
        jobs = [launched(cluster, way, count) for way, count in zip(ways, lines, strict=True)]
        infos = cluster.wait(jobs, timeout=lab.WITHIN_S * 3)
        crashes += server.fuse.disarm()
        for info, way, count in zip(infos, ways, lines, strict=True):
            assert WAYS[way](info), info
            assert info.tasks[0].attempt == 1
            printed = [line.data for line in cluster.logs(info.job_id) if line.stream == "stdout"]
            assert printed == [f"{number:05d}" for number in range(count)]
        died.update(ways)
    print(f"{dict(died)}, {crashes} crashes of the controller")
    assert crashes


def launched(cluster: Cluster, way: str, lines: int) -> JobId:
    """A job that prints so many lines and dies that way."""
    function = partial(programs.print_and_die, lines, way)
    return cluster.launch(
        JobRequest(
            "dies",
            Entrypoint.from_callable(function),
            ResourceConfig.with_cpu(cpu=0.05, memory="60MB"),
            retry=RetryPolicy(max_failures=0, max_preemptions=0),
        )
    )
