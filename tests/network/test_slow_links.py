"""Links that delay and lose: what jobs print and return arrives, whole and once."""

from __future__ import annotations

import pytest
from tests.e2e import lab
from tests.network import programs
from tests.network.cluster import WITHIN_S, Site, on_cpus

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
LINES = 20_000


def test_logs_and_results_are_complete_over_a_slow_link_that_loses(patient: Site) -> None:
    for worker in patient.workers:
        patient.network.slow_down(worker, delay_s=0.03, loss=0.1)
    job = patient.client.submit(on_cpus(1, programs.count, LINES))
    assert job.result(timeout=WITHIN_S) == LINES
    assert lab.printed(patient.client, job.job_id) == list(range(LINES))
    assert job.info().tasks[0].attempt == 1
    assert patient.network.lost_of(patient.host_of(job.job_id)) > 0
