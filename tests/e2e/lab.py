"""The processes of a cluster seen from outside, jobs that tell what became of them, and waiting with a bound."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import pytest
from tests.e2e import programs

from fluster import Cluster, Entrypoint, JobRequest, LocalCluster, ResourceConfig, RetryPolicy
from fluster.cluster.attempt import proc
from fluster.cluster.ids import JobId
from fluster.cluster.worker import files
from fluster.cluster.worker.remains import RunningRecord, read_running

WITHIN_S = 20.0
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

    def request(self, *, request_id: str | None = None, max_preemptions: int = 0, lingers: bool = False) -> JobRequest:
        """One that may not be tried again: a second attempt would make it fail. `lingers`: it prints less."""
        return JobRequest(
            "witness",
            Entrypoint.from_callable(programs.linger if lingers else programs.testify, self.directory),
            SMALL,
            retry=RetryPolicy(max_failures=0, max_preemptions=max_preemptions, backoff_s=0.01, max_backoff_s=0.1),
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
