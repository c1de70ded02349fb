"""The result file: what the entrypoint gave, as bytes for its submitter and as text for everybody."""

from __future__ import annotations

import pickle
import traceback
from pathlib import Path
from types import TracebackType
from typing import Literal

import cloudpickle
from protobuf import Oneof

from fluster.cluster.attempt import files
from fluster.rpc.gen.fluster.cluster.v1.types_pb import Outcome, RemoteError


def write_value(directory: Path, value: object) -> None:
    """Writes a return value.

    Raises:
        TypeError: It cannot be pickled; the message names its type and what is in the way.
    """
    try:
        pickled: bytes = cloudpickle.dumps(value)
    except Exception as error:
        raise TypeError(
            f"the entrypoint's result, of type {_type_name(type(value))}, cannot be pickled: {error}"
        ) from error
    kind: Oneof[Literal["value"], bytes] = Oneof("value", pickled)
    _write(directory, Outcome(kind=kind))


def write_error(directory: Path, error: BaseException) -> None:
    """Writes an exception: its texts always, itself if it survives pickling."""
    remote = RemoteError(
        type_name=_clean(_type_name(type(error))),
        message=_clean(_text(error)),
        traceback=_clean("".join(traceback.format_exception(error))),
        pickled=_pickled(error),
    )
    kind: Oneof[Literal["error"], RemoteError] = Oneof("error", remote)
    _write(directory, Outcome(kind=kind))


def rehearse() -> None:
    """Pickles, loads and encodes something small."""
    function, _, _ = pickle.loads(cloudpickle.dumps((int, (), {})))
    kind: Oneof[Literal["value"], bytes] = Oneof("value", cloudpickle.dumps(function()))
    Outcome(kind=kind).to_binary()


def without_frames_of(path: str, trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame below those of the module at `path`; as it is if there is no other."""
    below = trace
    while below is not None and below.tb_frame.f_code.co_filename == path:
        below = below.tb_next
    return below or trace


def _write(directory: Path, outcome: Outcome) -> None:
    files.write_atomically(directory / files.RESULT, outcome.to_binary())


def _pickled(error: BaseException) -> bytes:
    try:
        pickled: bytes = cloudpickle.dumps(error)
        # An exception whose constructor takes other arguments than it passes on can be pickled but not loaded.
        pickle.loads(pickled)
    except Exception:
        return b""
    return pickled


def _type_name(kind: type) -> str:
    """As a traceback names it."""
    module = kind.__module__
    return kind.__qualname__ if module in ("builtins", "__main__") else f"{module}.{kind.__qualname__}"


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:
        return f"<its __str__ raised {type(failure).__name__}>"


def _clean(text: str) -> str:
    """Without lone surrogates, which no message may carry."""
    return text.encode("utf-8", "backslashreplace").decode()
