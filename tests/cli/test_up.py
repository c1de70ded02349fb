"""Clusters that stay: `up` and `down`, and the daemons they are made of."""

import contextlib
import json
import os
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.conftest import Fluster, wait_until

import fluster
from fluster.cluster.config import load_configuration


@pytest.fixture
def standing(alone: Fluster) -> Iterator[Fluster]:
    """The command of somebody whose cluster, if any, is down at the end."""
    yield alone
    alone("down")


def configured(fluster: Fluster) -> str | None:
    return load_configuration(fluster.environ, fluster.directory).cluster


def controller_pid(fluster: Fluster) -> int:
    return int(json.loads((fluster.directory / "state/fluster/local/controller.lock").read_text())["pid"])


def processes_below(fluster: Fluster) -> list[str]:
    """Command lines of processes that work in this home."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if entry.name.isdigit() and f"{fluster.directory}/state" in line:
            found.append(line)
    return found


def test_up_starts_a_cluster_that_stays_and_down_leaves_no_process_of_it(standing: Fluster) -> None:
    ran = standing("up")
    assert (ran.code, ran.stdout) == (0, "")
    assert "fluster down" in ran.stderr
    assert "cpu" in ran.stderr
    assert configured(standing) == "local"
    job_id = standing("run", "--detach", "--name", "long", "--", "sleep", "60").stdout.strip()
    assert standing("run", "--", "echo", "on it").stdout == "on it\n"

    again = standing("up")
    assert again.code == 0
    assert "already" in again.stderr
    assert standing("status", job_id).code == 0

    ran = standing("down")
    assert ran.code == 0
    assert "1 unfinished job stopped" in ran.stderr
    assert configured(standing) is None
    assert processes_below(standing) == []
    assert standing("jobs").code == 5

    ran = standing("down")
    assert ran.code == 0
    assert "no cluster" in ran.stderr


def test_history_is_there_again_after_down_and_up_and_stopped_jobs_stay_stopped(standing: Fluster) -> None:
    assert standing("up").code == 0
    ended = standing("run", "--detach", "--name", "ended", "--", "echo", "kept").stdout.strip()
    assert standing("wait", ended).code == 0
    assert standing("run", "--detach", "--name", "running", "--", "sleep", "60").code == 0
    assert standing("down").code == 0
    assert standing("up").code == 0
    assert {job["name"]: job["status"] for job in standing("jobs", "--json").objects} == {
        "ended": "succeeded",
        "running": "stopped",
    }
    assert standing("logs", ended).stdout == "kept\n"


def test_up_goes_on_after_the_controller_was_killed_and_jobs_did_not_notice(standing: Fluster) -> None:
    assert standing("up").code == 0
    job_id = standing("run", "--detach", "--", "sh", "-c", "echo $$; sleep 60").stdout.strip()
    pid = wait_until(lambda: standing("logs", job_id).stdout.strip(), "the job runs")
    os.kill(controller_pid(standing), signal.SIGKILL)
    assert standing("jobs", timeout_s=20).code == 5
    assert standing("up").code == 0
    (job,) = standing("status", job_id, "--json").objects
    assert job["status"] == "running"
    assert job["tasks"][0]["attempt"] == 1
    os.kill(int(pid), 0)


def test_down_ends_the_jobs_of_a_controller_that_was_killed(standing: Fluster) -> None:
    assert standing("up").code == 0
    job_id = standing("run", "--detach", "--", "sh", "-c", "echo started; sleep 60").stdout.strip()
    wait_until(lambda: standing("logs", job_id).stdout, "the job runs")
    os.kill(controller_pid(standing), signal.SIGKILL)
    assert standing("down").code == 0
    assert processes_below(standing) == []
    assert standing("up").code == 0
    assert standing("status", job_id, "--json").objects[0]["status"] == "stopped"


def test_up_takes_over_as_default_and_down_gives_the_former_one_back(standing: Fluster) -> None:
    file = standing.directory / "config/fluster/config.toml"
    file.parent.mkdir(parents=True)
    text = '# mine\ncluster = "prod"\n\n[clusters.prod]\naddress = "http://127.0.0.1:1"\n'
    file.write_text(text)
    ran = standing("up")
    assert ran.code == 0
    assert "prod" in ran.stderr
    assert configured(standing) == "local"
    assert standing("down").code == 0
    assert configured(standing) == "prod"
    assert "# mine" in file.read_text()
    assert "local" not in file.read_text()


def test_up_says_when_something_else_names_another_cluster(standing: Fluster) -> None:
    ran = standing("up", FLUSTER_CLUSTER_ADDRESS="127.0.0.1:1")
    assert ran.code == 0
    assert "FLUSTER_CLUSTER_ADDRESS" in ran.stderr
    assert "--cluster local" in ran.stderr
    assert standing("jobs", "--cluster", "local", FLUSTER_CLUSTER_ADDRESS="127.0.0.1:1").code == 0


def test_two_at_once_start_one_cluster(standing: Fluster) -> None:
    both = [standing.start("up"), standing.start("up")]
    said = [process.communicate(timeout=25)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(standing("workers", "--json").objects) == 1
    assert standing("down").code == 0
    assert processes_below(standing) == []


def test_clusters_of_several_names_live_side_by_side(alone: Fluster) -> None:
    try:
        both = [alone.start("up", "--cluster", name) for name in ("one", "two")]
        said = [process.communicate(timeout=25)[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        assert all(f"fluster down --cluster {name}" in text for name, text in zip(("one", "two"), said, strict=True))
        ran = alone("down")
        assert ran.code == 0
        assert "no cluster named local" in ran.stderr
        assert "`fluster down --cluster one`, `fluster down --cluster two`" in ran.stderr
        job_id = alone("run", "--cluster", "one", "--detach", "--", "true").stdout.strip()
        assert alone("wait", "--cluster", "one", job_id).code == 0
        assert alone("status", "--cluster", "two", job_id).code == 3
    finally:
        ended = [alone("down", "--cluster", name).code for name in ("one", "two")]
    assert ended == [0, 0]
    assert configured(alone) is None


def test_a_former_default_that_is_gone_is_not_given_back(alone: Fluster) -> None:
    for command, name, default in (("up", "one", "one"), ("up", "two", "two"), ("down", "one", "two")):
        assert alone(command, "--cluster", name).code == 0
        assert configured(alone) == default
    assert alone("down", "--cluster", "two").code == 0
    assert configured(alone) is None
    assert alone("jobs").code == 5


def test_a_port_that_somebody_else_has_is_left_to_them(standing: Fluster) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # somebody has it already
            taken.bind(("127.0.0.1", 7077))
            taken.listen()
        assert standing("up").code == 0
        (address,) = (
            each["value"] for each in standing("config", "show", "--json").objects if each["name"] == "address"
        )
        assert not address.endswith(":7077")
        assert standing("down").code == 0


def test_down_without_up_says_so(alone: Fluster) -> None:
    ran = alone("down")
    assert (ran.code, ran.stdout) == (0, "")
    assert "no cluster" in ran.stderr
    assert not (alone.directory / "state").exists()


def test_up_on_a_state_that_cannot_be_read_fails_with_the_reason(standing: Fluster) -> None:
    directory = standing.directory / "state/fluster/local"
    directory.mkdir(parents=True, mode=0o700)
    (directory / "fluster.db").write_bytes(b"no database" * 1000)
    ran = standing("up")
    assert (ran.code, ran.stdout) == (1, "")
    assert "fluster.db" in ran.stderr
    assert "controller.log" in ran.stderr
    assert len(ran.stderr.splitlines()) == 3
    assert configured(standing) is None
    assert (directory / "fluster.db").read_bytes() == b"no database" * 1000


def serve(fluster: Fluster, *words: str) -> subprocess.Popen[str]:
    return fluster.start("controller", "serve", "--port", "0", *words)


def end(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 0, stderr
    return stderr


def test_a_controller_announces_itself_in_one_line_and_a_worker_joins_by_token(alone: Fluster) -> None:
    controller = serve(alone, "--state-dir", "c")
    assert controller.stdout is not None
    announced = json.loads(controller.stdout.readline())
    assert announced == {
        "address": announced["address"],
        "token_file": str(alone.directory / "c/admin.token"),
        "epoch": 1,
    }
    admin = Fluster(
        {
            **alone.environ,
            "FLUSTER_CLUSTER_ADDRESS": announced["address"],
            "FLUSTER_TOKEN_FILE": announced["token_file"],
        },
        alone.directory,
    )
    token = admin("worker", "token", "--ttl", "1m").stdout
    assert token.startswith("flj_")
    assert len(token.split()) == 1
    (alone.directory / "join.token").write_text(token)
    options = ("--controller", announced["address"], "--state-dir", "w", "--cpu", "1", "--memory", "2GB")
    worker = alone.start("worker", "serve", *options, "--token-file", "join.token")
    try:
        wait_until(lambda: admin("workers", "--json").objects, "the worker has joined")
        assert admin("run", "--", "echo", "there").stdout == "there\n"
    finally:
        end(worker)
        end(controller)


def test_a_second_controller_on_a_state_directory_is_refused_and_named_the_holder(alone: Fluster) -> None:
    controller = serve(alone, "--state-dir", "c")
    assert controller.stdout is not None
    controller.stdout.readline()
    ran = alone("controller", "serve", "--port", "0", "--state-dir", "c")
    assert (ran.code, ran.stdout) == (1, "")
    assert str(controller.pid) in ran.stderr
    assert "--take-over" in ran.stderr
    end(controller)


def test_options_of_a_controller_can_come_from_a_file_and_the_command_line_wins(alone: Fluster) -> None:
    (alone.directory / "c.toml").write_text('state-dir = "from-file"\nport = 1\nworker_lease = "5m"\n')
    controller = serve(alone, "--config", "c.toml")
    assert controller.stdout is not None
    announced = json.loads(controller.stdout.readline())
    assert announced["token_file"] == str(alone.directory / "from-file/admin.token")
    assert not announced["address"].endswith(":1")
    end(controller)
    for text, named in (
        ("speed = 3", "'speed'"),
        ("mount = '/data'", "'mount' takes a list"),
        ("port = [1]", "'port' takes one value"),
        ("mount = ['/data', 'data']", "absolute"),
        ("mount = ['/data']", "--backend docker"),
    ):
        (alone.directory / "c.toml").write_text(text)
        ran = alone("controller", "serve", "--config", "c.toml")
        assert ran.code == 2
        assert named in ran.stderr


def test_a_port_that_is_taken_is_one_line(alone: Fluster) -> None:
    controller = serve(alone, "--state-dir", "a")
    assert controller.stdout is not None
    port = json.loads(controller.stdout.readline())["address"].rpartition(":")[2]
    ran = alone("controller", "serve", "--port", port, "--state-dir", "b")
    assert (ran.code, ran.stdout) == (1, "")
    assert port in ran.stderr
    assert "Traceback" not in ran.stderr
    end(controller)


def test_a_worker_with_a_wrong_or_expired_token_is_refused_with_4(alone: Fluster) -> None:
    controller = serve(alone, "--state-dir", "c")
    assert controller.stdout is not None
    address = json.loads(controller.stdout.readline())["address"]
    token_file = {"FLUSTER_CLUSTER_ADDRESS": address, "FLUSTER_TOKEN_FILE": str(alone.directory / "c/admin.token")}
    expired = alone("worker", "token", "--ttl", "1ms", **token_file).stdout
    for token in (f"flj_abc_{'0' * 64}\n", expired):
        (alone.directory / "token").write_text(token)
        ran = alone("worker", "serve", "--controller", address, "--state-dir", "w", "--token-file", "token")
        assert ran.code == 4
        assert "Traceback" not in ran.stderr
        assert token.strip() not in ran.stderr
    end(controller)


def test_functions_run_in_the_interpreter_that_up_was_given(standing: Fluster) -> None:
    theirs = standing.directory / "theirs"
    venv.create(theirs, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(theirs), "platbase": str(theirs)}))
    (packages / "these.pth").write_text("\n".join([*site.getsitepackages(), str(Path(fluster.__file__).parents[1])]))
    python = str(theirs / "bin" / "python")
    assert standing("up", "--python", python).code == 0
    script = (
        "import sys; from fluster import current_cluster as c; print(c().submit(lambda: sys.executable).result(60))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], env=standing.environ, capture_output=True, text=True, timeout=60
    )
    assert ran.stdout.strip() == python, ran.stderr
