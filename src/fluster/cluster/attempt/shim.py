"""The small process above each attempt: forks it, waits with it for the request, and stays until its tree is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fluster.cluster.attempt import files, proc, record
from fluster.cluster.attempt.cgroup import AttemptCgroup, Bounds, Hierarchy, remove_if_empty
from fluster.cluster.attempt.launch import become_attempt
from fluster.cluster.attempt.replies import Replies
from fluster.cluster.attempt.request import HEAD_BYTES, StartRequest, read_frame, write_frame
from fluster.cluster.attempt.tree import Tree
from fluster.cluster.attempt.watch import Fork, Watch

_PAUSE_S = 0.02
_NOWHERE = Path("/nowhere/at/all")


@dataclass(frozen=True, slots=True)
class Ends:
    """What a shim has of others.

    Attributes:
        replies: To the worker.
        lifeline: Descriptor whose end of file ends everything at once, if there is one.
        zygote: The process that forks shims.
    """

    replies: Replies
    lifeline: int | None
    zygote: int


def supervise(requests: int, ends: Ends, cgroups: tuple[Hierarchy, ...], get_ready: Callable[[], None]) -> StartRequest:
    """Gets ready for one attempt, waits for the request, and runs it to the end of its tree; in a fork made for it.

    Returns in the attempt's own process only, and there only for a callable: the caller then runs it and exits.
    `get_ready` is called there while the request is waited for.
    """
    shim = os.getpid()
    ends.replies.tell({"forked": shim})
    _become_shim()
    fork: Fork | OSError
    try:
        cgroup = AttemptCgroup.below(cgroups)
        (order_end, orders), (errors, error_end) = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        if (pid := os.fork()) == 0:
            return become_attempt(shim, cgroup, order_end, error_end, get_ready)
        os.close(order_end)
        os.close(error_end)
        fork = Fork(pid, cgroup, orders, errors)
    except OSError as error:
        fork = error
    _serve(requests, ends, fork)
    os._exit(0)


def _serve(requests: int, ends: Ends, fork: Fork | OSError) -> None:
    """What the shim does from then on."""
    _rehearse()
    cgroup = AttemptCgroup(()) if isinstance(fork, OSError) else fork.cgroup
    frame = read_frame(requests)
    if frame is None or not _watch(StartRequest.from_json(frame), frame, ends, fork):
        Tree(cgroup).kill(_doze)
        cgroup.remove()
    if os.getppid() != ends.zygote:  # nobody will make attempts below the worker's cgroup any more
        remove_if_empty(each.path.parent for each in cgroup.hierarchies)


def _watch(request: StartRequest, frame: bytes, ends: Ends, fork: Fork | OSError) -> bool:
    """Whether the attempt was begun here, and its end seen and recorded."""
    try:
        if isinstance(fork, OSError):
            raise fork
        lock = files.take_lock(request.directory)  # held until this process ends
        over = (files.RUNNING, files.EXIT, files.ABANDONED)
        if lock is None or any((request.directory / name).exists() for name in over):
            ends.replies.answer(request.number, {"known": True})
            return False
        write_frame(fork.orders, frame)
        proc.mark_this_process(request.uid)
        Watch(request, fork, ends.replies, ends.lifeline).run()
        return True
    except BaseException as error:
        ends.replies.answer(request.number, {"fault": f"the attempt's shim failed: {error!r}"})
        return False


def _rehearse() -> None:
    """Does once what the request will need, to no effect: what that writes to in memory is copied before it counts."""
    bounds = Bounds(cpu=1.0, cpu_quota=False, memory_bytes=None, pids=1)
    request = StartRequest(0, "", _NOWHERE, None, False, {}, _NOWHERE, (), bounds, None, 0.0)
    StartRequest.from_json(request.to_frame()[HEAD_BYTES:])
    running = record.running_fields(os.getpid(), time.time(), [])
    with contextlib.suppress(OSError):
        files.take_lock(_NOWHERE)
    with contextlib.suppress(OSError):
        files.write_json(_NOWHERE / files.RUNNING, running)


def _doze() -> None:
    time.sleep(_PAUSE_S)


def _become_shim() -> None:
    proc.name_this_process("fluster-shim")
    os.setsid()
    proc.become_subreaper()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)
