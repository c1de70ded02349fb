"""What a job waits for and where it runs, on stderr while a command follows it: moving on a terminal, else as lines."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fluster.cli.human import format_duration
from fluster.cli.inert import inert
from fluster.cli.terminal import console, is_fancy, print_talk
from fluster.cluster.states import JobStatus
from fluster.errors import FlusterError

if TYPE_CHECKING:
    from rich.status import Status

    from fluster.cluster.client import Cluster
    from fluster.cluster.types import JobInfo

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0
_QUIET_S = 0.3
"""A job that starts within it has not waited."""
_REPEAT_S = 60.0
"""A wait whose numbers alone change is told again after it, where lines cannot be rewritten."""
_CLOSE_S = 2.0
_NUMBERS = re.compile(r"[0-9.]+")


class Talker:
    """Says things on stderr: lasting lines, and one passing line that moves where stderr is a terminal."""

    def __init__(self) -> None:
        self._fancy = sys.stderr is not None and is_fancy(sys.stderr)
        self._lock = threading.Lock()
        self._status: Status | None = None

    def passing(self, text: str) -> bool:
        """Shows it until the next thing is said; `False` where nothing can be rewritten."""
        if not self._fancy:
            return False
        with self._lock:
            shown = inert(text)
            if self._status is None:
                self._status = console(sys.stderr).status(shown, spinner="dots", spinner_style="cyan")
                self._status.start()
            else:
                self._status.update(shown)
        return True

    def lasting(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        if self._fancy:
            console(sys.stderr).print(inert(text), style="dim", soft_wrap=True)
        else:
            print_talk(text)

    def clear(self) -> None:
        """Takes the passing line away, so that others can print."""
        with self._lock:
            if self._status is not None:
                self._status.stop()
                self._status = None


@contextmanager
def passing(text: str) -> Iterator[None]:
    """Shows a line while the block runs; where it cannot be taken away again, it stays."""
    talker = Talker()
    if not talker.passing(text):
        talker.lasting(text)
    try:
        yield
    finally:
        talker.clear()


class Progress:
    """Watches one job in a thread of its own, from entering to leaving.

    Args:
        cluster: Shared with the caller; connections are not.
        job_id: The job.
    """

    def __init__(self, cluster: Cluster, job_id: str) -> None:
        self._cluster = cluster
        self._job_id = job_id
        self._talker = Talker()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fluster-progress", daemon=True)
        self._since = time.monotonic()
        self._waits = False
        self._said = ""
        self._said_at = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        # A call to a controller that hangs is not waited for: the thread holds nothing.
        self._thread.join(_CLOSE_S)
        self._talker.clear()

    def make_room(self) -> None:
        """The job prints: what moves gets out of the way, and a wait that was told of is over."""
        if self._waits:
            self._waits = False
            self._talker.lasting(f"started after {format_duration(time.monotonic() - self._since)}")
        self._talker.clear()

    def _watch(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._ended.is_set():
            try:
                info = self._cluster.poll(self._job_id)
            except (FlusterError, TimeoutError, RuntimeError) as error:
                if not self._ended.is_set():
                    self._wait_line(f"the controller does not answer: {error}")
            else:
                if info.status.finished():
                    return
                self._show(info)
            self._ended.wait(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)

    def _show(self, info: JobInfo) -> None:
        if line := where_it_runs(info):
            if line != self._said:
                self._said, self._waits = line, False
                self._talker.lasting(line)
        elif time.monotonic() - self._since >= _QUIET_S:
            self._wait_line(_wait_of(info))

    def _wait_line(self, line: str) -> None:
        now, self._waits = time.monotonic(), True
        if self._talker.passing(line):
            self._said = line
            return
        if _NUMBERS.sub("", line) != _NUMBERS.sub("", self._said) or now - self._said_at > _REPEAT_S:
            self._said, self._said_at = line, now
            self._talker.lasting(line)


def _wait_of(info: JobInfo) -> str:
    """`waiting: 2 cpu needed, 1 free`, or what is built for it."""
    reason = info.pending_reason or "to be placed"
    return reason if info.status is JobStatus.RUNNING and info.pending_reason else f"waiting: {reason}"


def where_it_runs(info: JobInfo) -> str:
    """`running on w-1`; empty while nothing of it runs. Says which attempt it is, after the first."""
    tasks = [task for task in info.tasks if task.started_at is not None and task.finished_at is None]
    if not tasks:
        return ""
    workers = sorted({task.worker_id for task in tasks if task.worker_id})
    attempt = max(task.attempt for task in tasks)
    place = ", ".join(workers[:3]) + (f" and {len(workers) - 3} more" if len(workers) > 3 else "")
    again = f", attempt {attempt}" if attempt > 1 else ""
    count = f"{len(tasks)} of {len(info.tasks)} tasks " if len(info.tasks) > 1 else ""
    return f"{count}running on {place}{again}"
