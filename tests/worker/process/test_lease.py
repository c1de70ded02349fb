"""An attempt does not outlive its worker's lease, even when no daemon is there to stop it."""

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fluster.cluster.attempt.lease import LeaseFile
from fluster.cluster.worker.runtime import ExitRecord

CLOCK = time.CLOCK_MONOTONIC
REST = (sys.executable, "-S", "-c", "import signal; signal.pause()")


@pytest.fixture
def lease(tmp_path: Path) -> LeaseFile:
    made = LeaseFile(tmp_path / "lease")
    made.create(CLOCK)
    return made


async def test_when_the_lease_ends_the_attempt_is_stopped_and_the_record_says_why(lab: Any, lease: LeaseFile) -> None:
    lease_end = time.clock_gettime(CLOCK) + 0.2
    lease.renew(lease_end)
    async with lab(lease=lease.path) as it:
        attempt = it.attempt(command=REST)
        await it.runtime.start(attempt)
        end = await asyncio.wait_for(it.runtime.wait(attempt.uid), 20.0)
        assert time.clock_gettime(CLOCK) > lease_end
        assert isinstance(end, ExitRecord)
        assert (end.signal, end.stop_requested, end.lease_ended) == (signal.SIGTERM, True, True)


async def test_an_attempt_goes_on_while_its_lease_is_renewed(lab: Any, lease: LeaseFile) -> None:
    async with lab(lease=lease.path) as it:
        await it.runtime.prepare()
        lease.renew(time.clock_gettime(CLOCK) + 1.0)
        attempt = it.attempt(command=(sys.executable, "-S", "-c", "import time; time.sleep(2.0)"))
        await it.runtime.start(attempt)
        ended = asyncio.create_task(it.runtime.wait(attempt.uid))
        while not ended.done():
            lease.renew(time.clock_gettime(CLOCK) + 1.0)
            await asyncio.wait([ended], timeout=0.05)
        end = await ended
        assert isinstance(end, ExitRecord)
        assert (end.exit_code, end.stop_requested, end.lease_ended) == (0, False, False)


async def test_what_its_worker_orders_is_not_the_leases_doing(lab: Any, lease: LeaseFile) -> None:
    lease.renew(time.clock_gettime(CLOCK) + 60.0)
    async with lab(lease=lease.path) as it:
        attempt = it.attempt(command=REST)
        await it.runtime.start(attempt)
        end = await it.finish(attempt.uid)
        assert (end.stop_requested, end.lease_ended) == (True, False)


async def test_an_unreadable_lease_ends_nothing(lab: Any, tmp_path: Path) -> None:
    (tmp_path / "lease").write_text("no clock")
    async with lab(lease=tmp_path / "lease") as it:
        attempt = it.attempt(command=(sys.executable, "-S", "-c", "import time; time.sleep(0.7)"))
        await it.runtime.start(attempt)
        end = await it.runtime.wait(attempt.uid)
        assert (end.exit_code, end.lease_ended) == (0, False)


def test_the_end_is_kept_by_the_next_daemon_unless_its_clock_is_another(lease: LeaseFile) -> None:
    lease.renew(time.clock_gettime(CLOCK) + 100.0)
    lease.create(CLOCK)
    left_s = lease.left_s()
    assert left_s is not None
    assert 99.0 < left_s <= 100.0
    lease.create(time.CLOCK_BOOTTIME)
    left_s = lease.left_s()
    assert left_s is not None
    assert left_s < 0


def test_without_a_file_nothing_is_known(tmp_path: Path) -> None:
    assert LeaseFile(tmp_path / "lease").left_s() is None
