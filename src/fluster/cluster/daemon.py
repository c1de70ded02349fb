"""The controller's process of a LocalCluster: started, watched, started again, ended. It ends with its creator."""

from __future__ import annotations

import json
import os
import select
import subprocess
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from fluster.errors import FlusterError

START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 30.0
"""Stopping ends the trees of running jobs first."""
_QUICK_DEATH_S = 1.0
_MAX_QUICK_DEATHS = 5
"""A controller that dies at once so often will not live: its log says why."""
_LOG_TAIL_BYTES = 2_000

_lifelines: weakref.WeakSet[Lifeline] = weakref.WeakSet()


class Lifeline:
    """A pipe whose far end is closed by the kernel when this process is gone, kill -9 included.

    Nothing is ever written to it. A forked child's copy would keep it open, so a child closes it first thing.
    """

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe()
        _lifelines.add(self)

    def cut(self) -> None:
        """Ends all that hold the other end; repeating is harmless."""
        fds, self.read_fd, self._write_fd = (self.read_fd, self._write_fd), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def _in_child() -> None:
    for lifeline in list(_lifelines):
        lifeline.cut()


os.register_at_fork(after_in_child=_in_child)


class ControllerProcess:
    """One controller, kept running on its state directory and port until `close`.

    Args:
        python: Interpreter with the `server` extra.
        state_dir: Its own; the log is `controller.log` in it.
        arguments: Of `controller serve`, without port and lifeline.
        first_arguments: Of the first start only.
    """

    def __init__(
        self, python: str, state_dir: Path, arguments: Sequence[str], first_arguments: Sequence[str] = ()
    ) -> None:
        self._command = [python, "-m", "fluster.cluster.controller.main", "serve", *arguments]
        self._log = state_dir / "controller.log"
        self._closing = threading.Event()
        self._lifeline = Lifeline()
        self._port = 0
        self.address = ""
        self.token_file = Path()
        try:
            self._process = self._start(first_arguments)
        except BaseException:
            self._lifeline.cut()
            raise
        self._watcher = threading.Thread(target=self._watch, name="fluster-controller-watcher", daemon=True)
        self._watcher.start()

    @property
    def pid(self) -> int:
        """Of the controller that runs now."""
        return self._process.pid

    def close(self) -> None:
        """Ends the controller with all its workers and jobs; returns when they are gone. Repeating is harmless."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._lifeline.cut()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._watcher.join()

    def abandon(self) -> None:
        """In a forked child: forgets the parent's process, which is not this one's to end."""
        self._closing.set()
        self._process.returncode = 0  # it is not a child of this process; waiting for it would fail

    def _start(self, extra: Sequence[str]) -> subprocess.Popen[bytes]:
        """Starts the controller and waits until it serves."""
        command = [*self._command, "--port", str(self._port), "--lifeline-fd", str(self._lifeline.read_fd), *extra]
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=(self._lifeline.read_fd,),
                start_new_session=True,  # Ctrl-C at the terminal is for the user's program
            )
        try:
            announced = json.loads(self._read_line(process))
        except ValueError:
            process.kill()
            process.wait()
            raise FlusterError(
                f"the local cluster's controller did not start; the end of {self._log}:\n{self._log_tail()}"
            ) from None
        finally:
            if process.stdout is not None:
                process.stdout.close()
        self.address = announced["address"]
        self.token_file = Path(announced["token_file"])
        self._port = int(self.address.rpartition(":")[2])
        return process

    def _read_line(self, process: subprocess.Popen[bytes]) -> bytes:
        """The first line of its output; shorter when it ended or took too long."""
        assert process.stdout is not None
        fd, line, deadline = process.stdout.fileno(), b"", time.monotonic() + START_TIMEOUT_S
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                break
            chunk = os.read(fd, 4096)
            if not chunk:
                break
            line += chunk
        return line

    def _watch(self) -> None:
        """Starts the controller again when it dies. What runs is adopted, so nobody notices but by the log."""
        quick_deaths = 0
        while not self._closing.is_set():
            started = time.monotonic()
            self._process.wait()
            if self._closing.is_set():
                return
            quick_deaths = quick_deaths + 1 if time.monotonic() - started < _QUICK_DEATH_S else 0
            if quick_deaths > _MAX_QUICK_DEATHS:
                return
            try:
                self._process = self._start(())
            except (FlusterError, OSError):
                # Its port may be taken for a moment, or the machine short of something: tried again.
                self._closing.wait(_QUICK_DEATH_S)

    def _log_tail(self) -> str:
        try:
            return self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        except OSError:
            return "(no log)"
