"""Programs that tests start: one that has a cluster of its own, and a controller of the command line."""

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
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from tests.e2e.lab import WITHIN_S, Process, in_thread, wait_until

from fluster import Cluster
from fluster.cluster.attempt import proc
from fluster.cluster.backend.local import stop_local_workers
from fluster.cluster.context import read_token_file
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb
from fluster.rpc.trust import pin_of, pinned

PATH = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))


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
            env={**os.environ, "PYTHONPATH": PATH, name: value, "TMPDIR": str(self.temporary), **environ},
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
        program: What Python runs instead of the command.
    """

    def __init__(self, state_dir: Path, *options: str, program: tuple[str, ...] = ("-m", "fluster")) -> None:
        self.state_dir = state_dir
        self._options = options
        self._program = program
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
                [sys.executable, *self._program, *words, *self._options, *options],
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
        token = read_token_file(self.state_dir / "admin.token")
        if self.address.startswith("https:"):
            token = pinned(token, pin_of((self.state_dir / "ca.pem").read_text()))
        return Cluster(self.address, token=token)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.end()
        stop_local_workers(self.state_dir, patience_s=0.0)


@contextmanager
def joined_worker(client: Cluster, directory: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of the directory's name, joined. At the end nothing of it runs; in the same directory it comes back."""
    request = pb.CreateTokenRequest(request_id=uuid.uuid4().hex, kind=pb.TokenKind.JOIN, uses=1, ttl_s=60)
    directory.mkdir(exist_ok=True)
    token = directory / "join.token"
    if not token.exists():
        token.write_text(client._call("CreateToken", request, pb.CreateTokenResponse).token)
    words = [sys.executable, "-m", "fluster.cluster.worker", "serve", "--state-dir", str(directory)]
    words += ["--controller", client.address, "--token-file", str(token), "--worker-id", directory.name]
    words += options or ["--cpu", "1"]
    with (directory / "worker.log").open("ab") as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: directory.name in ready(client), f"worker {directory.name} has joined")
        yield process
    finally:
        process.kill()
        process.wait()
        words = [sys.executable, "-m", "fluster.cluster.worker", "end", "--state-dir", str(directory)]
        subprocess.run(words, check=True, timeout=WITHIN_S)


def ready(client: Cluster) -> list[str]:
    """Names of the workers that answer, in order."""
    return sorted(each.worker_id for each in client.workers() if each.status == "ready")
