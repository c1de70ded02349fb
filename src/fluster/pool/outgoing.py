"""Makes tasks of functions and arguments: pickles them when they are given, each function once."""

from __future__ import annotations

import functools
import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from fluster.cluster.culprit import describe_failure
from fluster.cluster.pickling import _modules_by_value, dump_call
from fluster.errors import ResourceExhausted
from fluster.pool.tasks import Function, Timing
from fluster.pool.wire import Mode, dump_value, is_small

_MAX_REMEMBERED = 1_024

Payload = tuple[int, Any, int]
"""Mode, content, and its bytes."""


class Outgoing:
    """Pickles for one pool.

    Args:
        project_by_value: Also modules of the user's own project, which workers elsewhere do not have.
    """

    def __init__(self, *, project_by_value: bool) -> None:
        self._by_value = project_by_value
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._functions: weakref.WeakValueDictionary[bytes, Function] = weakref.WeakValueDictionary()
        self._settled: dict[Callable[..., Any], tuple[CodeType | None, Function]] = {}
        self._timings: dict[str, Timing] = {}

    def function(self, fn: Callable[..., Any]) -> Function:
        """The function as it is now.

        Raises:
            TypeError: It cannot be called, or not be pickled; the message says why.
        """
        settled = _is_settled(fn)
        if settled and (known := self._settled.get(fn)) is not None and known[0] is getattr(fn, "__code__", None):
            return known[1]
        if not callable(fn):
            raise TypeError(f"a task is a function with its arguments, got a {type(fn).__name__}")
        content = dump_call(fn, (), {}, project_by_value=self._by_value)
        with self._lock:
            found = self._functions.get(content)
            if found is None:
                found = Function(next(self._ids), _name_of(fn), content, self._timing(fn))
                self._functions[content] = found
            if settled:
                if len(self._settled) >= _MAX_REMEMBERED:
                    self._settled.clear()
                self._settled[fn] = getattr(fn, "__code__", None), found
        return found

    def call(self, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Payload:
        """The arguments of one call, as they are now.

        Raises:
            TypeError: Something cannot be pickled; the message names it.
            ResourceExhausted: They are too large.
        """
        if not kwargs and all(map(is_small, args)):
            return Mode.ARGUMENTS, args, 0
        with self.pickling():
            return self._call(fn, args, kwargs)

    def items(self, fn: Callable[..., Any], items: Iterable[Any], *, star: bool) -> Iterator[Payload | Exception]:
        """The arguments of calls with one item each, or with the item's parts; an error where it cannot be pickled.

        Not to be interrupted by other pickling: exhaust it under `pickling`.
        """
        for item in items:
            if not star and is_small(item):
                yield Mode.ITEM, item, 0
                continue
            try:
                yield self._starred(fn, item) if star else self._item(fn, item)
            except (TypeError, ResourceExhausted) as error:
                yield error

    def pickling(self) -> Any:
        """While it lasts, modules go by value as this pool needs it."""
        return _modules_by_value(project=self._by_value)

    def _item(self, fn: Callable[..., Any], item: Any) -> Payload:
        try:
            content = dump_value(item)
        except ResourceExhausted:
            raise
        except Exception as error:
            raise TypeError(describe_failure(fn, (item,), {}, error)) from error
        return Mode.PICKLED_ITEM, content, len(content)

    def _starred(self, fn: Callable[..., Any], item: Any) -> Payload:
        args = tuple(item)
        if all(map(is_small, args)):
            return Mode.ARGUMENTS, args, 0
        return self._call(fn, args, {})

    def _call(self, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Payload:
        try:
            content = dump_value((args, kwargs))
        except ResourceExhausted:
            raise
        except Exception as error:
            raise TypeError(describe_failure(fn, args, kwargs, error)) from error
        return Mode.PICKLED_CALL, content, len(content)

    def _timing(self, fn: Callable[..., Any]) -> Timing:
        while isinstance(fn, functools.partial):
            fn = fn.func
        kind = fn if hasattr(fn, "__qualname__") else type(fn)
        line = getattr(getattr(fn, "__code__", None), "co_firstlineno", 0)  # of several lambdas in one function
        place = f"{getattr(kind, '__module__', '')}.{kind.__qualname__}:{line}"
        timing = self._timings.get(place)
        if timing is None:
            if len(self._timings) >= _MAX_REMEMBERED:
                self._timings.clear()
            timing = self._timings[place] = Timing()
        return timing


def _name_of(fn: Callable[..., Any]) -> str:
    return str(getattr(fn, "__qualname__", None) or type(fn).__name__)


def _is_settled(fn: Callable[..., Any]) -> bool:
    """Whether the pickle of a function is the same each time: nothing is in it that can change but its code."""
    if type(fn) is not FunctionType:
        return type(fn) is BuiltinFunctionType and type(fn.__self__) is ModuleType
    if fn.__closure__ or fn.__defaults__ or fn.__kwdefaults__ or fn.__dict__:
        return False
    variables = fn.__globals__
    return all(type(variables.get(name, sys)) is ModuleType for name in _names(fn.__code__))


@functools.lru_cache(_MAX_REMEMBERED)
def _names(code: CodeType) -> frozenset[str]:
    """What code and the functions in it may look up."""
    inner = [each for each in code.co_consts if isinstance(each, CodeType)]
    return frozenset(code.co_names).union(*map(_names, inner))
