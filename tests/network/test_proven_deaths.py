"""Machines whose death is proven: what they ran is tried again within seconds, long before their lease is over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.e2e import lab
from tests.network import hosts
from tests.network.cloud import Provider
from tests.network.cluster import WITHIN_S, Beats, Site
from tests.network.machines import Machine

from fluster import Job

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

PROVEN_S = 25.0
"""So soon work is tried again whose end is proven."""
LEASE_S = 300.0


@dataclass(frozen=True, slots=True)
class Clouded:
    """A site whose controller has one machine of a cloud at a time."""

    site: Site
    provider: Provider

    @property
    def machine(self) -> Machine:
        """The newest."""
        return list(self.provider.machines.values())[-1]


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[Site]:
    if reason := hosts.why_not():
        pytest.skip(reason)
    with Site(tmp_path, LEASE_S, workers=()) as site:
        yield site


@pytest.fixture
def clouded(tmp_path: Path) -> Iterator[Clouded]:
    if reason := hosts.why_not():
        pytest.skip(reason)
    directory = tmp_path / "cloud"
    backend = ("--cloud", str(directory))
    with Site(tmp_path, LEASE_S, workers=(), backend=backend) as site, Provider(directory, site.network) as provider:
        yield Clouded(site, provider)


def why_lost(site: Site, job: Job) -> str:
    """What the journal says of the attempt that came to nothing."""
    (message,) = [event.message for event in site.client.events(job.job_id) if event.kind == "TaskFailed"]
    return message


def end_well(beats: Beats, job: Job) -> None:
    """It has run twice, one after the other, and ends."""
    beats.let_end()
    job.result(timeout=WITHIN_S)
    beats.check_no_overlap(runs=2)
    assert job.info().tasks[0].attempt == 2


def test_what_a_machine_ran_that_was_started_again_is_tried_again_at_once(by_hand: Site, tmp_path: Path) -> None:
    beats = Beats.at(tmp_path / "beats")
    with by_hand.visited(), by_hand.network.host("c") as host, by_hand.worker(host, cpu=1) as machine:
        job = by_hand.client.submit(beats.request(max_preemptions=1))
        beats.wait_for_run()
        machine.lose_power()
        machine.boot()
        back_at = time.monotonic()

        second = beats.wait_for_run(2)

        assert second.began_ns / 1e9 - back_at < PROVEN_S
        assert "its machine was restarted under it" in why_lost(by_hand, job)
        end_well(beats, job)


def test_what_a_machine_ran_that_its_provider_took_away_is_tried_again_on_the_next(
    clouded: Clouded, tmp_path: Path
) -> None:
    beats = Beats.at(tmp_path / "beats")
    with clouded.site.visited():
        job = clouded.site.client.submit(beats.request(max_preemptions=1))
        beats.wait_for_run()
        first = clouded.machine
        clouded.provider.take_away(first)
        gone_at = time.monotonic()

        second = beats.wait_for_run(2)

        assert second.began_ns / 1e9 - gone_at < PROVEN_S
        assert clouded.machine is not first
        assert "is gone" in why_lost(clouded.site, job)
        end_well(beats, job)


def test_a_machine_that_falls_silent_is_given_back_and_what_it_ran_is_tried_again(
    clouded: Clouded, tmp_path: Path
) -> None:
    """It runs on, cut off, with a lease that lasts for minutes: nobody else may begin until it is known to be off."""
    beats = Beats.at(tmp_path / "beats")
    with clouded.site.visited():
        job = clouded.site.client.submit(beats.request(max_preemptions=1))
        beats.wait_for_run()
        first = clouded.machine
        clouded.site.network.cut(first.host)
        off_at = lab.wait_until(lambda: first.off_at, "it is given back and turned off", WITHIN_S)

        second = beats.wait_for_run(2)

        assert off_at < second.began_ns / 1e9 < off_at + PROVEN_S
        assert beats.runs()[0].alive_ns / 1e9 < off_at
        end_well(beats, job)
