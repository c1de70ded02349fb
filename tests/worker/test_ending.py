from dataclasses import replace

import pytest

from fluster.cluster.worker.ending import StopReason, report_end, stopped_before_start
from fluster.cluster.worker.outcome import Thrown
from fluster.cluster.worker.remains import RESTARTED
from fluster.cluster.worker.runtime import ExitRecord, Gone, Limits
from fluster.rpc.gen.fluster.cluster.v1.types_pb import Cause, ExitReport

LIMITS = Limits(memory_bytes=2_000_000_000, time_s=1.5)
CLEAN = ExitRecord(
    exit_code=0,
    signal=None,
    out_of_memory=False,
    timed_out=False,
    stop_requested=False,
    start_error=None,
    fluster_fault=False,
    peak_memory_bytes=0,
    started_at=10.0,
    finished_at=11.0,
)
KILLED = replace(CLEAN, exit_code=None, signal=9)


def report(record: ExitRecord | Gone, **more: object) -> ExitReport:
    return report_end(record, limits=LIMITS, now=20.0, **more)  # type: ignore[arg-type]


def test_a_clean_exit_has_no_cause_and_no_message() -> None:
    end = report(CLEAN, said="last lines of stdout:\nbye")
    assert (end.exit_code, end.cause, end.error_message, end.finished_at) == (0, Cause.UNSPECIFIED, "", 11.0)


def test_an_exit_code_is_named_with_the_last_lines() -> None:
    end = report(replace(CLEAN, exit_code=3), said="last lines of stderr:\noh no")
    assert end.cause is Cause.EXIT
    assert end.exit_code == 3
    assert end.error_message == "exited with code 3\nlast lines of stderr:\noh no"


def test_what_a_shim_stopped_at_the_end_of_the_lease_is_lost_and_not_stopped_on_request() -> None:
    ended = replace(KILLED, signal=15, stop_requested=True, lease_ended=True)
    end = report(ended)
    assert (end.cause, end.stop_requested) == (Cause.WORKER_LOST, False)
    assert "lost contact with its controller for a whole lease" in end.error_message
    assert report(ended, stop_reason=StopReason.REQUESTED).cause is Cause.TERMINATED


def test_a_signal_is_named_and_counts_from_128() -> None:
    end = report(replace(CLEAN, exit_code=None, signal=11))
    assert (end.exit_code, end.cause, end.error_message) == (139, Cause.SIGNAL, "killed by SIGSEGV")


def test_a_process_that_exits_with_137_by_itself_was_not_killed() -> None:
    assert report(replace(CLEAN, exit_code=137)).cause is Cause.EXIT


def test_an_exception_is_named_by_type_and_text() -> None:
    end = report(replace(CLEAN, exit_code=1), thrown=Thrown("ValueError", "no such shard"))
    assert (end.cause, end.error_message) == (Cause.EXCEPTION, "ValueError: no such shard")


def test_a_success_with_an_exception_left_in_the_result_stays_a_success() -> None:
    assert report(CLEAN, thrown=Thrown("ValueError", "caught")).cause is Cause.UNSPECIFIED


def test_out_of_memory_names_limit_and_peak() -> None:
    end = report(replace(KILLED, out_of_memory=True, peak_memory_bytes=2_000_100_000))
    assert end.cause is Cause.OUT_OF_MEMORY
    assert "2,000,000,000" in end.error_message
    assert "2,000,100,000" in end.error_message
    assert end.exit_code == 137


def test_the_time_limit_is_named() -> None:
    end = report(replace(KILLED, timed_out=True))
    assert (end.cause, end.error_message) == (Cause.TIME_LIMIT, "time limit of 1.5 s reached")


def test_told_to_stop_is_terminated_even_if_it_then_exits_0() -> None:
    end = report(replace(CLEAN, stop_requested=True), stop_reason=StopReason.REQUESTED)
    assert (end.cause, end.stop_requested, end.exit_code) == (Cause.TERMINATED, True, 0)


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        (StopReason.LEASE_ENDED, Cause.WORKER_LOST),
        (StopReason.LEAVING, Cause.PREEMPTED),
        (StopReason.DISK_LIMIT, Cause.DISK_FULL),
    ],
)
def test_what_the_worker_stops_of_itself_was_not_told_to_stop(reason: StopReason, cause: Cause) -> None:
    end = report(replace(KILLED, stop_requested=True), stop_reason=reason)
    assert (end.cause, end.stop_requested) == (cause, False)


def test_a_process_that_ended_before_the_stop_came_keeps_its_own_cause() -> None:
    assert report(replace(CLEAN, exit_code=4), stop_reason=StopReason.REQUESTED).cause is Cause.EXIT


def test_a_missing_command_is_the_users_fault() -> None:
    end = report(replace(CLEAN, exit_code=127, start_error="no such command: 'nope'"))
    assert (end.cause, end.exit_code, end.user_fault, end.fluster_fault) == (Cause.START_FAILED, 127, True, False)
    assert "nope" in end.error_message


def test_a_start_that_fluster_spoiled_is_not_the_users_fault() -> None:
    end = report(replace(CLEAN, exit_code=None, start_error="the zygote ended", fluster_fault=True))
    assert (end.cause, end.user_fault, end.fluster_fault) == (Cause.START_FAILED, False, True)
    assert not end.has_field("exit_code")


def test_an_attempt_that_vanished_with_its_machine_is_lost() -> None:
    end = report(RESTARTED)
    assert end.error_message.startswith("its machine was restarted under it")
    assert (end.cause, end.finished_at, end.has_field("exit_code")) == (Cause.WORKER_LOST, 20.0, False)


def test_stopped_before_it_was_started_says_so() -> None:
    end = stopped_before_start(StopReason.REQUESTED, now=5.0)
    assert (end.cause, end.stop_requested, end.has_field("exit_code")) == (Cause.TERMINATED, True, False)


def test_control_characters_do_not_reach_the_reader() -> None:
    end = report(replace(CLEAN, exit_code=1), thrown=Thrown("E", "\x1b[31mred\x00\nnext"))
    assert end.error_message == "E: �[31mred�\nnext"
