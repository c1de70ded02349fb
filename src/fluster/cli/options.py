"""Options that several commands have, and how their values are written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from fluster.cli.human import parse_duration
from fluster.cluster.docker.mounts import Mount
from fluster.cluster.validation import MAX_SECONDS

F = TypeVar("F", bound=Callable[..., Any])


class Duration(click.ParamType[float]):
    """Seconds, written as `90`, `30s`, `10m` or `1h30m`."""

    name = "duration"

    def __init__(self, *, zero: bool = False) -> None:
        self._zero = zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds."""
        if isinstance(value, int | float):
            return float(value)
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        # Written so that NaN is refused too.
        if not (0 <= seconds <= MAX_SECONDS) or (seconds == 0 and not self._zero):
            self.fail(f"a duration is {'0' if self._zero else 'above 0'} to ten years, got {value!r}", param, ctx)
        return seconds


class Variable(click.ParamType[tuple[str, str]]):
    """A variable for the job: `NAME=VALUE`, or `NAME` for the value it has here."""

    name = "variable"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Name and value."""
        if isinstance(value, tuple):
            return value
        name, has_value, text = value.partition("=")
        if not name:
            self.fail("it is NAME=VALUE, or NAME for the value it has here", param, ctx)
        if not has_value:
            if name not in os.environ:
                self.fail(f"{name} is not set here; give it as {name}=VALUE", param, ctx)
            text = os.environ[name]
        return name, text


class Gpus(click.ParamType[tuple[str, int]]):
    """GPUs of one task: `2`, `A100`, `A100:2`."""

    name = "gpus"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Variant and count."""
        if isinstance(value, tuple):
            return value
        variant, separator, count = value.rpartition(":")
        if not separator:
            variant, count = ("auto", value) if value.isdigit() else (value, "1")
        if not variant or not re.fullmatch("[0-9]{1,9}", count):
            self.fail(f"it is a count, a model, or both: 2, A100, A100:2; got {value!r}", param, ctx)
        return variant, int(count)


class InterpreterPath(click.ParamType[str]):
    """Where an interpreter is, on this machine or in an image."""

    name = "python"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The same path."""
        if not os.path.isabs(value):
            self.fail(f"it is an absolute path, got {value!r}", param, ctx)
        return str(value)


def python_option(flag: str) -> Callable[[F], F]:
    """`--python`, on commands that start workers of this machine."""
    text = "Interpreter of functions that ask for none; of containers, in their image.  [default: the workers' own]"
    return click.option(flag, type=InterpreterPath(), metavar="P", help=text)


class MountOption(click.ParamType[str]):
    """A directory that containers see, as it is written."""

    name = "mount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The same text, once it is known to be one."""
        try:
            Mount.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


def mount_option(function: F) -> F:
    """`--mount`, on commands that start what runs containers."""
    text = "A directory of this machine that all containers see, there or at another path; may be repeated."
    return click.option("--mount", "mounts", multiple=True, type=MountOption(), metavar="DIR[:DIR[:ro]]", help=text)(
        function
    )


def cluster_option(function: F) -> F:
    """`--cluster`, on every command that talks to one."""
    text = "Address or configured name of the cluster.  [default: the configured one]"
    return click.option("--cluster", "cluster", metavar="CLUSTER", help=text)(function)


def json_option(function: F) -> F:
    """`--json`, on every reading command."""
    return click.option("--json", "as_json", is_flag=True, help="Print a JSON array of objects.")(function)


def job_argument(function: F) -> F:
    """One job."""
    return click.argument("job", metavar="JOB")(function)
