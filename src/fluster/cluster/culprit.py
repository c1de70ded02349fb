"""Finds what in a call cannot be pickled, and says the way to it: only asked once pickling has failed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import cloudpickle

from fluster.cluster.refusal import shown

# Each step pickles the parts of one object; deeper than this nobody follows.
_MAX_STEPS = 8
_MAX_PARTS = 1_000


def describe_failure(fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], error: Exception) -> str:
    """Names what is in the way: ``the global 'lock' of the entrypoint 'f' is a _thread.lock and cannot be …``."""
    name = getattr(fn, "__qualname__", None) or type(fn).__name__
    parts: list[tuple[str, Any]] = [(f"the entrypoint {name!r}", fn)]
    parts += [(f"argument {index} of {name!r}", value) for index, value in enumerate(args)]
    parts += [(f"argument {key!r} of {name!r}", value) for key, value in kwargs.items()]
    found = _first_failing(parts)
    if found is None:
        return f"the call of {name!r} cannot be pickled: {_text(error)}"
    where, culprit, cause = _follow(*found)
    cure = "create it inside the function, or pass what it is made from"
    return f"{where} is a {_kind(culprit)} and cannot be pickled ({_text(cause)}); {cure}"


def _follow(where: str, value: Any, cause: Exception) -> tuple[str, Any, Exception]:
    """From an object that fails to the part of a part of it that fails by itself."""
    if isinstance(cause, RecursionError) or "recursion" in _text(cause):  # every part of it would say the same
        return where, value, cause
    seen = {id(value)}
    for _ in range(_MAX_STEPS):
        found = _first_failing(part for part in _parts(value) if id(part[1]) not in seen)
        if found is None:
            break
        step, value, cause = found
        where = f"{step} of {where}"
        seen.add(id(value))
    return where, value, cause


def _first_failing(parts: Iterator[tuple[str, Any]] | Sequence[tuple[str, Any]]) -> tuple[str, Any, Exception] | None:
    for _, (where, value) in zip(range(_MAX_PARTS), parts, strict=False):
        try:
            cloudpickle.dumps(value)
        except Exception as error:
            return where, value, error
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What pickling the object pickles too, with how it hangs on it."""
    if isinstance(value, FunctionType):
        yield from _function_parts(value)
    elif isinstance(value, MethodType):
        yield "the object", value.__self__
        yield "the function", value.__func__
    elif isinstance(value, functools.partial):
        yield "the function it wraps", value.func
        yield from ((f"the argument {index}", item) for index, item in enumerate(value.args))
        yield from ((f"the argument {key!r}", item) for key, item in value.keywords.items())
    elif isinstance(value, Mapping):
        yield from ((f"the value of {shown(key)}", item) for key, item in value.items())
        yield from ((f"the key {shown(key)}", key) for key in value)
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"item {index}", item) for index, item in enumerate(value))
    elif isinstance(value, type):
        yield from ((f"the attribute {key!r}", item) for key, item in vars(value).items() if not _is_slot(key))
    elif not isinstance(value, ModuleType):
        yield from ((f"the attribute {key!r}", item) for key, item in getattr(value, "__dict__", {}).items())


def _function_parts(fn: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            yield f"the closure variable {name!r}", cell.cell_contents
        except ValueError:  # still empty
            continue
    for name in _global_names(fn.__code__):
        if name in fn.__globals__:
            yield f"the global {name!r}", fn.__globals__[name]
    yield from ((f"the default {index}", item) for index, item in enumerate(fn.__defaults__ or ()))
    yield from ((f"the default of {key!r}", item) for key, item in (fn.__kwdefaults__ or {}).items())
    yield from ((f"the attribute {key!r}", item) for key, item in fn.__dict__.items())


def _global_names(code: CodeType) -> list[str]:
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names.update(dict.fromkeys(_global_names(constant)))
    return list(names)


def _is_slot(name: str) -> bool:
    return name in ("__dict__", "__weakref__", "__module__", "__qualname__", "__doc__")


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _text(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:
        return type(error).__name__
