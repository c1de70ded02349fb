"""The attempt's own process from its fork to its first instruction: what it waits for, joins, closes and becomes."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from fluster.cluster.attempt import files, proc, user
from fluster.cluster.attempt.cgroup import AttemptCgroup
from fluster.cluster.attempt.request import StartRequest, read_frame

COMMAND_NOT_FOUND = 127
COMMAND_NOT_EXECUTABLE = 126
GO = b"g"
"""Follows the request on the pipe from the shim, once the limits are set and the attempt is on record."""

_RESET = [number for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP} if number < signal.SIGRTMIN]
_END_OF_DESCRIPTORS = os.sysconf("SC_OPEN_MAX")


@dataclass(frozen=True, slots=True)
class StartError:
    """Why nothing ran: the user's to mend, with the exit code a shell would give; or Fluster's own fault."""

    message: str
    exit_code: int | None = None
    fluster_fault: bool = False

    def send(self, descriptor: int) -> None:
        """Tells the shim."""
        os.write(descriptor, json.dumps([self.message, self.exit_code, self.fluster_fault]).encode())

    @classmethod
    def received(cls, content: bytes) -> StartError:
        """What the attempt's process told."""
        return cls(*json.loads(content))


def become_attempt(
    shim: int, cgroup: AttemptCgroup, orders: int, errors: int, get_ready: Callable[[], None]
) -> StartRequest:
    """Turns this fork of a shim into the attempt that the shim names on `orders`: a command never returns from here.

    Whatever goes wrong is written to `errors`, which closes otherwise. Without an order the process ends.
    `get_ready` is what a callable needs and a command is not harmed by; there is time for it before the order comes.
    """
    try:
        _separate(shim)
        _close_all_but(orders, errors)
        cgroup.join()
        get_ready()
        request = _await_order(orders)
        _use_files(request)
        _await_go(orders)
        if request.user is not None:
            user.become(request.user, request.groups, shim)
    except BaseException as error:
        _give_up(errors, StartError(f"cannot set up the attempt's process: {error}", fluster_fault=True))
    _enter(request, errors)
    if request.argv is not None:
        _execute(request.argv, request, errors)
    os.close(errors)
    return request


def _separate(shim: int) -> None:
    """Its own session: signals it sends to its process group do not reach the shim."""
    os.setsid()
    proc.die_with_parent(signal.SIGKILL)
    if os.getppid() != shim:  # it ended before the kernel knew of that wish
        os._exit(1)
    for number in _RESET:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    proc.name_this_process("fluster-attempt")


def _close_all_but(*kept: int) -> None:
    start = 3
    for descriptor in sorted(kept):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, _END_OF_DESCRIPTORS)


def _await_order(orders: int) -> StartRequest:
    frame = read_frame(orders)
    if frame is None:
        os._exit(0)
    request = StartRequest.from_json(frame)
    proc.mark_this_process(request.uid)
    return request


def _await_go(orders: int) -> None:
    if os.read(orders, len(GO)) != GO:
        os._exit(0)
    os.close(orders)


def _use_files(request: StartRequest) -> None:
    """The log files as stdout and stderr; stdin is empty since the shim."""
    for target, name in ((1, files.STDOUT), (2, files.STDERR)):
        opened = os.open(request.directory / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if request.user is not None:  # for programs that open /dev/stdout
            os.fchown(opened, request.user, request.user)
        os.dup2(opened, target)  # inheritable, unlike what it copies
        os.close(opened)


def _enter(request: StartRequest, errors: int) -> None:
    try:
        os.chdir(request.working_directory)
    except OSError as error:
        message = f"cannot enter the working directory {str(request.working_directory)!r}: {error.strerror}"
        _give_up(errors, StartError(message))


def _execute(argv: tuple[str, ...], request: StartRequest, errors: int) -> NoReturn:
    try:
        os.execvpe(argv[0], argv, request.environment)
    except (OSError, ValueError) as error:
        _give_up(errors, _refusal(argv[0], request, error))


def _refusal(program: str, request: StartRequest, error: OSError | ValueError) -> StartError:
    what = "the interpreter" if request.interpreter else "the command"
    if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENOTDIR):
        where = f" on PATH ({request.environment.get('PATH', os.defpath)})"
        if "/" in program:
            where = "" if os.path.isabs(program) else f" in {str(request.working_directory)!r}"
        return StartError(f"{what} {program!r} was not found{where}", COMMAND_NOT_FOUND)
    if isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.ENOMEM):
        return StartError(f"cannot execute {what} {program!r}: {error.strerror}", fluster_fault=True)
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return StartError(f"{what} {program!r} cannot be executed: {reason}", COMMAND_NOT_EXECUTABLE)


def _give_up(errors: int, reason: StartError) -> NoReturn:
    try:
        reason.send(errors)
    finally:
        os._exit(1)
