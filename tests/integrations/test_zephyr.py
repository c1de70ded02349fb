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


COUNTED = [["a", 300], ["b", 1], ["c", 1]]


def test_each_operation_lost_replies_to_pull_task_and_two_pipelines_at_once_on_one_pool(zephyr: Driver) -> None:
    found = zephyr("short")
    assert found.pop("cuts") == 3
    assert found.pop("seconds") < 100, "well before a heartbeat would be missed"
    workers = {pid for pid, _ in found.pop("where")}
    assert 1 <= len(workers - {found.pop("here")}) <= 2  # whoever is free takes the next shard
    _check_error(found.pop("error"))
    assert found == {
        "mapped": [1, 4, 9],
        "filtered": [0, 6, 12],
        "counted": COUNTED,
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
    }


@LONG
def test_each_shard_is_a_program_of_its_own_unless_one_says_otherwise(zephyr: Driver) -> None:
    found = zephyr("isolated")
    shards, workers = {pid for pid, _ in found["where"]}, {pid for _, pid in found["where"]}
    assert len(shards) == len(workers) == 2
    assert not shards & workers
    assert found["here"] not in shards | workers
    assert found["counted"] == COUNTED
    _check_error(found["error"])


@LONG
@pytest.mark.parametrize("whom", ["worker", "shard", "coordinator"])
def test_the_result_is_right_though_a_process_was_killed(zephyr: Driver, whom: str) -> None:
    found = zephyr("killed", whom)
    assert found["results"] == [[[0, 1]]]
    assert found["seconds"] < 100, "before Zephyr would have given up waiting for a heartbeat"


def _check_error(text: str) -> None:
    assert text.startswith("ZephyrWorkerError")
    assert "four is refused" in text
