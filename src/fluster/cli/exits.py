"""How commands end: exit codes, and errors as the one or two lines a person reads."""

from __future__ import annotations

import sys
from enum import IntEnum

import click

from fluster.cli.inert import inert
from fluster.errors import FlusterError, JobNotFound, NotPermitted, Unreachable


class ExitCode(IntEnum):
    """What a command's exit code says; `fluster run` passes the job's own besides."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_PERMITTED = 4
    UNREACHABLE = 5
    TIMED_OUT = 124
    INTERRUPTED = 130


class NotThere(FlusterError):
    """What was named on the command line is not there."""


class NoCluster(Unreachable):
    """A command needs a cluster, and none is configured."""

    def __init__(self, what: str = "no cluster is configured") -> None:
        super().__init__(f"{what}: start one with `fluster up`, or name one with --cluster")


def report(error: BaseException) -> int:
    """Says what went wrong on stderr and returns the exit code.

    Raises:
        BaseException: The error itself where it is a bug and Python runs in development mode.
    """
    if isinstance(error, KeyboardInterrupt | click.Abort):
        say("interrupted")
        return ExitCode.INTERRUPTED
    code, text = _verdict(error)
    say(text, command=error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "fluster")
    return code


def say(text: str, *, command: str = "fluster") -> None:
    """An error's line on stderr, and one more: the last, which in a log or a traceback says most."""
    lines = [line for line in inert(text).splitlines() if line.strip()] or ["failed"]
    shown = [f"{command}: {lines[0]}", *lines[1:][-1:]]
    try:
        print("\n".join(shown), file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody reads it


def _verdict(error: BaseException) -> tuple[ExitCode, str]:
    match error:
        case click.UsageError():
            return ExitCode.USAGE, f"{error.format_message()}{_usage_hint(error)}"
        case click.ClickException():
            return ExitCode(error.exit_code), error.format_message()
        case JobNotFound():
            # The library's text names its own method.
            return ExitCode.NOT_FOUND, error.message.replace("`Cluster.list_jobs()`", "`fluster jobs`")
        case NotThere():
            return ExitCode.NOT_FOUND, error.message
        case NotPermitted():
            return ExitCode.NOT_PERMITTED, error.message
        case Unreachable():
            return ExitCode.UNREACHABLE, error.message
        case TimeoutError():
            return ExitCode.UNREACHABLE, str(error)
        case FlusterError():
            return ExitCode.FAILED, error.message
        case OSError():
            return ExitCode.FAILED, str(error)
    if type(error) is ValueError:  # its subclasses are accidents, not refusals
        return ExitCode.USAGE, str(error)
    if sys.flags.dev_mode:
        raise error
    where = "`python -X dev -m fluster …` shows where"
    return ExitCode.FAILED, f"internal error, {type(error).__name__}: {error}; {where}"


def _usage_hint(error: click.UsageError) -> str:
    return f"\nsee {error.ctx.command_path} --help" if error.ctx is not None else ""
