"""Zephyr's pipelines on a cluster: right results, whatever dies in the middle. Fluster's daemons run elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integrations.zephyr_python import LONG, Driver

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def zephyr(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    with Driver("zephyr_programs", tmp_path_factory.mktemp("zephyr"), cpu=8) as driver:
        yield driver


def test_the_backend_counts_skewed_keys_in_processes_of_workers(zephyr: Driver) -> None:
    found = zephyr("backend")
    assert found["counted"] == [["a", 300], ["b", 1], ["c", 1]]
    shards = {shard for shard, _ in found["where"]}
    workers = {worker for _, worker in found["where"]}
    assert len(shards) == 2, "each shard runs in a process of its own"
    assert len(workers) == 2
    assert found["here"] not in shards | workers


def test_each_kind_of_operation_and_two_pipelines_at_once_on_one_pool(zephyr: Driver) -> None:
    assert zephyr("one_pool") == {
        "mapped": [0, 6, 12],
        "sorted": [[0, [9, 6, 3, 0]], [1, [10, 7, 4, 1]], [2, [11, 8, 5, 2]]],
        "once": [0, 1, 2],
        "files": 2,
        "read": list(range(12)),
        "shared": [0, 7, 14, 21, 28, 35],
        "empty": [],
        "nothing left": [],
        "many": 60_000,
        "one": [2, 3, 4],
        "other": [2, 3, 4],
        "error": True,
    }


@LONG
@pytest.mark.parametrize("whom", ["worker", "shard", "coordinator"])
def test_the_result_is_right_though_a_process_was_killed(zephyr: Driver, whom: str) -> None:
    assert zephyr("killed", whom)["results"] == [[[0, 1]]]


def test_lost_replies_to_pull_task_hang_nothing(zephyr: Driver) -> None:
    found = zephyr("replies_lost")
    assert found["results"] == [1, 4, 9]
    assert found["cuts"] == 3
    assert found["seconds"] < 100, "well before a heartbeat would be missed"
