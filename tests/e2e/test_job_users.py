"""A worker that runs as root gives each process of a job a user of its own: what that keeps from whom."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cloudpickle
import pytest
from tests.e2e import hostile
from tests.e2e.lab import wait_until
from tests.packages import make_needed_wheels, make_sdist, make_wheel

from fluster import Cluster, Entrypoint, EnvironmentConfig, JobRequest, JobStatus, ResourceConfig
from fluster.cluster.attempt import proc
from fluster.cluster.worker.trial import closed_to_others
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

pytestmark = pytest.mark.root

FIRST, LAST = 712_000, 712_099
SMALL = ResourceConfig.with_cpu(cpu=0.1, memory="200MB")
WITHIN_S = 60.0
PACKAGES = [str(Path(__file__).parents[2] / "src"), sysconfig.get_paths()["purelib"]]

EVIL = """
import os, pathlib, zipfile
def build_wheel(directory, *arguments, **options):
    try:
        seen = sorted(os.listdir({state!r}))
    except OSError as error:
        seen = error.strerror
    name = "evil-1.0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(directory, name), "w") as wheel:
        wheel.writestr("evil.py", f"BUILT_BY, SAW = {{os.getuid()}}, {{seen!r}}")
        wheel.writestr("evil-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: evil\\nVersion: 1.0\\n")
        wheel.writestr("evil-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("evil-1.0.dist-info/RECORD", "")
    return name
build_sdist = get_requires_for_build_wheel = lambda *arguments: []
"""
AT_START = "import os, sys; sys.started_by = os.getuid()\n"


@pytest.fixture(scope="module", autouse=True)
def hostile_by_value() -> Iterator[None]:
    """Jobs of other users cannot read the tests' directory."""
    cloudpickle.register_pickle_by_value(hostile)
    yield
    cloudpickle.unregister_pickle_by_value(hostile)


@dataclass(slots=True)
class Machine:
    """A worker's, and the cluster it has joined."""

    cluster: Cluster
    command: list[str]
    environ: dict[str, str]
    state: Path
    cache: Path
    process: subprocess.Popen[str]

    def start(self) -> None:
        """Starts the worker's daemon, again."""
        self.process = subprocess.Popen(
            self.command, env=self.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        self.wait_for_it()

    def wait_for_it(self) -> None:
        """Until it has joined."""
        assert self.process.stdout is not None
        assert json.loads(self.process.stdout.readline())["worker_id"]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends the daemon; what it runs goes on."""
        self.process.send_signal(number)
        self.process.wait(WITHIN_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


def an_open_python() -> str:
    """An interpreter like this one that all users can start; few are when this one lies in somebody's home."""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        if os.path.exists(python) and closed_to_others(Path(python)) is None:
            return python
    pytest.skip("needs an interpreter of this version, and Fluster, where all users may go")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that all users may pass, other than pytest's."""
    path = Path(tempfile.mkdtemp(prefix="fluster-users-"))
    path.chmod(0o755)
    try:
        if (closed := closed_to_others(path / "x") or closed_to_others(Path(PACKAGES[0]))) is not None:
            pytest.skip(f"needs directories that all users may pass; {closed} is none")
        yield path
    finally:
        shutil.rmtree(path)


@contextlib.contextmanager
def controller(state: Path) -> Iterator[dict[str, str]]:
    """A process; its address and the administrator's token."""
    command = [sys.executable, "-m", "fluster", "controller", "serve", "--port", "0", "--state-dir", str(state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            yield {**told, "token": Path(told["token_file"]).read_text().strip()}
        finally:
            process.terminate()
            process.wait(WITHIN_S)


@pytest.fixture(scope="module")
def machine(place: Path) -> Iterator[Machine]:
    with a_machine(place) as found:
        yield found


@contextlib.contextmanager
def a_machine(place: Path) -> Iterator[Machine]:
    """A controller, and a worker that has joined it, in this directory."""
    index = place / "index"
    index.mkdir()
    make_needed_wheels(index)
    make_sdist(index, "evil", "1.0", "evil_backend", EVIL.format(state=str(place / "worker")))
    make_wheel(index, "early", "1.0", {"early.pth": AT_START})
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FLUSTER_")},
        "PYTHONPATH": os.pathsep.join(PACKAGES),
        "PYTHONDONTWRITEBYTECODE": "1",
        "UV_OFFLINE": "1",
        "UV_COMPILE_BYTECODE": "0",
        "UV_FIND_LINKS": str(index),
    }
    with controller(place / "controller") as told, Cluster(told["address"], token=told["token"]) as cluster:
        wanted = pb.CreateTokenRequest(request_id="join", kind=pb.TokenKind.JOIN, uses=1)
        token = cluster._rpc.unary("CreateToken", wanted, pb.CreateTokenResponse).token
        (place / "join").write_text(token)
        command = [an_open_python(), "-P", "-m", "fluster.cluster.worker", "serve"]
        command += ["--controller", told["address"], "--token-file", str(place / "join"), "--runtime", "process"]
        command += ["--state-dir", str(place / "worker"), "--cache-dir", str(place / "cache"), "--cpu", "8"]
        command += ["--job-users", f"{FIRST}-{LAST}", "--job-group", "65533"]
        found = Machine(cluster, command, environ, place / "worker", place / "cache", None)  # type: ignore[arg-type]
        try:
            found.start()
            yield found
        finally:
            found.stop()
            command = [command[0], "-P", "-m", "fluster.cluster.worker", "end", "--state-dir", str(found.state)]
            subprocess.run(command, env=environ, check=True)


@pytest.fixture
def cluster(machine: Machine) -> Iterator[Cluster]:
    yield machine.cluster
    machine.cluster._rpc.close_idle()


def job(function: object, *arguments: object, **fields: object) -> JobRequest:
    return JobRequest("job", Entrypoint.from_callable(function, *arguments), SMALL, **fields)  # type: ignore[arg-type]


def test_a_job_is_a_user_of_its_own_and_finds_what_it_needs(cluster: Cluster, machine: Machine) -> None:
    def look() -> dict[str, object]:
        import getpass
        import tempfile

        with open("/dev/stdout", "a") as again:
            print("once more", file=again)
        with tempfile.NamedTemporaryFile() as file, open("here", "w") as here:
            places = [file.name, os.path.abspath(here.name)]
        status = Path("/proc/self/status").read_text()
        return {
            "ids": (os.getresuid(), os.getresgid(), os.getgroups()),
            "name": getpass.getuser(),
            "home": os.environ["HOME"],
            "places": places,
            "privileges": [
                line.split()[1] for line in status.splitlines() if line[:6] in ("CapEff", "CapPrm", "NoNewP")
            ],
            "token": open(os.environ["FLUSTER_TOKEN_FILE"]).read()[:4],
            "environ": b"FLUSTER_ATTEMPT_UID" in open("/proc/self/environ", "rb").read(),
        }

    handle = cluster.submit(job(look))
    found = handle.result(timeout=WITHIN_S)
    user = found["ids"][0][0]
    assert FIRST <= user <= LAST
    assert found["ids"] == ((user,) * 3, (user,) * 3, [65533])
    assert found["name"] == f"job-{user}"
    assert all(str(machine.state) in each for each in (found["home"], *found["places"]))
    assert found["privileges"] == ["0" * 16, "0" * 16, "1"]
    assert (found["token"], found["environ"]) == ("flt_", True)
    assert [line.data for line in handle.logs()] == ["once more"]


def test_commands_and_fresh_interpreters_too(cluster: Cluster) -> None:
    command = cluster.submit(JobRequest("id", Entrypoint.from_command("id", "-u"), SMALL))
    fresh = cluster.submit(job(os.getuid, environment=EnvironmentConfig(env_vars={"PYTHONHASHSEED": "1"})))
    assert FIRST <= fresh.result(timeout=WITHIN_S) <= LAST
    assert command.wait(timeout=WITHIN_S).status is JobStatus.SUCCEEDED
    assert FIRST <= int(next(iter(command.logs())).data) <= LAST


def test_a_hostile_job_reaches_neither_the_worker_nor_another_job(cluster: Cluster, machine: Machine) -> None:
    def stay() -> None:
        print("here", flush=True)
        time.sleep(600)

    canary = f"canary-{os.urandom(4).hex()}"
    private = EnvironmentConfig(secrets={"PASSWORD": canary}, env_vars={"ALSO": canary})
    victim = cluster.submit(job(stay, environment=private))
    wait_until(lambda: [line.data for line in victim.logs()] == ["here"], "it runs", WITHIN_S)
    uid, running = running_of(machine)
    processes = [machine.process.pid, running["shim"], running["pid"]]
    # Twice: the first one may have got the process that was forked before the victim came.
    for _ in range(2):
        handle = cluster.submit(job(hostile.attack, str(machine.state), str(machine.cache), uid, processes))
        assert handle.result(timeout=WITHIN_S) == []
    victim.terminate()
    assert victim.wait(timeout=WITHIN_S).status is JobStatus.STOPPED


def running_of(machine: Machine) -> tuple[str, dict[str, int]]:
    """The one attempt that runs."""
    ((uid, running),) = (
        (path.parent.name, json.loads(path.read_text()))
        for path in machine.state.glob("attempts/*/running.json")
        if not (path.parent / "exit.json").exists()
    )
    return uid, running


def test_a_result_that_leads_to_another_file_is_none(cluster: Cluster, machine: Machine) -> None:
    def cheat(target: str) -> None:
        box = os.path.join(os.path.dirname(os.environ["FLUSTER_TOKEN_FILE"]), "box")
        os.symlink(target, f"{box}/result")
        os._exit(0)

    info = cluster.wait(cluster.launch(job(cheat, str(machine.state / "identity.json"))), timeout=WITHIN_S)
    assert info.status is JobStatus.SUCCEEDED
    assert cluster.result(info.job_id) is None


def test_running_jobs_survive_their_worker_and_keep_their_users(place: Path) -> None:
    (place / "another").mkdir()
    with a_machine(place / "another") as machine:
        _survive(machine.cluster, machine)


def _survive(cluster: Cluster, machine: Machine) -> None:
    def stay() -> None:
        print(os.getuid(), flush=True)
        time.sleep(600)

    handle = cluster.submit(job(stay))
    user = int(wait_until(lambda: [line.data for line in handle.logs()], "it runs", WITHIN_S)[0])
    uid, running = running_of(machine)
    machine.stop(signal.SIGKILL)
    machine.start()
    others = {cluster.submit(job(os.getuid)).result(timeout=WITHIN_S) for _ in range(3)}
    assert user not in others
    assert running_of(machine) == (uid, running)
    handle.terminate()
    assert handle.wait(timeout=WITHIN_S).status is JobStatus.STOPPED
    assert proc.of_user(user) == []


def test_packages_run_nothing_as_the_workers_user(cluster: Cluster, machine: Machine) -> None:
    def look() -> tuple[object, ...]:
        import evil  # type: ignore[import-not-found]

        place = os.path.dirname(evil.__file__)
        return evil.BUILT_BY, evil.SAW, os.getuid(), sys.started_by, os.stat(place).st_uid, os.access(place, os.W_OK)  # type: ignore[attr-defined]

    request = job(look, environment=EnvironmentConfig(pip_packages=["evil", "early"]))
    builder, saw, user, starter, owner, may_write = cluster.submit(request).result(timeout=WITHIN_S)
    assert FIRST <= builder <= LAST
    assert builder != user
    assert saw == "Permission denied"
    assert starter == user
    assert (owner, may_write) == (0, False)
    # Another job's user finds it there.
    assert cluster.submit(request).result(timeout=WITHIN_S)[0] == builder


def test_an_interpreter_of_the_jobs_choice_is_not_asked_as_the_workers_user(cluster: Cluster, place: Path) -> None:
    told = place / "told"
    told.touch()
    told.chmod(0o666)
    fake = place / "python"
    fake.write_text(f"#!/bin/sh\nid -u >> {told}\necho 3.11.0\necho {fake}\n")
    fake.chmod(0o755)
    environment = EnvironmentConfig(python=str(fake))
    cluster.wait(cluster.launch(JobRequest("x", Entrypoint.from_command("true"), SMALL, environment)), timeout=WITHIN_S)
    assert all(FIRST <= int(line) <= LAST for line in told.read_text().split())
    assert told.read_text()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--job-users", "0-100"], "job users must be FIRST-LAST, uids from 1000"),
        (["--job-users", "600100-600000"], "job users must be FIRST-LAST"),
        (["--job-users", "60000-70000"], "hold the account 'nobody'"),
        (["--job-users", "600000-600099", "--max-jobs", "60"], "60 jobs at a time need at least 120 users"),
        (["--job-users", "600000-600099", "--job-group", "nosuch"], "there is no group 'nosuch'"),
        (["--job-users", "600000-600099", "--runtime", "docker"], "job users are for processes"),
        (["--job-users", "600000-600099"], "is closed to others"),
    ],
)
def test_a_worker_that_cannot_keep_jobs_apart_does_not_start(options: list[str], reason: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    command = [sys.executable, "-P", "-m", "fluster.cluster.worker", "serve", "--state-dir", str(tmp_path / "w")]
    ran = subprocess.run([*command, *options], capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert (ran.returncode, reason in ran.stderr, ran.stderr.count("\n")) == (2, True, 1), ran.stderr


def serves(state: Path, *options: str) -> tuple[list[str], dict[str, str]]:
    """The command of a controller that starts its workers itself, and its variables."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FLUSTER_")}
    command = [an_open_python(), "-P", "-m", "fluster.cluster.controller", "serve", "--state-dir", str(state)]
    command += ["--port", "0", "--backend", "local", "--workers", "2", "--cpu", "2", *options]
    return command, {**environ, "PYTHONPATH": os.pathsep.join(PACKAGES)}


def test_a_controller_gives_its_own_workers_job_users_and_none_twice(place: Path) -> None:
    state = place / "local"
    command, environ = serves(state, "--job-users", "713000-713039")
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        with Cluster(told["address"], token=Path(told["token_file"]).read_text().strip()) as cluster:
            wait_until(lambda: len(cluster.workers()) == 2, "two workers")
            one_core = ResourceConfig.with_cpu(cpu=1, memory="200MB")  # so that each worker has one of them

            def look() -> tuple[int, bool]:
                return os.getuid(), os.access(str(state), os.R_OK | os.X_OK)

            jobs = [cluster.submit(JobRequest("look", Entrypoint.from_callable(look), one_core)) for _ in range(2)]
            found = [job.result(WITHIN_S) for job in jobs]
    finally:
        process.terminate()
        process.communicate(timeout=WITHIN_S)
    assert all(713_000 <= user <= 713_039 for user, _ in found)
    assert [reads for _, reads in found] == [False, False]
    assert state.stat().st_mode & 0o777 == 0o700
    given = [json.loads(file.read_text())["job_users"] for file in (place / "local-workers").glob("*/allocation.json")]
    assert sorted(given) == ["713000-713019", "713020-713039"]

    # Its jobs would go on as users that nobody thinks of.
    without, environ = serves(state)
    refused = subprocess.run(without, env=environ, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert refused.returncode == 2
    assert "were started with other --job-users" in refused.stderr
    end = [*command[: command.index("serve")], "end", "--state-dir", str(state)]
    subprocess.run(end, env=environ, check=True, timeout=WITHIN_S)
    assert not (place / "local-workers").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--job-users", "713000-713002"], "too few for 2 workers"),
        (["--job-users", "0-5"], "uids from 1000"),
        (["--backend", "none", "--job-users", "713000-713039"], "for --backend local"),
    ],
)
def test_job_users_that_a_controller_cannot_give_are_refused_at_its_start(
    place: Path, options: list[str], why: str
) -> None:
    command, environ = serves(place / "refused", *options)
    refused = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert refused.returncode == 2
    assert why in refused.stderr


def test_a_state_directory_that_job_users_cannot_pass_beside_is_refused(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    command, environ = serves(closed / "state", "--job-users", "713000-713039")
    refused = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert refused.returncode == 2
    assert f"job users cannot pass {closed}" in refused.stderr
