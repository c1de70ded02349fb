"""What the simulator's handlers were found to do by chance is done by the real ones, over the wire."""

from __future__ import annotations

import time

import pytest
from tests.cluster.controller.remote import info, site

from fluster.cluster.controller import loop
from fluster.cluster.controller.core.state import Settings
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.gen.fluster.cluster.v1 import types_pb


def test_a_worker_whose_report_finds_a_full_inbox_was_heard_nevertheless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer renews the worker's lease, so that the controller's count of it must go on as well."""
    with site(Settings(worker_lease_s=2.0, stop_grace_s=0.0, lease_margin_s=0.0)) as here:
        worker = here.worker("w-0")
        job_id, _, _ = here.task(worker)
        monkeypatch.setattr(loop, "MAX_INBOX", 0)
        worker.cpu = 3.0  # news, each time
        until = time.monotonic() + 3.5
        while time.monotonic() < until:
            assert not worker.sync().reregister
            time.sleep(0.05)

        assert [each.status for each in here.admin(pb.ListWorkersRequest()).workers] == ["ready"]
        assert info(here.admin, job_id).status is types_pb.JobStatus.RUNNING
        monkeypatch.undo()
        worker.sync()


def test_what_was_said_to_the_controller_before_is_not_believed_by_the_next_one() -> None:
    with site() as here:
        worker = here.worker("w-0")
        job_id, _, _ = here.task(worker)
        assert worker.sync(known_epoch=0, observed=[]).reregister
        assert info(here.admin, job_id).status is types_pb.JobStatus.RUNNING
