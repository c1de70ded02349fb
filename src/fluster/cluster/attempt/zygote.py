"""The warm parent of attempts: an interpreter with the job runtime imported that forks a shim for each request.

Run as `python -m fluster.cluster.attempt.zygote`. Single-threaded and without sockets, so that a fork is a sound copy:
requests come in on stdin, replies leave on stdout, and the end of stdin, a worker's death included, ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
from dataclasses import dataclass

from fluster.cluster.attempt import main as runner
from fluster.cluster.attempt import proc
from fluster.cluster.attempt.cgroup import Hierarchy, remove_if_empty
from fluster.cluster.attempt.ending import end_program, remember_preloaded
from fluster.cluster.attempt.replies import Replies
from fluster.cluster.attempt.request import hierarchies_from_json, pass_frame, read_head
from fluster.cluster.attempt.shim import Ends, supervise
from fluster.cluster.attempt.tree import send

_PRELOAD_LIST = "fluster.preload"
"""By name, because what is listed there stands above this layer."""
_PRELOAD_AFTER_MS = 1_500
_CHUNK = 1 << 16
# A spare costs as much to fork as an attempt to start: not while one is starting.
_SPARE_AFTER_MS = 10


@dataclass(frozen=True, slots=True)
class _Spare:
    """A shim that has not got its request yet: forked ahead, because forking is most of a start's time."""

    pid: int
    requests: int


class Zygote:
    """Serves requests until its worker or its lifeline is gone."""

    def __init__(self, requests: int, ends: Ends) -> None:
        self._requests = requests
        self._ends = ends
        self._shims: dict[int, int] = {}  # with the number of the request each was given, 0: none yet
        self._spare: _Spare | None = None
        self._preloads = [_PRELOAD_LIST]
        self._idle = False
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def serve(self) -> int | None:
        """Returns in each fork, with the descriptor its request comes on; in the zygote itself `None`, at its end."""
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        # An interpreter may come with packages that do something at each start, such as beginning a thread.
        self._ends.replies.tell({"ready": os.getpid(), "threads": len(os.listdir("/proc/self/task"))})
        poll = self._poll()
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(self._patience_ms())}
            if self._ends.lifeline in ready:
                return None
            if self._wake in ready:
                os.read(self._wake, _CHUNK)
                self._reap()
            if self._requests in ready:
                if (head := read_head(self._requests)) is None:
                    return None
                length, number = head
                if self._spare is None and (fork := self._fork(number)) is not None:
                    return fork
                self._hand_over(length, number)
            self._idle = not ready and self._spare is not None
            if self._idle:
                self._preload()
            if not ready and self._spare is None and (fork := self._fork(None)) is not None:
                return fork

    def end(self, cgroups: tuple[Hierarchy, ...]) -> None:
        """Ends the spare, which ends by itself when nobody can send it a request, and collects it and orphans."""
        if self._spare is not None:
            os.close(self._spare.requests)
            os.waitpid(self._spare.pid, 0)
            del self._shims[self._spare.pid]
            self._spare = None
        self._reap()
        for orphan in self._orphans():
            os.waitpid(orphan, 0)
        remove_if_empty(each.path for each in cgroups)

    def _poll(self) -> select.poll:
        poll = select.poll()
        for descriptor in (self._requests, self._wake, self._ends.lifeline):
            if descriptor is not None:
                poll.register(descriptor, select.POLLIN)
        return poll

    def _patience_ms(self) -> int | None:
        """How long to wait for an event before there is time for something else; `None`: there is nothing else."""
        if self._spare is None:
            return _SPARE_AFTER_MS
        if not self._preloads:
            return None
        return _SPARE_AFTER_MS if self._idle else _PRELOAD_AFTER_MS

    def _preload(self) -> None:
        """Imports one more module: no attempt waits for all of them."""
        if not self._preloads:
            return
        with contextlib.suppress(ImportError):  # an environment may have another version
            module = importlib.import_module(self._preloads.pop())
            self._preloads += reversed(module.MODULES) if module.__name__ == _PRELOAD_LIST else ()
        _keep_preloaded()

    def _hand_over(self, length: int, number: int) -> None:
        """Has the spare take the request that comes next."""
        spare, self._spare = self._spare, None
        taken = pass_frame(self._requests, length, spare.requests if spare is not None else None)
        if spare is None:  # could not be forked, and that was answered
            return
        if taken:
            self._shims[spare.pid] = number
        else:
            self._ends.replies.tell({"number": number, "fault": "the attempt's shim was killed before it began"})
        os.close(spare.requests)

    def _fork(self, number: int | None) -> int | None:
        """Makes the spare; `number` is the request that waits for it."""
        receiving, requests = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
        except OSError as error:
            os.close(receiving)
            os.close(requests)
            if number is not None:
                self._ends.replies.tell({"number": number, "fault": f"cannot fork a shim: {error.strerror}"})
            return None
        if pid == 0:
            os.close(requests)
            self._let_go()
            return receiving
        os.close(receiving)
        self._shims[pid] = 0
        self._spare = _Spare(pid, requests)
        return None

    def _let_go(self) -> None:
        """In a fork: what belongs to the zygote alone."""
        signal.set_wakeup_fd(-1)
        for descriptor in (self._requests, self._wake, self._woken):
            os.close(descriptor)

    def _reap(self) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self._forget(pid)
        self._end_orphans()

    def _forget(self, pid: int) -> None:
        if (number := self._shims.pop(pid, None)) is not None:
            # Also the last word on its request: a shim that was killed may not have answered.
            self._ends.replies.tell({"reaped": pid, "number": number})
        if self._spare is not None and self._spare.pid == pid:
            os.close(self._spare.requests)
            self._spare = None

    def _end_orphans(self) -> None:
        """A child that is no shim was left behind by one that somebody killed: nobody else will end it."""
        for orphan in self._orphans():
            send((orphan, *proc.descendants(orphan)), signal.SIGKILL)

    def _orphans(self) -> set[int]:
        return set(proc.children(os.getpid())) - self._shims.keys()


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="zygote")
    parser.add_argument("--lifeline-fd", type=int)
    parser.add_argument("--cgroups", type=json.loads, default=[])
    return parser.parse_args(arguments)


def _keep_preloaded() -> None:
    """What is imported now is the zygote's own, and its forks leave it alone."""
    remember_preloaded()
    gc.freeze()  # a collection in a fork would copy the pages of everything imported


def _move_pipes() -> tuple[int, int]:
    """Requests and replies on descriptors of their own; prints of an imported module must not become replies."""
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def main(arguments: list[str]) -> None:
    """Serves, and in a fork goes on as a shim, and in the shim's fork as the attempt itself."""
    parsed = _parse(arguments)
    requests, replies = _move_pipes()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)  # a terminal's Ctrl-C is for the worker to handle
    proc.name_this_process("fluster-zygote")
    proc.become_subreaper()
    gc.collect()
    _keep_preloaded()
    ends = Ends(Replies(replies), parsed.lifeline_fd, os.getpid())
    cgroups = hierarchies_from_json(parsed.cgroups)
    zygote = Zygote(requests, ends)
    if (requests_of_fork := zygote.serve()) is None:
        zygote.end(cgroups)
        os._exit(0)
    request = supervise(requests_of_fork, ends, cgroups, runner.get_ready)
    runner.replace_environment(request.environment)
    end_program(runner.run(request.own_directory, request.import_path))


if __name__ == "__main__":
    main(sys.argv[1:])
