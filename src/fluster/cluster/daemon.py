"""The controller's process of a LocalCluster: started, watched, started again, ended. It ends with its creator."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import subprocess
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from fluster.cluster.restarts import Restarts
from fluster.errors import FlusterError

_log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 30.0
"""Stopping ends the trees of running jobs first."""
_LOG_TAIL_BYTES = 2_000

_ours: weakref.WeakSet[ControllerProcess] = weakref.WeakSet()


class Lifeline:
    """A pipe whose far end is closed by the kernel when this process is gone, kill -9 included.

    Nothing is ever written to it. A forked child's copy would keep it open, so a child closes it first thing.
    """

    def __init__(self) -> None:
        self.read_fd, self._write_fd = (_beyond_standard_streams(fd) for fd in os.pipe())

    def cut(self) -> None:
        """Ends all that hold the other end; repeating is harmless."""
        fds, self.read_fd, self._write_fd = (self.read_fd, self._write_fd), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def _beyond_standard_streams(fd: int) -> int:
    """A program that has closed its own gets their numbers for the next files: a child's streams would replace ours."""
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def _in_child() -> None:
    for process in list(_ours):
        process.abandon()


os.register_at_fork(after_in_child=_in_child)


class ControllerProcess:
    """One controller, kept running on its state directory and port until `close`. A forked child's copy is inert.

    Args:
        python: Interpreter with the `server` extra.
        state_dir: Its own; the log is `controller.log` in it.
        arguments: Of `controller serve`, without state directory, port and lifeline.
        first_arguments: Of the first start only.
    """

    def __init__(
        self, python: str, state_dir: Path, arguments: Sequence[str], first_arguments: Sequence[str] = ()
    ) -> None:
        self._command = [python, "-m", "fluster.cluster.controller"]
        self._state_dir = state_dir
        self._arguments = arguments
        self._log = state_dir / "controller.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._spawning = threading.Lock()
        self._ending = threading.Lock()
        self._closing = threading.Event()
        self._port = 0
        self.address = ""
        self.token_file = Path()
        self._lifeline = Lifeline()
        _ours.add(self)
        try:
            self._start(first_arguments)
        except BaseException:
            self._end()
            raise
        self._watcher = threading.Thread(target=self._watch, name="fluster-controller-watcher", daemon=True)
        self._watcher.start()

    @property
    def pid(self) -> int:
        """Of the controller that runs now, or is being started."""
        assert self._process is not None
        return self._process.pid

    def close(self) -> None:
        """Ends the controller with all its workers and jobs; returns when they are gone. Repeating is harmless."""
        self._end()
        self._watcher.join()

    def abandon(self) -> None:
        """In a forked child: lets go of the parent's process, which is not this one's to end."""
        self._closing.set()
        self._lifeline.cut()
        if self._process is not None:
            self._process.returncode = 0  # it is not a child of this process; waiting for it would fail

    def _end(self) -> None:
        with self._spawning:  # from here on no other is started
            self._closing.set()
            self._lifeline.cut()
        with self._ending:  # whoever comes second waits until nothing is left
            if self._process is None:
                return
            try:
                status = self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                status = self._process.wait()
            if status != 0:
                self._end_workers()
            self._process = None

    def _end_workers(self) -> None:
        """Ends what a controller that did not end in order has left."""
        if not (self._state_dir / "workers").exists():
            return
        command = [*self._command, "end", "--state-dir", str(self._state_dir)]
        with open(self._log, "ab", opener=_privately) as log:
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)

    def _start(self, extra: Sequence[str]) -> None:
        """Starts the controller and waits until it serves."""
        process = self._spawn(extra)
        try:
            announced = json.loads(self._read_line(process))
        except ValueError:
            process.kill()
            process.wait()
            raise FlusterError(self._failure()) from None
        finally:
            if process.stdout is not None:
                process.stdout.close()
        self.address = announced["address"]
        self.token_file = Path(announced["token_file"])
        self._port = int(self.address.rpartition(":")[2])

    def _spawn(self, extra: Sequence[str]) -> subprocess.Popen[bytes]:
        command = [*self._command, "serve", *self._arguments, "--state-dir", str(self._state_dir)]
        with self._spawning, open(self._log, "ab", opener=_privately) as log:
            if self._closing.is_set():
                raise FlusterError("this cluster is shut down")
            fd = self._lifeline.read_fd
            try:
                self._process = subprocess.Popen(
                    [*command, "--port", str(self._port), "--lifeline-fd", str(fd), *extra],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    pass_fds=(fd,),
                    start_new_session=True,  # Ctrl-C at the terminal is for the user's program
                )
            except OSError as error:
                raise FlusterError(f"cannot start the controller under {command[0]}: {error.strerror}") from error
            return self._process

    def _read_line(self, process: subprocess.Popen[bytes]) -> bytes:
        """The first line of its output; shorter when it ended or took too long."""
        assert process.stdout is not None
        fd, line, deadline = process.stdout.fileno(), b"", time.monotonic() + START_TIMEOUT_S
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while not line.endswith(b"\n") and poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            if not (chunk := os.read(fd, 4096)):
                break
            line += chunk
        return line

    def _watch(self) -> None:
        """Starts the controller again when it dies. What runs is adopted, so nobody notices but by the log."""
        restarts = Restarts()
        while (process := self._process) is not None:
            status = process.wait()
            if self._closing.wait(restarts.pause_s(time.monotonic())):
                return
            _log.warning("the local cluster's controller ended with status %s; it is started again", status)
            try:
                self._start(())
            except FlusterError as error:
                # Its port may be taken for a moment, or the machine short of something: tried again.
                _log.warning("the local cluster's controller: %s", error)

    def _failure(self) -> str:
        try:
            said = self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        except OSError:
            said = "(no log)"
        python, text = self._command[0], "the local cluster's controller did not start"
        if "No module named" in said:
            text += f" under {python}, which lacks modules: `{python} -m pip install 'fluster-cluster[server]'`"
        return f"{text}; the end of {self._log}:\n{said}"


def _privately(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
