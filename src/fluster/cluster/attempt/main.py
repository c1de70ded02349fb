"""Runs an attempt's entrypoint as the whole of a program, in a fork of a zygote or in an interpreter of its own."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import pickle
import signal
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from fluster.cluster.attempt import files, outcome

INTERRUPTED = 130


def run(directory: Path, import_path: tuple[str, ...]) -> str | int | None:
    """Calls the entrypoint and writes its outcome, after `get_ready`; gives what `sys.exit` is to be called with."""
    _set_signals()
    sys.path[:] = [*import_path, *(entry for entry in sys.path if entry not in import_path)]
    importlib.invalidate_caches()
    try:
        outcome.write_value(directory, _call(directory))
    except SystemExit as stop:
        return _exit(directory, stop.code)
    except BaseException as error:
        return _fail(directory, error)
    return 0


def replace_environment(environment: Mapping[str, str]) -> None:
    """Makes `environment` the whole of this process's, as an exec would."""
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()


def get_ready() -> None:
    """Makes a fork of a zygote, or `python -m`, look like a fresh program, before its directory is known.

    The rest is a rehearsal: what it writes to in memory, in a fork, is copied now and not when the request has come.
    """
    _become_program()
    replace_environment(dict(os.environ))
    outcome.rehearse()
    importlib.invalidate_caches()


def _set_signals() -> None:
    """Python's own choice, which a command must not inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def _become_program() -> None:
    sys.argv[:] = ["fluster-attempt"]
    # Functions of the submitter's `__main__` come with their globals; ours must not be among them.
    program = types.ModuleType("__main__")
    program.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = program
    # By line, so that logs show what was printed before a crash.
    sys.stdout = sys.__stdout__ = _line_writer(1)  # type: ignore[misc, assignment]
    sys.stderr = sys.__stderr__ = _line_writer(2)  # type: ignore[misc, assignment]


def _line_writer(descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _call(directory: Path) -> object:
    try:
        function, arguments, keywords = pickle.loads((directory / files.ENTRYPOINT).read_bytes())
    except Exception as error:
        error.add_note("The entrypoint could not be loaded; what it imports must be installed where the job runs.")
        raise
    _fill_main(function)
    return function(*arguments, **keywords)


def _fill_main(function: object) -> None:
    """Gives `__main__` what came of the submitter's: multiprocessing pickles functions and classes by their name."""
    main = sys.modules["__main__"].__dict__
    if isinstance(function, type) and function.__module__ == "__main__":
        main.setdefault(function.__name__, function)
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    globals_ = getattr(function, "__globals__", None)
    if not isinstance(globals_, dict) or globals_.get("__name__") != "__main__":
        return
    for name, value in {getattr(function, "__name__", ""): function, **globals_}.items():
        if name.isidentifier():
            main.setdefault(name, value)


def _exit(directory: Path, code: str | int | None) -> str | int | None:
    """`sys.exit` in the entrypoint: a success gives `None` as the result, anything else speaks by its exit code."""
    if code is None or (isinstance(code, int) and code & 0xFF == 0):
        outcome.write_value(directory, None)
    return code


def _fail(directory: Path, error: BaseException) -> int:
    error.__traceback__ = outcome.without_frames_of(__file__, error.__traceback__)
    with contextlib.suppress(Exception):  # the user's own excepthook may fail, and so may a full disk
        sys.excepthook(type(error), error, error.__traceback__)
    with contextlib.suppress(OSError):  # a full disk: the exit code still says that it failed
        outcome.write_error(directory, error)
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def main(arguments: list[str]) -> None:
    """The attempt in an interpreter of its own: its directory, and the import path as JSON."""
    directory = Path(arguments[0])
    get_ready()
    (directory / files.LOADED).touch()
    sys.exit(run(directory, tuple(json.loads(arguments[1]))))


if __name__ == "__main__":
    main(sys.argv[1:])
