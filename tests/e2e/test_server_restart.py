"""`fluster controller serve --backend local` ended, killed, replaced and refused, while jobs run on its workers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e import lab
from tests.e2e.lab import Witness
from tests.e2e.outside import Server

from fluster import JobStatus

LOCAL = ("--backend", "local")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told to end"])
def test_running_jobs_go_on_without_their_controller_and_it_with_them(tmp_path: Path, number: signal.Signals) -> None:
    witness = Witness.at(tmp_path / "witness")
    with Server(tmp_path / "state", *LOCAL) as server, server.client() as client:
        job = client.submit(witness.request())
        process = witness.wait_for_run()
        result = lab.in_thread(lambda: job.result(timeout=lab.WITHIN_S))
        followed = lab.in_thread(lambda: lab.printed(client, job.job_id, follow=True))

        assert server.end(number) == (0 if number is signal.SIGTERM else -number)
        assert process.runs
        server.start()
        assert server.epoch == 2
        witness.let_end()

        count = result.result(lab.WITHIN_S)
        assert followed.result(lab.WITHIN_S) == list(range(count))
        assert (job.info().tasks[0].attempt, witness.runs) == (1, [process.pid])


def test_a_job_that_ends_while_there_is_no_controller_is_known_to_the_next(tmp_path: Path) -> None:
    witness = Witness.at(tmp_path / "witness")
    with Server(tmp_path / "state", *LOCAL) as server, server.client() as client:
        job = client.submit(witness.request())
        process = witness.wait_for_run()
        server.end(signal.SIGKILL)
        witness.let_end()
        lab.wait_until(lambda: not process.runs, "the job has ended")
        server.start()

        count = job.result(timeout=lab.WITHIN_S)
        assert lab.printed(client, job.job_id) == list(range(count))
        assert job.info().tasks[0].attempt == 1


def test_an_idle_worker_without_a_controller_leaves_when_its_lease_has_passed(tmp_path: Path) -> None:
    with Server(tmp_path / "state", *LOCAL, "--worker-lease", "1") as server, server.client() as client:
        assert client.submit(int, 1).result(timeout=lab.WITHIN_S) == 1
        worker = lab.worker_of(server.state_dir)
        server.end()
        lab.wait_until(lambda: not worker.runs, "the worker has left")
        server.start()
        assert client.submit(int, 2).result(timeout=lab.WITHIN_S) == 2


def test_a_second_controller_is_refused_and_one_that_takes_over_ends_the_first(tmp_path: Path) -> None:
    witness = Witness.at(tmp_path / "witness")
    with Server(tmp_path / "state", *LOCAL) as first, first.client() as client:
        job = client.submit(witness.request())
        process = witness.wait_for_run()

        words = [sys.executable, "-m", "fluster", "controller", "serve", "--port", "0", "--state-dir"]
        refused = subprocess.run([*words, str(first.state_dir)], capture_output=True, text=True, timeout=lab.WITHIN_S)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert f"in use by another controller (pid {first.process.pid} on " in refused.stderr
        assert "--take-over" in refused.stderr

        # It serves at another address, and the worker follows it there.
        with Server(first.state_dir, *LOCAL, "--take-over") as second:
            assert first.wait() == 0
            assert second.epoch > first.epoch
            with second.client() as other:
                assert other.poll(job.job_id).status is JobStatus.RUNNING
                witness.let_end()
                count = other.result(job.job_id, timeout=lab.WITHIN_S)
                assert lab.printed(other, job.job_id) == list(range(count))
                assert (other.poll(job.job_id).tasks[0].attempt, witness.runs) == (1, [process.pid])


def test_beyond_loopback_it_serves_encrypted_and_says_by_which_authority(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "fluster", "controller", "serve", "--port", "0", "--host", "0.0.0.0"]
    state = tmp_path / "state"
    with subprocess.Popen([*words, "--state-dir", str(state)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as it:
        assert it.stdout is not None
        told = json.loads(it.stdout.readline())
        it.terminate()
        assert it.wait(lab.WITHIN_S) == 0
    assert told["address"].startswith("https://")
    assert told["ca_file"] == str(state / "ca.pem")
    assert not told["address"].startswith("https://0.0.0.0")
