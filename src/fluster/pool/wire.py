"""What pool and worker tell each other: batches of tasks one way, their results the other way.

A batch is ``(number, functions, forgotten, runs)``: functions that come for the first time as ``(id, pickle)``, ids
that are not used any more, and runs of tasks as ``(function id, mode, payloads)``. Results come in the order of the
tasks: small values of builtin types as they are, everything else as ``(how, bytes)``. They travel as ``(number of the
batch, times, pickle, *buffers)``; ``(GIVEN_BACK, [(number, count), …])`` instead tells how many of a batch's last tasks
will not be run here.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, Final

import cloudpickle

from fluster.actor import pickled
from fluster.actor.protocol import DEFAULT_MAX_MESSAGE_BYTES
from fluster.errors import ResourceExhausted

Run = tuple[int, int, Sequence[Any]]
Batch = tuple[int, list[tuple[int, bytes]], list[int], list[Run]]
Times = list[tuple[int, int, float]]
"""Of each run: id of the function, number of tasks, seconds."""


class Mode:
    """What a task's payload is. Plain numbers: members of an enumeration take longer to compare."""

    ITEM: Final = 0
    """The only argument."""
    ARGUMENTS: Final = 1
    """A tuple of positional arguments."""
    PICKLED_ITEM: Final = 2
    PICKLED_CALL: Final = 3
    """A pickle of positional and keyword arguments."""


GIVEN_BACK: Final = -1
PICKLED: Final = 0
THROWN: Final = 1

MAX_BYTES: Final = DEFAULT_MAX_MESSAGE_BYTES - (16 << 20)
"""Of one task's arguments, or its result; the rest is for what goes with it."""
_LARGE_BYTES = 64 << 10
_SHORT = 1_024
_NUMBERS: Final = frozenset({int, float, bool, type(None), complex})
_TEXTS: Final = frozenset({str, bytes})


def is_small(value: Any) -> bool:
    """Whether a value can wait to be pickled with others: it is short and nobody can change it."""
    kind = type(value)
    return kind in _NUMBERS or (kind in _TEXTS and len(value) <= _SHORT)


def are_numbers(values: Sequence[Any]) -> bool:
    """Whether all are small because they are numbers: much sooner known than by looking at each."""
    return _NUMBERS.issuperset(map(type, values))


def dump_value(value: Any) -> bytes:
    """A value as bytes of its own, a copy of what it is now.

    Raises:
        ResourceExhausted: They are too many.
        Exception: It cannot be pickled.
    """
    # Never by the name of something in `__main__`, which is another module on the other side.
    content: bytes = (pickle if pickled.is_plain(value) else cloudpickle).dumps(value, 5)
    if len(content) > MAX_BYTES:
        raise ResourceExhausted(f"{len(content):,} bytes are more than the {MAX_BYTES:,} that may travel")
    return content


def beside(content: bytes) -> bytes | pickle.PickleBuffer:
    """Has large bytes travel beside the pickle they are part of."""
    return content if len(content) < _LARGE_BYTES else pickle.PickleBuffer(content)


def dump(value: object) -> tuple[Any, ...]:
    """A batch, or results: a pickle and the buffers beside it."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(value, 5, buffer_callback=buffers.append)
    return (body, *buffers)


def load(body: bytes | memoryview, buffers: Sequence[Any]) -> Any:
    """The same again."""
    return pickle.loads(body, buffers=buffers)


def dump_result(value: Any) -> Any:
    """A result as it travels."""
    if is_small(value):
        return value
    try:
        return PICKLED, beside(dump_value(value))
    except ResourceExhausted as error:
        return dump_thrown(ResourceExhausted(f"the task's result cannot travel: {error}"))
    except Exception as error:
        return dump_thrown(pickled.unpicklable_result(value, error))


def dump_thrown(error: BaseException) -> tuple[int, bytes]:
    """An exception as a result."""
    content = pickled.dump_thrown(error)
    error.__traceback__ = None  # what its frames refer to is not needed any more
    return THROWN, content


def load_result(result: tuple[int, Any]) -> tuple[bool, Any]:
    """Whether a task returned, and what; or what it raised."""
    how, content = result
    if how == THROWN:
        return False, pickled.load_thrown(content)
    try:
        return True, pickle.loads(content)
    except Exception as error:
        return False, pickled.not_rebuilt("the task's result", error)
