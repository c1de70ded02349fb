"""Arguments and results as bytes: pickle 5 with large buffers out of band."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from fluster import pickler
from fluster.errors import RemoteError
from fluster.remote import Thrown, type_name

OUT_OF_BAND_BYTES = 16 << 10
ATOMS = frozenset({int, float, str, bytes, bool, type(None), complex, bytearray})
"""Types whose values are the same everywhere, and pickled plainly."""
_CONTAINERS = frozenset({tuple, list, set, frozenset, dict})
_DEPTH = 3
_MAX_LOOKED_AT = 64


def dump_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, list[memoryview]]:
    """As `dump` of both; quick where they are few and simple."""
    if not kwargs:
        for each in args:
            if type(each) not in ATOMS:
                break
        else:
            return pickle.dumps((args, kwargs), 5), []
    return dump((args, kwargs))


def dump(value: Any) -> tuple[bytes, list[memoryview]]:
    """A value as pickle, and the buffers that go beside it: they are the value's own memory.

    Whatever is defined in `__main__` or inside functions goes by value. Plain pickle, six times as fast for small
    values, would send it by a name that means something else on the other side, so that it gets only what is exactly of
    builtin types.
    """
    if type(value) in ATOMS:
        return pickle.dumps(value, 5), []
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        """Whether it stays in the pickle."""
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if raw.nbytes < OUT_OF_BAND_BYTES:
            return True
        buffers.append(raw)
        return False

    if is_plain(value):
        return pickle.dumps(value, 5, buffer_callback=keep), buffers
    return pickler.dumps(value, 5, buffer_callback=keep), buffers


def load(data: bytes | memoryview, buffers: Sequence[memoryview]) -> Any:
    """The value again; arrays are writable and lie in the buffers."""
    return pickle.loads(data, buffers=buffers)


def is_plain(value: Any, depth: int = _DEPTH) -> bool:
    """Whether the value is made of builtin types, and arrays of them, and of nothing else; false when in doubt."""
    kind = type(value)
    if kind in ATOMS:
        return True
    if kind in _CONTAINERS:
        if depth == 0 or len(value) > _MAX_LOOKED_AT:
            return False
        for each in value.values() if kind is dict else value:
            if type(each) not in ATOMS and not is_plain(each, depth - 1):
                return False
        return kind is not dict or all(type(key) in ATOMS for key in value)
    return kind.__module__ == "numpy" and kind.__name__ == "ndarray" and not value.dtype.hasobject


def dump_thrown(error: BaseException) -> bytes:
    """An exception: its texts always, itself if it survives."""
    thrown = Thrown.of(error)
    return pickle.dumps((thrown.type_name, thrown.message, thrown.traceback, thrown.pickled), 5)


def load_thrown(data: bytes | memoryview) -> BaseException:
    """The exception again, or a `RemoteError` that tells of it."""
    return Thrown(*pickle.loads(data)).rebuild(system_exit=True)


def not_rebuilt(what: str, error: Exception) -> RemoteError:
    """What a caller gets instead of a value that came and cannot be loaded."""
    return RemoteError(
        f"{what} cannot be rebuilt here: {type(error).__name__}: {Thrown.of(error).message};"
        " what it is made of must be importable in this process too"
    )


def unpicklable_result(value: object, error: BaseException) -> RemoteError:
    """What a caller gets instead of a value that cannot travel."""
    kind = type_name(type(value))
    return RemoteError(f"the result, of type {kind}, cannot be pickled: {Thrown.of(error).message}", type_name=kind)
