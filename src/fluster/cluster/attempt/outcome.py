"""The result file: what the entrypoint gave, as bytes for its submitter and as text for everybody."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import TracebackType
from typing import Literal

from protobuf import Oneof

from fluster import pickler
from fluster.cluster.attempt import files
from fluster.remote import Thrown, type_name
from fluster.rpc.gen.fluster.cluster.v1.types_pb import Outcome, RemoteError


def write_value(directory: Path, value: object) -> None:
    """Writes a return value.

    Raises:
        TypeError: It cannot be pickled; the message names its type and what is in the way.
    """
    try:
        pickled = pickler.dumps(value)
    except Exception as error:
        raise TypeError(
            f"the entrypoint's result, of type {type_name(type(value))}, cannot be pickled: {error}"
        ) from error
    kind: Oneof[Literal["value"], bytes] = Oneof("value", pickled)
    _write(directory, Outcome(kind=kind))


def write_error(directory: Path, error: BaseException) -> None:
    """Writes an exception: its texts always, itself if it survives pickling."""
    thrown = Thrown.of(error)
    remote = RemoteError(
        type_name=thrown.type_name, message=thrown.message, traceback=thrown.traceback, pickled=thrown.pickled
    )
    kind: Oneof[Literal["error"], RemoteError] = Oneof("error", remote)
    _write(directory, Outcome(kind=kind))


def rehearse() -> None:
    """Pickles, loads and encodes something small."""
    function, _, _ = pickle.loads(pickler.dumps((int, (), {})))
    kind: Oneof[Literal["value"], bytes] = Oneof("value", pickler.dumps(function()))
    Outcome(kind=kind).to_binary()


def without_frames_of(path: str, trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame below those of the module at `path`; as it is if there is no other."""
    below = trace
    while below is not None and below.tb_frame.f_code.co_filename == path:
        below = below.tb_next
    return below or trace


def _write(directory: Path, outcome: Outcome) -> None:
    files.write_atomically(directory / files.RESULT, outcome.to_binary())
