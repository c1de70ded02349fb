"""Makes `fray.current_client.current_client()` find Fluster in every thread and every Python process of a job.

fray looks a client up in a context variable, and threads begin with an empty context: what they find is the variable's
default. So the variable is replaced by one whose default is a Fluster client; `set_current_client` goes on working.
Processes that a job starts do the same when they import fray, by a `sitecustomize` on their `PYTHONPATH`.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any

from fluster.cluster.surroundings import Surroundings

_VARIABLE = "_current_client_var"
_START = str(Path(__file__).parent / "start")


def set_default(client: Any) -> None:
    """Has `current_client()` give this client wherever none is set.

    Raises:
        RuntimeError: This version of fray looks clients up in another way.
    """
    module = import_module("fray.current_client")  # which may be about to be loaded, and no attribute of fray's yet
    if not isinstance(getattr(module, _VARIABLE, None), ContextVar):
        raise RuntimeError(
            f"this version of marin-fray has no context variable {_VARIABLE} in fray.current_client, by which Fluster"
            " is found in a job's threads; docs/zephyr.md names the version that is supported"
        )
    setattr(module, _VARIABLE, ContextVar(_VARIABLE, default=client))


def prepare_subprocesses() -> None:
    """Has Python programs that this process starts find the same client, and what this process can import."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    entries = dict.fromkeys([_START, *Surroundings.here().import_path, *filter(None, given)])
    os.environ["PYTHONPATH"] = os.pathsep.join(entries)
