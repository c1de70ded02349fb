"""A worker says that its controller does not answer, and neither fills its log with it nor falls silent."""

import logging

import pytest

from fluster.cluster.worker.complaints import Complaints


def test_a_controller_that_does_not_answer_is_told_at_once_each_minute_and_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="fluster.cluster.worker.complaints")
    now = 100.0
    complaints = Complaints(lambda: now)
    complaints.succeeded()
    for moment in (100.0, 102.0, 130.0, 161.0, 163.0):
        now = moment
        complaints.failed(ConnectionError("refused"))
    now = 170.0
    complaints.failed(ConnectionError("reset"))
    complaints.succeeded()
    complaints.succeeded()
    said = "the controller does not answer as it should: "
    assert caplog.messages == [
        f"{said}refused; trying again",
        f"{said}refused; trying again, for 61 s now",
        f"{said}reset; trying again, for 70 s now",
        "the controller answers again, after 70 s",
    ]
