"""What the daemon reads of a result file: an exception's type, text and traceback. The values stay bytes."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAX_TEXT_BYTES = 16 * 1024
# An `Outcome` is one length-delimited field: 1 a value, 2 a `RemoteError`. Parsing it as a message would hold a result
# of any size in the daemon's memory several times over.
_VALUE, _ERROR = 1, 2
_TYPE_NAME, _MESSAGE = 1, 2
_LENGTH_DELIMITED = 2


@dataclass(frozen=True, slots=True)
class Thrown:
    """An exception of the job's, as text."""

    type_name: str
    message: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What lies in a result file: an exception, or a value of which the daemon knows nothing."""

    size: int
    thrown: Thrown | None


class BadOutcome(ValueError):
    """The file is no `Outcome` message: the job wrote something else there."""


def read_outcome(path: Path) -> Outcome | None:
    """The outcome in `path`; `None` if there is none.

    Raises:
        BadOutcome: The file is something else.
    """
    try:
        with open_result(path) as file:
            size = os.fstat(file.fileno()).st_size
            return _parse(file, size) if size else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadOutcome(f"the result cannot be read: {error.strerror}") from error


def open_result(path: Path) -> BinaryIO:
    """The result file for reading: what the job may have put in its place neither blocks nor leads elsewhere.

    Raises:
        FileNotFoundError: There is none.
        BadOutcome: It is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadOutcome("the result is no regular file")
    return open(descriptor, "rb")


def _parse(file: BinaryIO, size: int) -> Outcome:
    number, length = _field(file, size)
    if number not in (_VALUE, _ERROR) or file.tell() + length != size:
        raise BadOutcome("the result is not one of Fluster's")
    if number == _VALUE:
        return Outcome(size, None)
    texts = {_TYPE_NAME: "", _MESSAGE: ""}
    while file.tell() < size:
        number, length = _field(file, size)
        end = file.tell() + length
        if number in texts:
            texts[number] = file.read(min(length, MAX_TEXT_BYTES)).decode(errors="replace")
        file.seek(end)
    return Outcome(size, Thrown(texts[_TYPE_NAME], texts[_MESSAGE]))


def _field(file: BinaryIO, size: int) -> tuple[int, int]:
    """Number and length of the next field, whose bytes are all there."""
    tag, length = _varint(file), _varint(file)
    if tag & 7 != _LENGTH_DELIMITED or file.tell() + length > size:
        raise BadOutcome("the result is cut off or damaged")
    return tag >> 3, length


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 63, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise BadOutcome("the result is cut off or damaged")
