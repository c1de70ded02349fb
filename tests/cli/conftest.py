"""The command as its users run it: a process of its own, with a home of its own, through pipes or a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fluster import Cluster, LocalCluster
from fluster.cluster.context import read_token_file

TIMEOUT_S = 25.0


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended. What a terminal showed is all in `stdout`."""

    code: int
    stdout: str
    stderr: str = ""

    @property
    def objects(self) -> list[dict[str, Any]]:
        """What `--json` printed."""
        found = json.loads(self.stdout)
        assert isinstance(found, list)
        return found


class Fluster:
    """Runs `fluster` with these variables."""

    def __init__(self, environ: Mapping[str, str], directory: Path) -> None:
        self.environ = dict(environ)
        self.directory = directory

    def __call__(self, *words: str, timeout_s: float = TIMEOUT_S, **environ: str) -> Ran:
        process = self.start(*words, **environ)
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
            pytest.fail(f"fluster {words} did not end: {stdout!r} {stderr!r}")
        return Ran(process.returncode, stdout, stderr)

    def start(self, *words: str, **environ: str) -> subprocess.Popen[str]:
        """Starts it; the caller waits for its end."""
        return subprocess.Popen(
            [sys.executable, "-m", "fluster", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**self.environ, **environ},
            cwd=self.directory,
        )

    def on_terminal(self, *words: str, columns: int = 100, environ: Mapping[str, str] | None = None) -> Ran:
        """Runs it where a person sees it."""
        main, child = pty.openpty()
        command = [sys.executable, "-m", "fluster", *words]
        environ = {**self.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), **(environ or {})}
        try:
            process = subprocess.Popen(
                command,
                stdin=child,
                stdout=child,
                stderr=child,
                env=environ,
                cwd=self.directory,
                start_new_session=True,
            )
        finally:
            os.close(child)
        try:
            shown = _read_all(main)
        finally:
            os.close(main)
            code = process.wait(TIMEOUT_S)
        return Ran(code, shown.decode())


def _read_all(descriptor: int) -> bytes:
    shown, deadline = b"", time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and select.select([descriptor], [], [], deadline - time.monotonic())[0]:
        try:
            chunk = os.read(descriptor, 65_536)
        except OSError:  # the last process that had the terminal has ended
            break
        if not chunk:
            break
        shown += chunk
    return shown


def _environ(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLUSTER_")}
    places = {"HOME": home, "XDG_CONFIG_HOME": home / "config", "XDG_STATE_HOME": home / "state"}
    return {**kept, **{name: str(path) for name, path in places.items()}, **more}


@pytest.fixture
def alone(tmp_path: Path) -> Fluster:
    """The command of somebody who has configured nothing."""
    return Fluster(_environ(tmp_path), tmp_path)


@pytest.fixture(scope="module")
def local_cluster() -> Iterator[LocalCluster]:
    """A cluster with two cores, and memory beyond what any test asks for, for the tests of one file.

    Its worker has joined: what commands say of a cluster whose worker is about to is another story.
    """
    with LocalCluster(cpu=2, memory="64GB") as cluster:
        wait_until(lambda: [worker.status for worker in cluster.workers()] == ["ready"], "the worker has joined")
        yield cluster


@pytest.fixture
def cluster(local_cluster: LocalCluster) -> Iterator[Cluster]:
    """A client of it that closes its connections with the test."""
    with Cluster(local_cluster.address, token=_token(local_cluster)) as client:
        yield client


@pytest.fixture
def fluster(local_cluster: LocalCluster, tmp_path: Path) -> Fluster:
    """The command of somebody who has configured that cluster."""
    address, token = local_cluster.address, _token(local_cluster)
    return Fluster(_environ(tmp_path, FLUSTER_CLUSTER_ADDRESS=address, FLUSTER_TOKEN=token), tmp_path)


def _token(cluster: LocalCluster) -> str:
    return read_token_file(cluster._daemon.token_file)


def wait_until(condition: Any, what: str, within_s: float = 15.0) -> Any:
    """Waits for something to become true, and gives it."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within_s:.0f} s: {what}")
        time.sleep(0.02)
    return found


def words_of(lines: str) -> Sequence[Sequence[str]]:
    """A plain table as rows of words."""
    return [line.split() for line in lines.splitlines()]
