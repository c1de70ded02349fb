"""cloudpickle, but code keeps the name of its file: from version 3.1.3 on cloudpickle calls each `<dynamic-code>`.

A traceback from another process then says where in the user's files it happened, and shows the lines where those are.
"""

from __future__ import annotations

import io
import pickle
from collections import ChainMap
from collections.abc import Callable
from types import CodeType
from typing import Any, ClassVar

import cloudpickle

_NAMELESS = "<dynamic-code>"


def _reduce_code(code: CodeType) -> tuple[Any, ...]:
    make, arguments = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return make, tuple(code.co_filename if type(each) is str and each == _NAMELESS else each for each in arguments)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc] # has no types
    dispatch_table: ClassVar = ChainMap({CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)


def dumps(
    value: Any, protocol: int | None = None, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None
) -> bytes:
    """As `cloudpickle.dumps`."""
    with io.BytesIO() as file:
        _Pickler(file, protocol, buffer_callback).dump(value)
        return file.getvalue()
