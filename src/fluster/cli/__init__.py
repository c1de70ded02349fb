"""The `fluster` command; its parts are loaded when they are used."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line, by default this process's, and returns its exit code."""
    try:
        from fluster.cli.app import run_command
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        print("fluster: the command needs the server extra: pip install 'fluster-cluster[server]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return run_command(sys.argv[1:] if argv is None else list(argv))
