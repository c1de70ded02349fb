"""The processes of a cluster seen from outside, jobs that tell what became of them, and waiting with a bound."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest
from tests.e2e import programs

from fluster import Cluster, Entrypoint, JobRequest, LocalCluster, ResourceConfig, RetryPolicy
from fluster.cluster.attempt import proc
from fluster.cluster.backend.local import stop_local_workers
from fluster.cluster.context import read_token_file
from fluster.cluster.ids import JobId
from fluster.cluster.worker import files
from fluster.cluster.worker.remains import RunningRecord, read_running

WITHIN_S = 20.0
_PATH = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
SMALL = ResourceConfig.with_cpu(cpu=0.1, memory="100MB")
T = TypeVar("T")


def wait_until(condition: Callable[[], T | None], what: str, within_s: float = WITHIN_S) -> T:
    """Waits for something to become true, and gives it."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within_s:g} s: {what}")
        time.sleep(0.01)
    return found


def in_thread(work: Callable[[], T]) -> Future[T]:
    """What `work` gives, once it has; a thread of its own does it."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="test-waiter", daemon=True).start()
    return future


@dataclass(frozen=True, slots=True)
class Process:
    """One process, whoever gets its pid later."""

    pid: int
    started: int | None

    @classmethod
    def of(cls, pid: int) -> Self:
        return cls(pid, proc.start_time(pid))

    @property
    def runs(self) -> bool:
        return self.started is not None and proc.is_running(self.pid, self.started)

    def signal(self, number: signal.Signals) -> None:
        assert self.runs
        os.kill(self.pid, number)

    def kill(self) -> None:
        """As nobody can prevent."""
        self.signal(signal.SIGKILL)


class Creator:
    """A program that has a cluster, as a process of its own; all it starts, at whatever remove, can be found.

    Args:
        script: Its source; `say(...)` prints an object for `heard`.
        directory: Where it stands.

    Attributes:
        temporary: Where it keeps temporary files.
    """

    def __init__(self, script: str, directory: Path, *, python: str = sys.executable, **environ: str) -> None:
        self._tag = f"LAB_TAG={secrets.token_hex(8)}"
        name, _, value = self._tag.partition("=")
        # A path of its own, because addresses of Unix sockets must be short.
        self.temporary = Path(tempfile.mkdtemp(prefix="lab-"))
        prelude = "import json, os, signal, sys, time\ndef say(it): print(json.dumps(it), flush=True)\n"
        self.process = subprocess.Popen(
            [python, "-c", prelude + script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=directory,
            env={**os.environ, "PYTHONPATH": _PATH, name: value, "TMPDIR": str(self.temporary), **environ},
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for pid in self.family() | {self.process.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        shutil.rmtree(self.temporary)

    def heard(self) -> Any:
        """The next thing it says."""
        assert self.process.stdout is not None
        line = in_thread(self.process.stdout.readline).result(WITHIN_S)
        return json.loads(line) if line else pytest.fail(f"it ended with {self.process.wait()} and said nothing more")

    def family(self) -> set[int]:
        """Pids of itself and everything that was started from it, zombies excluded."""
        return {pid for pid in proc.all_pids() if self._is_tagged(pid) and Process.of(pid).runs}

    def _is_tagged(self, pid: int) -> bool:
        try:
            return self._tag.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False


class Server:
    """`fluster controller serve` on a state directory, until it is told to end or killed; can be started again.

    Args:
        state_dir: Its own; what it writes to stderr goes there too.
        options: Further words of its command line.
    """

    def __init__(self, state_dir: Path, *options: str) -> None:
        self.state_dir = state_dir
        self._options = options
        self._port = 0
        self._process: subprocess.Popen[str] | None = None
        self.address = ""
        self.epoch = 0

    def start(self, *options: str) -> Self:
        """Serves, on the port it had before."""
        words = ["controller", "serve", "--state-dir", str(self.state_dir), "--port", str(self._port)]
        self.state_dir.mkdir(exist_ok=True)
        with (self.state_dir / "stderr").open("a") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fluster", *words, *self._options, *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self._process.stdout is not None
        line = in_thread(self._process.stdout.readline).result(WITHIN_S)
        if not line:
            pytest.fail((self.state_dir / "stderr").read_text())
        announced = json.loads(line)
        self.address, self.epoch = announced["address"], announced["epoch"]
        self._port = int(self.address.rpartition(":")[2])
        return self

    @property
    def process(self) -> subprocess.Popen[str]:
        """The controller's."""
        assert self._process is not None
        return self._process

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Its exit code, once it has ended by itself."""
        code = self.process.wait(WITHIN_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def client(self) -> Cluster:
        """One of the administrator's."""
        return Cluster(self.address, token=read_token_file(self.state_dir / "admin.token"))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.end()
        stop_local_workers(self.state_dir, patience_s=0.0)


def controller(cluster: LocalCluster) -> Process:
    """The controller that runs now, once it serves."""

    def serving() -> Process | None:
        process = Process.of(cluster._daemon.pid)
        holder = holder_of(cluster._state_dir)
        return process if process.runs and holder == process.pid else None

    return wait_until(serving, "a controller serves")


def holder_of(state_dir: Path) -> int | None:
    """Pid of the controller that holds the directory."""
    try:
        return int(json.loads((state_dir / "controller.lock").read_bytes())["pid"])
    except (OSError, ValueError):
        return None


def worker(cluster: LocalCluster) -> Process:
    """The daemon of its first worker that runs now, once it does."""
    return worker_of(cluster._state_dir)


def worker_of(state_dir: Path) -> Process:
    """The same, by the controller's state directory."""

    def found() -> Process | None:
        service = files.ServiceFile.read(state_dir / "workers/local-0")
        process = Process.of(service.pid) if service is not None else None
        return process if process is not None and process.runs else None

    return wait_until(found, "the worker runs")


def zygote(cluster: LocalCluster) -> Process:
    """The warm parent of the first worker's attempts."""

    def found() -> Process | None:
        pids = [pid for pid in proc.children(worker(cluster).pid) if _name(pid) == "fluster-zygote"]
        return Process.of(pids[0]) if pids else None

    return wait_until(found, "a zygote runs")


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def running(state_dir: Path, job_id: JobId, task: int = 0, attempt: int = 1) -> RunningRecord:
    """Who runs an attempt of a cluster on this machine, once it does."""

    def found() -> RunningRecord | None:
        for directory in (state_dir / "workers").glob(f"*/attempts/{job_id}.{task}.{attempt}"):
            return read_running(directory)
        return None

    return wait_until(found, f"attempt {attempt} of {job_id} runs")


def process_of(cluster: LocalCluster, job_id: JobId, task: int = 0, attempt: int = 1) -> Process:
    """The first process of an attempt, once it runs."""
    return Process.of(running(cluster._state_dir, job_id, task, attempt).pid)


def command(*argv: str) -> JobRequest:
    """A small job of one program."""
    return JobRequest("command", Entrypoint.from_command(*argv), SMALL)


def shell(script: str) -> JobRequest:
    """A small job of one command line."""
    return command("sh", "-c", script)


@dataclass(frozen=True, slots=True)
class Witness:
    """A job that writes down each of its runs, prints numbered lines without pause, and ends when it is told to."""

    directory: Path

    @classmethod
    def at(cls, directory: Path) -> Self:
        directory.mkdir(parents=True)
        return cls(directory)

    def request(self, *, request_id: str | None = None, max_preemptions: int = 0) -> JobRequest:
        """One that may not be tried again: a second attempt would make it fail."""
        return JobRequest(
            "witness",
            Entrypoint.from_callable(programs.testify, self.directory),
            SMALL,
            retry=RetryPolicy(max_failures=0, max_preemptions=max_preemptions, backoff_s=0.01),
            request_id=request_id,
        )

    @property
    def runs(self) -> list[int]:
        """Pids, one for each time it was started."""
        try:
            return [int(line) for line in (self.directory / "runs").read_text().split()]
        except FileNotFoundError:
            return []

    def wait_for_run(self, number: int = 1) -> Process:
        """The process of that run, from 1."""
        return Process.of(wait_until(lambda: len(self.runs) >= number and self.runs[number - 1], "the job runs"))

    def let_end(self) -> None:
        """Makes it return the number of lines it printed."""
        (self.directory / "gate").touch()


def printed(cluster: Cluster, job_id: JobId, *, follow: bool = False) -> list[int]:
    """The numbers that a `Witness` has printed, over all attempts."""
    return [int(line.data) for line in cluster.logs(job_id, follow=follow)]
