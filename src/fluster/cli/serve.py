"""`controller serve` and `worker serve`: the daemons in the foreground."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import click

from fluster.cli.options import Duration, mount_option, python_option
from fluster.cli.places import state_home
from fluster.cluster.daemon_log import log_to_stderr

_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _take_defaults(ctx: click.Context, param: click.Parameter, file: Path | None) -> None:
    """`--config`: a TOML file whose keys are this command's options; what is given on the command line wins."""
    if file is None:
        return
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{file} cannot be used: {error}", ctx, param) from None
    known = {option: each for each in ctx.command.params for option in each.opts if each is not param}
    defaults: dict[str, Any] = {}
    for key, value in table.items():
        option = known.get(f"--{key.replace('_', '-')}")
        if option is None or option.name is None or isinstance(value, dict):
            raise click.BadParameter(f"{file}: {key!r} is no option of `{ctx.command_path}`", ctx, param)
        if isinstance(value, list) != option.multiple:
            one_or_several = "a list" if option.multiple else "one value and no list"
            raise click.BadParameter(f"{file}: {key!r} takes {one_or_several}", ctx, param)
        words = value if isinstance(value, list) else [value]
        given = [word if isinstance(word, bool) else str(word) for word in words]
        defaults[option.name] = given if option.multiple else given[0]
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


@click.command()
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Where to listen; others than loopback: see below."
)
@click.option("--port", type=click.IntRange(0, 65_535), default=7077, show_default=True, help="0: any that is free.")
@click.option("--state-dir", type=_DIRECTORY, help="Where it keeps everything.  [default: below ~/.local/state]")
@click.option(
    "--backend",
    type=click.Choice(["local", "docker", "none"]),
    default="none",
    show_default=True,
    help="Who provides workers: this machine, as processes or containers, or nobody: they join by themselves.",
)
@click.option(
    "--workers", type=click.IntRange(1, 1_000), default=1, show_default=True, help="Of this machine, at most."
)
@click.option("--job-users", metavar="FIRST-LAST", help="--backend local, as root: each job's process is one of these.")
@click.option("--worker-image", metavar="IMAGE", help="What containers run.  [default: built with this Fluster]")
@python_option("--worker-python")
@mount_option
@click.option(
    "--config",
    type=_FILE,
    is_eager=True,
    expose_value=False,
    callback=_take_defaults,
    help="These options as a TOML file.",
)
@click.option(
    "--worker-lease", type=Duration(), default="300", show_default=True, help="How long a silent worker keeps its jobs."
)
@click.option("--take-over", is_flag=True, help="End the controller that holds the state directory first.")
@click.option("--tls-cert", type=_FILE, help="Your own certificate, PEM, with what it is signed by.")
@click.option("--tls-key", type=_FILE, help="The key of --tls-cert.")
@click.option(
    "--public-name",
    "public_names",
    multiple=True,
    metavar="NAME",
    help="Name or address others use for this machine, if it does not know it itself; may be repeated.",
)
@click.option("--worker-certificates", is_flag=True, help="Workers must also show a certificate, given as they join.")
@click.option("--insecure-plaintext-network", is_flag=True, help="Listen beyond loopback, tokens in plain text.")
def controller_serve(
    host: str,
    port: int,
    state_dir: Path | None,
    backend: str,
    workers: int,
    job_users: str | None,
    worker_image: str | None,
    worker_python: str | None,
    mounts: tuple[str, ...],
    worker_lease: float,
    take_over: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    public_names: tuple[str, ...],
    worker_certificates: bool,
    insecure_plaintext_network: bool,
) -> int:
    """Run a controller in the foreground.

    Prints one line of JSON when it serves: its address, the file with the administrator's token, and its epoch. SIGTERM
    and Ctrl-C end it and leave running jobs alone; started again on the same state directory it goes on with them.

    Beyond loopback connections are encrypted: at the first start the cluster gets a certificate authority of its own
    (ca.pem in the state directory), which workers believe by their join token and clients by `ca_file` of the
    configured cluster or FLUSTER_CA_FILE.
    """
    from fluster.cluster.loading import uncollected

    with uncollected():
        from fluster.cluster.controller.main import ServeOptions, run

    log_to_stderr()
    return run(
        ServeOptions(
            state_dir=(state_dir or state_home() / "controller").absolute(),
            host=host,
            port=port,
            backend=backend,
            workers=workers,
            job_users=job_users,
            worker_image=worker_image,
            worker_python=worker_python,
            mounts=mounts,
            worker_lease_s=worker_lease,
            take_over=take_over,
            tls_cert=tls_cert.absolute() if tls_cert is not None else None,
            tls_key=tls_key.absolute() if tls_key is not None else None,
            public_names=public_names,
            worker_certificates=worker_certificates,
            insecure_plaintext_network=insecure_plaintext_network,
        )
    )


class _GpuCount(click.ParamType[int | str]):
    """`auto`, or how many."""

    name = "gpus"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The count, or "auto"."""
        text = str(value)
        if text == "auto":
            return text
        return int(text) if text.isdigit() else self.fail(f"it is a count or 'auto', got {text!r}", param, ctx)


@click.command()
@click.option("--controller", required=True, metavar="URL", help="Address of the controller.")
@click.option("--token-file", type=_FILE, help="Holds a token of `fluster worker token`; needed the first time.")
@click.option("--ca-file", type=_FILE, help="The authority to believe, where the join token does not name it.")
@click.option("--state-dir", type=_DIRECTORY, help="Where it keeps everything.  [default: below ~/.local/state]")
@click.option(
    "--runtime",
    type=click.Choice(["auto", "process", "docker"]),
    default="auto",
    show_default=True,
    help="Processes, containers, or containers for those who ask for an image.",
)
@click.option("--image", help="Of containers of those who ask for none.  [default: a public Python image]")
@mount_option
@click.option("--python", metavar="P", help="Interpreter of functions that ask for none.  [default: this one]")
@click.option("--cpu", type=float, metavar="N", help="Cores it offers.  [default: all]")
@click.option("--memory", metavar="M", help="Memory it offers: 16GB.  [default: all]")
@click.option("--gpus", type=_GpuCount(), default="auto", show_default=True, metavar="N", help="GPUs it offers.")
@click.option("--cpu-quota", is_flag=True, help="Jobs get no more than their cpu, even on idle cores.")
@click.option("--job-users", metavar="FIRST-LAST", help="Each job's process gets a user of its own; see below.")
@click.option("--job-group", "job_groups", multiple=True, metavar="G", help="Group they are in; may be repeated.")
@click.option("--cache-dir", type=_DIRECTORY, help="Where environments and workspaces lie.  [default: below ~/.cache]")
@click.option("--cache-size", metavar="M", help="What environments may take there: 50GB.  [default: 20GiB]")
def worker_serve(
    controller: str,
    token_file: Path | None,
    ca_file: Path | None,
    state_dir: Path | None,
    runtime: str,
    image: str | None,
    mounts: tuple[str, ...],
    python: str | None,
    cpu: float | None,
    memory: str | None,
    gpus: int | str,
    cpu_quota: bool,
    job_users: str | None,
    job_groups: tuple[str, ...],
    cache_dir: Path | None,
    cache_size: str | None,
) -> int:
    """Run a worker on this machine in the foreground.

    It joins the controller with the token. SIGTERM and Ctrl-C end it and leave its jobs running; started again on the
    same state directory it is the same worker, goes on with them and needs no token.

    Jobs run as the worker's own user and can read what that can: the worker's credential and other jobs' files, too. A
    worker that runs as root gives each process of a job a user of its own with --job-users 600000-601999: uids that no
    account has, two for each job at a time. Fluster, --state-dir and --cache-dir must then lie where all users may go.
    """
    from fluster.cluster.context import normal_address
    from fluster.cluster.validation import check_cpu, parse_bytes
    from fluster.cluster.worker.cache import DEFAULT_CAP_BYTES
    from fluster.cluster.worker.config import WorkerConfig
    from fluster.cluster.worker.main import run

    log_to_stderr()
    config = WorkerConfig(
        controller=normal_address(controller),
        token_file=token_file,
        ca_file=ca_file.absolute() if ca_file is not None else None,
        state_dir=(state_dir or state_home() / "worker").absolute(),
        runtime=runtime,
        image=image,
        mounts=mounts,
        python=python,
        cpu=check_cpu(cpu) if cpu is not None else None,
        memory_bytes=parse_bytes(memory, "memory") if memory is not None else None,
        gpus=gpus,
        cpu_quota=cpu_quota,
        job_users=job_users,
        job_groups=job_groups,
        cache_dir=cache_dir.absolute() if cache_dir is not None else None,
        cache_cap_bytes=parse_bytes(cache_size, "cache-size") if cache_size is not None else DEFAULT_CAP_BYTES,
    )
    return run(config)
