"""`fluster run` without a configured cluster: one is started for it, and nothing of it is left."""

import os
import signal
import time

from tests.cli.conftest import Fluster


def test_a_cluster_is_started_for_the_command_and_said(alone: Fluster) -> None:
    (alone.directory / "script.sh").write_text("echo here; pwd; exit 4\n")
    ran = alone("run", "--", "sh", "script.sh")
    assert ran.code == 4
    assert ran.stdout.splitlines() == ["here", os.path.realpath(alone.directory)]
    assert "no cluster is configured" in ran.stderr


def test_ctrl_c_stops_job_and_cluster_and_says_so(alone: Fluster) -> None:
    script = "trap 'echo by itself > ended; exit' TERM; echo started; sleep 60 & wait"
    process = alone.start("run", "--", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert (alone.directory / "ended").read_text() == "by itself\n"
    assert "stopped" in stderr
    assert "Traceback" not in stderr


def test_a_second_ctrl_c_does_not_wait_for_a_job_that_will_not_end(alone: Fluster) -> None:
    process = alone.start("run", "--", "sh", "-c", "trap '' TERM; echo started; while :; do sleep 1; done")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    while "stopping" not in process.stderr.readline():
        pass
    told_at = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - told_at < 8


def test_kill_9_of_the_command_ends_its_cluster(alone: Fluster) -> None:
    process = alone.start("run", "--", "sh", "-c", "echo started; sleep 60")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "started\n"
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    process.stdout.close()
    process.stderr.close()
    # What is left after the test is a failure of it.


def test_a_reader_that_leaves_ends_job_and_cluster_quietly(alone: Fluster) -> None:
    process = alone.start("run", "--", "yes")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "y\n"
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(20) == 0
    assert "Traceback" not in stderr
    assert "Broken" not in stderr


def test_a_command_that_cannot_be_is_refused_before_a_cluster_is_started(alone: Fluster) -> None:
    ran = alone("run", "--cpu", "0", "--", "true")
    assert (ran.code, ran.stdout) == (2, "")
    assert "no cluster" not in ran.stderr
