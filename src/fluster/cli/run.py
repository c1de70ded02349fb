"""`run`: a command as a job, followed to its end."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import click

from fluster.cli.exits import ExitCode, NoCluster
from fluster.cli.options import Duration, Gpus, Variable, cluster_option
from fluster.cli.target import connect, find_target
from fluster.cli.terminal import print_talk
from fluster.cluster.states import Priority

if TYPE_CHECKING:
    from fluster.cluster.types import JobRequest, ResourceConfig

_DIRECTORY = click.Path(exists=True, file_okay=False)
_PYTHON = re.compile(r"python[0-9.]*")


class _RunCommand(click.Command):
    """Takes everything after `--` as the command, and nothing that looks like an option before it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, separator, command = _split(args)
        ctx.allow_interspersed_args = False
        if not separator:
            return self._parse_without_separator(ctx, own)
        rest = super().parse_args(ctx, [*own, "--", *command])
        if list(ctx.params["command"]) != command:
            raise click.UsageError(f"unexpected {ctx.params['command'][0]!r} before --", ctx)
        return rest

    def _parse_without_separator(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for word in ctx.params.get("command", ()):
            if word.startswith("-"):
                raise click.UsageError(f"{word!r} is no option here; what belongs to the command goes after --", ctx)
        return rest


def _split(args: list[str]) -> tuple[list[str], bool, list[str]]:
    if "--" not in args:
        return args, False, []
    at = args.index("--")
    return args[:at], True, args[at + 1 :]


@click.command(cls=_RunCommand)
@click.option("--name", help="Of the job.  [default: the program's]")
@click.option("--cpu", type=float, help="Cores of each task.  [default: 1, with GPUs 4]")
@click.option("--memory", metavar="SIZE", help="Memory of each task: 512MB, 1.5GiB.  [default: 2GB, with GPUs 16GB]")
@click.option("--gpu", type=Gpus(), metavar="[MODEL:]N", help="GPUs of each task: 1, A100, A100:4.")
@click.option("--tpu", metavar="TYPE", help="A TPU slice, with one task for each of its hosts: v5litepod-16.")
@click.option("--replicas", type=int, default=1, help="Tasks, or TPU slices, that start together.  [default: 1]")
@click.option("--priority", type=click.Choice([str(each) for each in Priority]), default="normal", show_default=True)
@click.option("--env", "variables", type=Variable(), metavar="K=V", multiple=True, help="A variable; K alone: as here.")
@click.option("--workspace", type=_DIRECTORY, help="Send this directory: the command runs in a copy of it.")
@click.option("--with", "packages", metavar="PACKAGE", multiple=True, help="Install this for it: numpy, 'torch<3'.")
@click.option("--image", help="A container image to run it in, on workers that have a Docker Engine.")
@click.option("--timeout", type=Duration(), help="Ends the job after so long: seconds, or 30s, 10m, 1h30m.")
@click.option("--detach", is_flag=True, help="Print the job's id and leave it running.")
@cluster_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD…")
def run(detach: bool, cluster: str | None, **options: Any) -> int:
    """Run a command as a job: print what it prints, and exit with its exit code.

    Everything after -- is the command. Exit code 124 says that it ran into --timeout, 130 that you pressed Ctrl-C.

    Without a configured cluster one is started on this machine, and ended with the command. On a configured cluster
    the job goes on after Ctrl-C.

    --workspace sends what git would keep of a directory. Where that has a pyproject.toml, the command finds what the
    project depends on; --with adds to it. Such an environment is built once per machine, and holds nothing else.
    """
    from fluster.cli.follow import run_here, run_there

    request = _request(**options)
    target = find_target(cluster)
    if target is None:
        if detach:
            raise NoCluster("--detach needs a cluster that stays")
        return run_here(request)
    with connect(target) as client:
        if not detach:
            return run_there(client, request)
        job_id = client.launch(request)
        print(job_id)
        print_talk(f"job {request.name} launched; `fluster logs -f {job_id}` shows what it prints")
        return ExitCode.OK


def _request(
    command: tuple[str, ...],
    name: str | None,
    priority: str,
    timeout: float | None,
    image: str | None,
    variables: tuple[tuple[str, str], ...],
    workspace: str | None,
    packages: tuple[str, ...],
    **sizes: Any,
) -> JobRequest:
    from fluster.cluster.types import Entrypoint, EnvironmentConfig, JobRequest

    return JobRequest(
        name=name if name is not None else default_name(command),
        entrypoint=Entrypoint.from_command(*command),
        resources=_resources(**sizes),
        environment=EnvironmentConfig(workspace, image, pip_packages=packages, env_vars=dict(variables)),
        timeout_s=timeout,
        priority=priority,
    )


def _resources(
    cpu: float | None, memory: str | None, gpu: tuple[str, int] | None, tpu: str | None, replicas: int
) -> ResourceConfig:
    from fluster.cluster.types import ResourceConfig

    sizes: dict[str, Any] = {}
    if cpu is not None:
        sizes["cpu"] = cpu
    if memory is not None:
        sizes["memory"] = int(memory) if memory.isdigit() else memory
    if gpu is not None and tpu is not None:
        raise click.UsageError("--gpu and --tpu exclude each other")
    if tpu is not None:
        return ResourceConfig.with_tpu(tpu, replicas, **sizes)
    if gpu is not None:
        return ResourceConfig.with_gpu(gpu[0], gpu[1], replicas=replicas, **sizes)
    return ResourceConfig.with_cpu(replicas=replicas, **sizes)


def default_name(command: tuple[str, ...]) -> str:
    """The program's name; of a Python script, the script's."""
    words = [PurePath(command[0]).name, *command[1:2]]
    name = words[0]
    if _PYTHON.fullmatch(name) and len(words) > 1 and words[1].endswith(".py"):
        name = PurePath(words[1]).stem
    allowed = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._-]", "", name))
    return allowed.lstrip("._-")[:128] or "job"
