"""Workers that are cut off, wholly or in one direction: nothing runs twice at a time, nothing is lost, endpoints go."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from tests.e2e import lab
from tests.network import programs
from tests.network.cluster import FAULTS, WITHIN_S, Beats, Site, on_cpus
from tests.network.hosts import Host

from fluster import ActorUnavailable, Cause, ClusterResolver, JobStatus

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]  # the first test starts the cluster
PORT = 7100


@pytest.mark.parametrize("fault", FAULTS)
def test_a_worker_that_is_heard_again_within_its_lease_keeps_its_job(
    patient: Site, tmp_path: Path, fault: Callable[[Site, Host], None]
) -> None:
    beats = Beats.at(tmp_path / "beats")
    job = patient.client.submit(beats.request(max_preemptions=1))
    run = beats.wait_for_run()

    fault(patient, patient.host_of(job.job_id))
    alive_ns = beats.runs()[0].alive_ns
    lab.wait_until(lambda: beats.runs()[0].alive_ns > alive_ns + 10**9, "the job went on without a network")
    patient.heal()
    beats.let_end()

    count = job.result(timeout=WITHIN_S)
    assert run.process.pid == beats.runs()[0].process.pid
    beats.check_no_overlap(runs=1)
    assert job.info().tasks[0].attempt == 1
    assert lab.printed(patient.client, job.job_id) == list(range(count))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_worker_that_is_cut_off_ends_its_job_before_another_begins_it(
    brief: Site, tmp_path: Path, fault: Callable[[Site, Host], None]
) -> None:
    beats = Beats.at(tmp_path / "beats")
    job = brief.client.submit(beats.request(max_preemptions=1, endpoint="beats"))
    beats.wait_for_run()
    worker = brief.host_of(job.job_id)

    fault(brief, worker)
    second = beats.wait_for_run(2)
    assert second.process.runs
    beats.check_no_overlap(runs=2)
    # The endpoint of the first attempt has gone with it.
    (endpoint,) = brief.client.lookup_endpoints("beats")
    assert endpoint.metadata == {"pid": str(second.process.pid)}

    brief.heal()
    assert second.process.runs
    beats.let_end()
    count = job.result(timeout=WITHIN_S)
    beats.check_no_overlap(runs=2)
    (task,) = job.info().tasks
    assert (task.attempt, {task.worker_id, worker.name}) == (2, {"a", "b"})
    assert [int(line.data) for line in brief.client.logs(job.job_id, attempt=2)] == list(range(count))


def test_a_lost_workers_endpoints_are_gone_and_its_address_in_other_hands_does_not_answer_for_it(brief: Site) -> None:
    network, client = brief.network, brief.client
    with ExitStack() as stack:
        resolver = stack.enter_context(closing(ClusterResolver(client)))
        first = stack.enter_context(network.host("first"))
        stack.enter_context(brief.worker(first, cpu=16))
        lost = client.submit(on_cpus(16, programs.tell, "old", PORT, "said by the old one"))
        lab.wait_until(lambda: client.lookup_endpoints("old"), "the first one serves", WITHIN_S)
        caller = resolver.lookup("old").call()
        assert caller.say() == "said by the old one"

        network.cut(first)
        second = stack.enter_context(network.host("second", address=first.address))
        stack.enter_context(brief.worker(second, cpu=32))
        client.submit(on_cpus(32, programs.tell, "new", PORT, "said by the new one"))
        (new,) = lab.wait_until(lambda: client.lookup_endpoints("new"), "the second one serves", WITHIN_S)
        assert new.address == f"{first.address}:{PORT}"
        with pytest.raises(ActorUnavailable):
            caller.say()

        info = lost.wait(timeout=WITHIN_S)
        assert client.lookup_endpoints("old") == []
        assert (info.status, info.cause) == (JobStatus.FAILED, Cause.WORKER_LOST)
        assert resolver.lookup("new").call().say() == "said by the new one"
