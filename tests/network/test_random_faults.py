"""Cuts and one-way losses of any length, one after the other: at most one attempt runs at any time, and one at last.

`FLUSTER_NETWORK_ROUNDS` sets how many there are.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from tests.e2e import lab
from tests.network.cluster import FAULTS, WITHIN_S, Beats, Site

_ROUNDS = int(os.environ.get("FLUSTER_NETWORK_ROUNDS", "1"))
pytestmark = [pytest.mark.root, pytest.mark.timeout(120 + 30 * _ROUNDS)]


def test_whatever_the_network_does_a_task_runs_once_at_a_time_and_ends(brief: Site, tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(1 << 32)))
    print(f"CHAOS_SEED={seed}")  # shown when the test fails
    chance = random.Random(seed)
    beats = Beats.at(tmp_path / "beats")
    job = brief.client.submit(beats.request(max_preemptions=10 * _ROUNDS))
    for _ in range(_ROUNDS):
        since_ns = time.monotonic_ns()
        lab.wait_until(lambda since_ns=since_ns: beats.alive_since(since_ns), "it runs", WITHIN_S)  # type: ignore[misc]
        worker = brief.host_of(job.job_id)
        chance.choice(FAULTS)(brief, worker)
        time.sleep(chance.uniform(0.0, 4 * brief.lease_s))  # how long it lasts is what is tried out
        brief.heal()
    beats.let_end()
    job.result(timeout=WITHIN_S)
    runs = len(beats.runs())
    print(f"{_ROUNDS} faults, {runs} runs")
    beats.check_no_overlap(runs=runs)
    # What was lost before its process began has not run.
    assert runs <= job.info().tasks[0].attempt <= 10 * _ROUNDS
