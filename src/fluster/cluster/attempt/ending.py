"""How a fork of a zygote ends: like an interpreter that finalizes, without taking apart what the zygote shares with it.

Taking apart the preloaded modules writes to nearly all of their memory, which the fork then has to copy: about 10 ms
of an attempt that may have run for one. What the program itself made is finalized as ever: threads are joined, `atexit`
functions run, its modules are cleared in Python's order so that files are flushed and `__del__` runs, and C's `exit`
does the same for libraries.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import sys
import threading
import types
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from typing import NoReturn

_PRELOADED: set[str] = set()
_NOT_WRITTEN = 120  # the interpreter's own exit code for it


def remember_preloaded() -> None:
    """Marks all modules imported so far as the zygote's."""
    _PRELOADED.update(sys.modules)


def end_program(code: object) -> NoReturn:
    """What `sys.exit(code)` does at the end of a program."""
    status = _status(code)
    _run(threading._shutdown)  # type: ignore[attr-defined]
    _run(atexit._run_exitfuncs)
    if _has_threads() or _has_libraries():
        # They may rely on being held off, or told, by the interpreter's own end; and 10 ms are nothing to them.
        sys.exit(status)
    _flush()
    _clear_modules()
    ctypes.PyDLL(None).exit(status if _flush() else status or _NOT_WRITTEN)
    raise AssertionError("exit returned")


def _has_threads() -> bool:
    return len(os.listdir("/proc/self/task")) > 1


def _has_libraries() -> bool:
    """Whether the program loaded compiled modules of others than Python."""
    return any(
        isinstance(getattr(module, "__loader__", None), ExtensionFileLoader)
        and name.partition(".")[0] not in sys.stdlib_module_names
        for name, module in list(sys.modules.items())
        if name not in _PRELOADED
    )


def _status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _run(step: Callable[[], object]) -> None:
    try:
        step()
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)


def _flush() -> bool:
    """Whether what was printed could be written."""
    written = True
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except Exception:
            written = False
    return written


def _clear_modules() -> None:
    """Modules that the program imported go, then cycles, then what was still referred to, the latest import first."""
    own = [name for name in sys.modules if name not in _PRELOADED or name == "__main__"]
    modules = [module for name in own if isinstance(module := sys.modules.pop(name), types.ModuleType)]
    namespaces = [module.__dict__ for module in modules]
    del modules
    gc.collect()
    for namespace in reversed(namespaces):
        _clear(namespace)
    gc.collect()


def _clear(namespace: dict[str, object]) -> None:
    """Names with one underscore first, as in the interpreter; `__builtins__` stays for the `__del__` of others."""
    private = [name for name in namespace if name.startswith("_") and not name.startswith("__")]
    for name in (*private, *namespace.keys() - {"__builtins__"}):
        namespace[name] = None
