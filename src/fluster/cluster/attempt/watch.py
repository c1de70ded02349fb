"""Follows one attempt from its first moment to its last: limits, orders, the end of its tree, and the record of it."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from dataclasses import dataclass
from typing import Any

from fluster.cluster.attempt import files, proc, record, user
from fluster.cluster.attempt.cgroup import AttemptCgroup
from fluster.cluster.attempt.launch import COMMAND_NOT_EXECUTABLE, GO, StartError
from fluster.cluster.attempt.lease import LeaseFile
from fluster.cluster.attempt.replies import Replies
from fluster.cluster.attempt.request import StartRequest, hierarchies_to_json
from fluster.cluster.attempt.tree import Tree
from fluster.cluster.clocks import unix_clock

SAMPLE_EVERY_S = 0.2
_PAUSE_MS = 20
_DAEMON_FIRST_S = 0.5
"""At the end of the lease the worker's daemon stops its attempts, and knows why; it may be dead or frozen."""
_LEASE_UNKNOWN_S = 10.0
_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Fork:
    """The process that waits to become the attempt.

    Attributes:
        cgroup: What it has joined, or is about to.
        orders: Pipe to it: the request, then the word to go.
        errors: Pipe from it: closes when it starts, after a `StartError` if it cannot.
    """

    pid: int
    cgroup: AttemptCgroup
    orders: int
    errors: int


class Watch:
    """One attempt as its shim sees it, which is this process and a subreaper.

    Args:
        request: What to run.
        fork: The process that becomes the attempt.
        replies: Where the worker is told that it runs, or has ended without.
        lifeline: Descriptor whose end of file ends the tree at once, if there is one.
    """

    def __init__(self, request: StartRequest, fork: Fork, replies: Replies, lifeline: int | None) -> None:
        self._request = request
        self._fork = fork
        self._replies = replies
        self._exit_file = record.ExitFile.reserve(request.directory)
        self._cgroup = fork.cgroup
        self._tree = Tree(self._cgroup, fork.pid)
        self._samples = not (self._cgroup.holds("memory") and self._cgroup.holds("pids"))
        self._wake = _wake_on_children()
        self._control = _open_control(request)
        self._poll = select.poll()
        for descriptor in (self._wake, self._control, fork.errors, lifeline):
            if descriptor is not None:
                self._poll.register(descriptor, select.POLLIN)
        self._running: dict[str, Any] = {}
        self._start_noted = False
        self._started_at: float | None = None
        self._clock = unix_clock()
        self._lease = LeaseFile(request.lease) if request.lease is not None else None
        self._time_over = self._next_sample = self._next_lease = self._kill_at = _NEVER
        self._start_error: StartError | None = None
        self._stop_requested = self._timed_out = self._memory_exceeded = self._deserted = self._lease_ended = False
        self._peak_bytes = 0

    def run(self) -> None:
        """Returns when the attempt is over, its tree gone and its exit record written."""
        try:
            self._cgroup.limit(self._request.bounds)
            self._let_go()
        except OSError as error:
            self._kill_at = 0.0
            if error.errno == errno.EBUSY:  # v1: less memory than the process has taken for itself
                self._memory_exceeded = True
            else:
                self._start_error = StartError(f"cannot prepare the attempt: {error}", fluster_fault=True)
        while not self._is_over():
            self._turn()
        self._tree.kill(self._pause)
        if self._request.user is not None:
            user.take_result(self._request.directory, self._request.user)
        if not self._start_noted and self._running:
            self._note_start()  # it ended, and so closed its errors, between two looks
        self._write_record()

    def _let_go(self) -> None:
        """Starts the attempt, and its clock."""
        self._clock = unix_clock()  # this process may have waited for long
        self._started_at = self._clock()
        now = time.monotonic()
        if self._request.time_s is not None:
            self._time_over = now + self._request.time_s
        if self._samples:
            self._next_sample = now + SAMPLE_EVERY_S
        if self._lease is not None:
            self._next_lease = now
        hierarchies = hierarchies_to_json(self._cgroup.hierarchies)
        self._running = record.running_fields(self._fork.pid, self._started_at, hierarchies)
        files.write_json(self._request.directory / files.RUNNING, self._running)
        os.write(self._fork.orders, GO)

    @property
    def _ended(self) -> bool:
        return self._tree.status is not None

    def _is_over(self) -> bool:
        """Whether what is left now, if anything, is to be killed. Told to stop, all of the tree has the grace."""
        alive = self._tree.reap()
        if time.monotonic() >= self._kill_at:
            return True
        return self._ended and (self._kill_at == _NEVER or not (alive or self._cgroup.pids()))

    def _turn(self) -> None:
        until = min(self._time_over, self._next_sample, self._next_lease, self._kill_at)
        timeout = None if until == _NEVER else max(0.0, until - time.monotonic()) * 1000 + 1
        for descriptor, _ in self._poll.poll(timeout):
            self._heed(descriptor)
        self._check_time()
        if time.monotonic() >= self._next_sample:
            self._sample()
        if self._lease is not None and time.monotonic() >= self._next_lease:
            self._check_lease(self._lease)

    def _heed(self, descriptor: int) -> None:
        if descriptor == self._wake:
            # Before anything else this turn may decide: an attempt that has ended cannot be told to stop.
            os.read(descriptor, 4096)
            self._tree.reap()
        elif descriptor == self._fork.errors:
            self._note_start()
        elif descriptor == self._control:
            self._obey(os.read(descriptor, 4096).decode(errors="replace"))
        else:
            self._deserted = True
            self._poll.unregister(descriptor)
            self._kill_at = 0.0

    def _note_start(self) -> None:
        """Its errors have come or ended: it runs, or never will."""
        problem = os.read(self._fork.errors, 65536)
        self._poll.unregister(self._fork.errors)
        self._start_noted = True
        if problem:
            self._start_error = StartError.received(problem)
        else:
            self._replies.answer(self._request.number, self._running)

    def _obey(self, orders: str) -> None:
        for grace in record.graces(orders):
            self._stop_requested |= not self._ended
            self._end_within(grace)

    def _check_time(self) -> None:
        if time.monotonic() >= self._time_over:
            self._time_over = _NEVER
            self._timed_out = not self._ended
            self._end_within(self._request.grace_s)

    def _check_lease(self, lease: LeaseFile) -> None:
        """Without a lease others may be given the work, so that it must not go on here."""
        left_s = lease.left_s()
        if left_s is None:
            self._next_lease = time.monotonic() + _LEASE_UNKNOWN_S
        elif left_s > -_DAEMON_FIRST_S:
            self._next_lease = time.monotonic() + left_s + _DAEMON_FIRST_S
        else:
            self._next_lease = _NEVER
            self._lease_ended = not self._stop_requested
            self._stop_requested |= not self._ended
            # The grace began when it was this process's turn, also where the machine stood still since.
            self._end_within(max(0.0, self._request.grace_s + left_s + _DAEMON_FIRST_S))

    def _end_within(self, grace_s: float) -> None:
        if self._kill_at == _NEVER:
            self._tree.terminate()
        self._kill_at = min(self._kill_at, time.monotonic() + grace_s)

    def _sample(self) -> None:
        """Holds the limits where the kernel does not."""
        self._next_sample = time.monotonic() + SAMPLE_EVERY_S
        bounds, pids = self._request.bounds, self._tree.pids()
        used = proc.memory_bytes(pids, bounds.memory_bytes)
        self._peak_bytes = max(self._peak_bytes, used)
        if bounds.memory_bytes is not None and used > bounds.memory_bytes and not self._cgroup.holds("memory"):
            self._memory_exceeded = not self._ended
            self._kill_at = 0.0
        if len(pids) > bounds.pids and not self._cgroup.holds("pids"):
            record.say(self._request.directory, f"stopped: {len(pids)} processes, the limit is {bounds.pids}")
            self._kill_at = 0.0

    def _pause(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if poll.poll(_PAUSE_MS):
            os.read(self._wake, 4096)

    def _write_record(self) -> None:
        out_of_memory = self._memory_exceeded or self._cgroup.oom_kills() > 0
        peak = self._cgroup.peak_memory_bytes() or max(self._peak_bytes, self._tree.largest_bytes)
        self._cgroup.remove()
        status = self._tree.status or 0
        problem = self._start_error or self._unloaded(status, out_of_memory)
        self._exit_file.write(
            record.exit_fields(
                status=status,
                out_of_memory=out_of_memory,
                timed_out=self._timed_out,
                stop_requested=self._stop_requested,
                problem=problem,
                peak_memory_bytes=peak,
                started_at=self._started_at,
                finished_at=self._clock(),
                lease_ended=self._lease_ended,
            )
        )
        self._replies.answer(self._request.number, {"ended": True})

    def _unloaded(self, status: int, out_of_memory: bool) -> StartError | None:
        """An interpreter that ended by itself before it had loaded the job runtime never ran the attempt."""
        ended_from_outside = out_of_memory or self._timed_out or self._stop_requested or self._deserted
        if not self._request.interpreter or ended_from_outside or status == 0:
            return None
        if (self._request.own_directory / files.LOADED).exists():
            return None
        assert self._request.argv is not None
        return record.unusable_interpreter(self._request.argv[0], self._request.directory, COMMAND_NOT_EXECUTABLE)


def _wake_on_children() -> int:
    """A descriptor that becomes readable when a child ends."""
    wake, woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    return wake


def _open_control(request: StartRequest) -> int:
    """The FIFO with the worker's orders, also those of a worker that comes later."""
    path = request.directory / files.CONTROL
    with contextlib.suppress(FileExistsError):  # of a shim that was killed before the attempt began
        os.mkfifo(path, 0o600)
    # Open for writing too: with no other writer there is no end of file.
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
