"""The worker's command line: `python -m fluster.cluster.worker serve …`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fluster.cluster.context import with_absolute_python_path
from fluster.cluster.daemon_log import log_to_stderr
from fluster.cluster.loading import uncollected
from fluster.cluster.validation import check_cpu, check_int, check_name, parse_bytes
from fluster.cluster.worker.config import WorkerConfig
from fluster.errors import FlusterError, NotPermitted


def run(config: WorkerConfig) -> int:
    """Serves until told to end; the exit code. See `fluster.cluster.worker.daemon.run`."""
    with uncollected():
        from fluster.cluster.worker import daemon

    # Zygotes and jobs run in other directories.
    os.environ.update(with_absolute_python_path(os.environ))
    return daemon.run(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; exit code 2 for what cannot be, 4 for what is not permitted, 1 for what went wrong."""
    arguments = _parser().parse_args(argv)
    log_to_stderr()
    try:
        if arguments.command == "end":
            from fluster.cluster.worker import daemon

            daemon.end(arguments.state_dir.absolute())
            return 0
        return run(_config(arguments))
    except (ValueError, FlusterError, OSError) as error:
        print(f"fluster worker: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 4 if isinstance(error, NotPermitted) else 1


def _config(arguments: argparse.Namespace) -> WorkerConfig:
    given = {key: value for key, value in vars(arguments).items() if key != "command" and value is not None}
    for several in ("job_groups", "mounts"):
        given[several] = tuple(given.get(several, ()))
    config = WorkerConfig(**{**given, "state_dir": (given.get("state_dir") or WorkerConfig().state_dir).absolute()})
    if config.cpu is not None:
        check_cpu(config.cpu)
    if config.worker_id is not None:
        check_name(config.worker_id, "worker_id")
    if config.max_jobs is not None:
        check_int(config.max_jobs, "max_jobs", low=1, high=100_000)
    return config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fluster worker", description="Run a worker in the foreground.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve; without --controller alone, through its own API")
    serve.add_argument("--controller", metavar="URL")
    serve.add_argument("--token-file", type=Path)
    serve.add_argument("--ca-file", type=Path)
    serve.add_argument("--state-dir", type=Path)
    serve.add_argument("--runtime", choices=("auto", "process", "docker"))
    serve.add_argument("--image", help="of attempts in containers that ask for none")
    serve.add_argument("--mount", dest="mounts", action="append", metavar="DIR[:DIR[:ro]]", help="which containers see")
    serve.add_argument("--python", metavar="PATH", help="interpreter of callables that ask for none")
    serve.add_argument("--cpu", type=float)
    serve.add_argument("--memory", dest="memory_bytes", type=_memory)
    serve.add_argument("--gpus", type=_gpus, metavar="N|auto")
    serve.add_argument("--cpu-quota", action="store_true", help="attempts get no more than their cpu on idle cores")
    serve.add_argument("--cache-dir", type=Path)
    serve.add_argument("--cache-size", dest="cache_cap_bytes", type=_memory)
    serve.add_argument("--job-users", metavar="FIRST-LAST", help="attempts run as these users, each as one of its own")
    serve.add_argument("--job-group", dest="job_groups", action="append", metavar="GROUP", help="which they are in too")
    serve.add_argument("--max-jobs", type=int)
    serve.add_argument("--worker-id")
    serve.add_argument("--allocation-id")
    serve.add_argument("--lifeline-fd", type=int)
    serve.add_argument("--exit-when-idle", dest="exit_when_idle_s", type=float, metavar="SECONDS")
    serve.add_argument("--host")
    serve.add_argument("--port", type=int)
    serve.add_argument("--advertise-host")
    serve.add_argument("--insecure-plaintext-network", action="store_true", help="a --host that is not loopback")
    end = commands.add_parser("end", help="end what a worker that is gone left running")
    end.add_argument("--state-dir", type=Path, required=True)
    return parser


def _memory(text: str) -> int:
    try:
        return parse_bytes(int(text) if text.isdigit() else text, "memory")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _gpus(text: str) -> int | str:
    if text != "auto" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"'auto' or a number, got {text!r}")
    return text if text == "auto" else int(text)
