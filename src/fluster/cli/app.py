"""The table of commands, and how one of them is run and ended."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from fluster.cli.exits import ExitCode, report

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@dataclass(frozen=True, slots=True)
class Entry:
    """A command that is loaded when it is used: `module:attribute` below `fluster.cli`."""

    home: str
    help: str


class LazyGroup(click.Group):
    """A group that knows its commands by name and one line, under headings, without loading them."""

    def __init__(self, name: str, sections: Mapping[str, Mapping[str, Entry]], **settings: Any) -> None:
        super().__init__(name, context_settings=_SETTINGS, no_args_is_help=True, **settings)
        self._sections = sections
        self._entries = {name: entry for section in sections.values() for name, entry in section.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the help."""
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, loaded now; `None` when there is none."""
        entry = self._entries.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.home.partition(":")
        command = getattr(import_module(f"fluster.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        command.context_settings = {**_SETTINGS, **command.context_settings}
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but a name that is none is told with what was probably meant."""
        if args and args[0] not in self._entries and not args[0].startswith("-"):
            from fluster.cluster.refusal import nearest, shown

            raise click.UsageError(f"no command {shown(args[0])}{nearest(args[0], self._entries)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, without loading what it names."""
        width = max(map(len, self._entries))
        for heading, section in self._sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), entry.help) for name, entry in section.items()])


CONTROLLER = LazyGroup(
    "controller",
    {"Commands": {"serve": Entry("serve:controller_serve", "Run a controller in the foreground.")}},
    help="The process that keeps a cluster's jobs.",
)
WORKER = LazyGroup(
    "worker",
    {
        "Commands": {
            "serve": Entry("serve:worker_serve", "Run a worker on this machine in the foreground."),
            "token": Entry("tokens:worker_token", "Print a token with which a worker can join."),
        }
    },
    help="The processes that run jobs, one on each machine.",
)
TOKEN = LazyGroup(
    "token",
    {
        "Commands": {
            "create": Entry("tokens:token_create", "Make a token for a user, with quotas."),
            "list": Entry("tokens:token_list", "List tokens, and what users use of their quotas."),
            "revoke": Entry("tokens:token_revoke", "End a token, or all of a user."),
        }
    },
    help="Users of a cluster, and what they may have. For administrators.",
)
CONFIG = LazyGroup(
    "config",
    {"Commands": {"show": Entry("settings:config_show", "What holds here, and who says so.")}},
    help="Which cluster commands mean.",
)
ROOT = LazyGroup(
    "fluster",
    {
        "Jobs": {
            "run": Entry("run:run", "Run a command as a job, and follow it."),
            "jobs": Entry("jobs:jobs", "List jobs, newest first."),
            "status": Entry("jobs:status", "How a job and its tasks are."),
            "logs": Entry("logs:logs", "What a job prints."),
            "wait": Entry("ends:wait", "Wait until a job has ended."),
            "stop": Entry("ends:stop", "Stop a job and everything it started."),
            "why": Entry("jobs:why", "What a job waits for, or why it ended and what to do."),
            "events": Entry("events:events", "What happened to a job, step by step."),
        },
        "Cluster": {
            "workers": Entry("machines:workers", "List workers, with what they have and have left."),
            "endpoints": Entry("machines:endpoints", "List the endpoints that jobs registered."),
            "token": Entry("app:TOKEN", "Make, list and revoke tokens of users."),
            "config": Entry("app:CONFIG", "Which cluster commands mean."),
            "doctor": Entry("doctor:doctor", "What this machine has, what it lacks, and what to do."),
        },
        "Clusters of your own": {
            "up": Entry("up:up", "Start a cluster on this machine that stays."),
            "down": Entry("up:down", "End it, with its jobs."),
            "controller": Entry("app:CONTROLLER", "Run a controller."),
            "worker": Entry("app:WORKER", "Run workers, and let them join."),
        },
    },
    help="Runs jobs on clusters. Without a configured cluster, `fluster run` starts one for its job.",
    epilog="`fluster COMMAND --help` has the details. Data goes to stdout, everything else to stderr.",
)


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from fluster import __version__

        click.echo(f"fluster {__version__}")
        ctx.exit()


ROOT.params.append(
    click.Option(
        ["--version"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_print_version,
        help="Show the version.",
    )
)


def run_command(argv: Sequence[str]) -> int:
    """Runs one command line; whatever happens becomes an exit code and at most two lines on stderr."""
    try:
        code = _invoke(list(argv))
        _flush()
        return code
    except BrokenPipeError:
        return _reader_left()
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return ExitCode.USAGE
    except (Exception, KeyboardInterrupt) as error:
        try:
            _flush()  # what was printed comes before what went wrong
        except BrokenPipeError:
            return _reader_left()
        return report(error)


def _invoke(argv: list[str]) -> int:
    # `ROOT.main` would turn a reader that left into exit code 1.
    try:
        with ROOT.make_context("fluster", argv) as context:
            code = ROOT.invoke(context)
    except click.exceptions.Exit as end:  # --help and --version
        return end.exit_code
    return code if isinstance(code, int) else ExitCode.OK


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _reader_left() -> int:
    """Nobody reads stdout any more (`fluster logs … | head`): what was wanted was got."""
    # Python flushes once more at its exit, and would complain then.
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
    return ExitCode.OK
