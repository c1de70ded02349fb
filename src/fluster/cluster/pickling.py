"""What travels as a pickle, on the client's side: entrypoints out, results and exceptions back."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import cloudpickle

from fluster import pickler
from fluster.cluster.culprit import describe_failure
from fluster.cluster.surroundings import is_installed
from fluster.errors import RemoteError
from fluster.remote import Thrown
from fluster.rpc.gen.fluster.cluster.v1.types_pb import Outcome
from fluster.rpc.gen.fluster.cluster.v1.types_pb import RemoteError as WireError

# Which modules go by value is a process-wide setting of cloudpickle, so one thread at a time changes it. By process id:
# a forked child must not wait for a lock that another thread of its parent held.
_by_value_locks: dict[int, threading.Lock] = {}


def dump_call(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    project_by_value: bool,
    elsewhere: frozenset[str] = frozenset(),
) -> bytes:
    """The call as bytes that a job's process loads as ``(fn, args, kwargs)``.

    Functions and classes of `__main__` and of notebooks always go by value, also those of the copy of `__main__` that
    multiprocessing has loaded in a child.

    Args:
        fn: What to call.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        project_by_value: Also send modules of the user's own project by value: they are not installed elsewhere.
        elsewhere: Files, as real paths, that the job finds in its workspace: modules of these go by name all the same.

    Raises:
        TypeError: Something cannot be pickled; the message names it and the way to it.
    """
    with _modules_by_value(project=project_by_value, elsewhere=elsewhere):
        try:
            return pickler.dumps((fn, tuple(args), dict(kwargs)))
        except Exception as error:
            raise TypeError(describe_failure(fn, args, kwargs, error)) from error


def load_outcome(data: bytes) -> Any:
    """The value an entrypoint returned.

    Raises:
        Exception: What the entrypoint raised: of the same type, the remote traceback attached as a note.
        RemoteError: That exception, or the value, cannot be rebuilt in this process.
    """
    kind = Outcome.from_binary(data).kind
    if kind is None:
        return None
    if isinstance(kind.value, WireError):
        wire = kind.value
        raise Thrown(wire.type_name, wire.message, wire.traceback, wire.pickled).rebuild()
    try:
        return pickle.loads(kind.value)
    except Exception as error:
        raise RemoteError(
            f"the job's result cannot be rebuilt here: {type(error).__name__}: {error};"
            " what it is made of must be importable in this process too",
        ) from error


def failed(data: bytes) -> bool:
    """Whether an outcome is an exception."""
    kind = Outcome.from_binary(data).kind
    return kind is not None and kind.field == "error"


@contextmanager
def _modules_by_value(*, project: bool, elsewhere: frozenset[str] = frozenset()) -> Iterator[None]:
    main_copy = sys.modules.get("__mp_main__")
    if not project and main_copy is None:
        yield
        return
    with _by_value_locks.setdefault(os.getpid(), threading.Lock()):
        before = cloudpickle.list_registry_pickle_by_value()
        # By name: that copy is in `sys.modules` twice.
        modules = [module for module in list(sys.modules.values()) if project and _of_project(module)]
        found = {
            module.__name__: module for module in modules if os.path.realpath(module.__file__ or "") not in elsewhere
        }
        if main_copy is not None and main_copy.__name__ == "__mp_main__":
            found["__mp_main__"] = main_copy
        chosen = [module for name, module in found.items() if name not in before]
        registered: list[ModuleType] = []
        try:
            for module in chosen:
                cloudpickle.register_pickle_by_value(module)
                registered.append(module)
            yield
        finally:
            for module in registered:
                cloudpickle.unregister_pickle_by_value(module)


def _of_project(module: object) -> bool:
    """Whether a module is Python source of the user's own, installed nowhere."""
    # Exactly modules: lazily loading stand-ins in sys.modules would load when asked for an attribute.
    if type(module) is not ModuleType:
        return False
    name, path = module.__dict__.get("__name__"), module.__dict__.get("__file__")
    if not isinstance(name, str) or not isinstance(path, str) or not path.endswith(".py"):
        return False
    if name == "__main__" or name.partition(".")[0] == "fluster" or sys.modules.get(name) is not module:
        return False
    return not is_installed(path)
