"""Random messages of any type, by what its descriptor says: mostly sensible, partly hostile, as protobuf or as JSON.

Written without the library that reads them, so that numbers no enum has, text that is no UTF-8 and lengths that lie can
be sent too.
"""

from __future__ import annotations

import base64
import json
import math
import random
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from protobuf import DescEnum, DescField, DescMessage, ScalarType

Known = Mapping[str, Sequence[str]]
"""Values that fields of a name may have to mean something: ids that exist."""

_MAX_DEPTH = 4
_TEXTS = (
    "", "a", "job-1", "train/eval_1.x", "x" * 128, "x" * 129, "x" * 10_000, "../x", "a..b", "a\0b", "a\nb", "\u202eabc",
    "<script>alert(1)</script>", "'; DROP TABLE jobs; --", "%s%n{0}", "naïve", "日本語", "127.0.0.1:1", "0.0.0.0:1",
    "169.254.169.254:80", "file:///etc/passwd", "user@host:80", "host:0", "host:65536", "FLUSTER_TOKEN", "A=B", "-1",
    "default", "true", "\ud7ff", "\U0001f600", "0" * 64, "f" * 64,
)  # fmt: skip
_NUMBERS = (0, 1, 2, 3, 7, 100, 4096, -1, 1 << 31, (1 << 31) - 1, -(1 << 31), (1 << 63) - 1, -(1 << 63), 1 << 53)
_FLOATS = (0.0, 0.5, 1.0, 2.0, 60.0, -1.0, 1e-300, 1e300, math.nan, math.inf, -math.inf, 2.0**63)
_UNSIGNED_64, _UNSIGNED_32 = (1 << 64) - 1, (1 << 32) - 1
_FLOATING = (ScalarType.DOUBLE, ScalarType.FLOAT)
_TEXTUAL = (ScalarType.STRING, ScalarType.BYTES)

Fields = list[tuple[DescField, Any]]
"""A message: its fields, repeated ones as lists, maps as dicts, messages as `Fields`."""


def random_message(kind: DescMessage, rng: random.Random, known: Known, depth: int = 0) -> Fields:
    """Some of the fields, each with something."""
    chance = 0.8 if depth < 2 else 0.5
    return [
        (field, _value(field, rng, known, depth))
        for field in kind.fields
        if rng.random() < chance and not (depth >= _MAX_DEPTH and _is_message(field.value))
    ]


def _is_message(value: Any) -> bool:
    return isinstance(getattr(value, "message", None) or getattr(value, "element", None), DescMessage)


def _value(field: DescField, rng: random.Random, known: Known, depth: int) -> Any:
    value: Any = field.value
    if hasattr(value, "key"):
        keys = [_one(value.key, field.name, rng, known, depth) for _ in range(rng.choice((0, 1, 3)))]
        return {key: _one(value.value, field.name, rng, known, depth) for key in keys}
    if hasattr(value, "element"):
        return [_one(value.element, field.name, rng, known, depth) for _ in range(rng.choice((0, 1, 1, 2, 5)))]
    return _one(_type(value), field.name, rng, known, depth)


def _type(value: Any) -> Any:
    for name in ("message", "enum", "scalar"):
        if (found := getattr(value, name, None)) is not None:
            return found
    raise TypeError(value)


def _one(kind: Any, name: str, rng: random.Random, known: Known, depth: int) -> Any:
    match kind:
        case DescMessage():
            return random_message(kind, rng, known, depth + 1)
        case DescEnum():
            return rng.choice((0, 1, 1, 2, 3, 4, 5, 99, -1))
        case ScalarType.BOOL:
            return rng.random() < 0.5
        case ScalarType.STRING:
            candidates = known.get(name, ())
            return rng.choice(candidates) if candidates and rng.random() < 0.7 else rng.choice(_TEXTS)
        case ScalarType.BYTES:
            return rng.randbytes(rng.choice((0, 1, 16, 200)))
        case ScalarType.DOUBLE | ScalarType.FLOAT:
            return rng.choice(_FLOATS)
        case _:
            return rng.choice(_NUMBERS)


def to_binary(fields: Fields) -> bytes:
    """As protobuf."""
    return b"".join(_field(field, value) for field, value in fields)


def _field(field: DescField, value: Any) -> bytes:
    kind: Any = field.value
    if hasattr(kind, "key"):
        entries = (_tagged(1, kind.key, key) + _tagged(2, kind.value, each) for key, each in value.items())
        return b"".join(_varint(field.number << 3 | 2) + _varint(len(entry)) + entry for entry in entries)
    if hasattr(kind, "element"):
        return b"".join(_tagged(field.number, kind.element, each) for each in value)
    return _tagged(field.number, _type(kind), value)


def _tagged(number: int, kind: Any, value: Any) -> bytes:
    if isinstance(kind, DescMessage) or kind in _TEXTUAL:
        data = to_binary(value) if isinstance(kind, DescMessage) else _encoded(value)
        return _varint(number << 3 | 2) + _varint(len(data)) + data
    match kind:
        case ScalarType.DOUBLE:
            return _varint(number << 3 | 1) + struct.pack("<d", value)
        case ScalarType.FLOAT:
            return _varint(number << 3 | 5) + struct.pack("<I", 0x7F800000)
        case ScalarType.FIXED64 | ScalarType.SFIXED64:
            return _varint(number << 3 | 1) + struct.pack("<Q", value & _UNSIGNED_64)
        case ScalarType.FIXED32 | ScalarType.SFIXED32:
            return _varint(number << 3 | 5) + struct.pack("<I", value & _UNSIGNED_32)
        case _:
            return _varint(number << 3) + _varint(int(value) & _UNSIGNED_64)


def _encoded(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def to_json(fields: Fields) -> bytes:
    """As JSON, with what Python writes for NaN and infinity where JSON has no word."""
    return json.dumps(_object(fields)).encode()


def _object(fields: Fields) -> dict[str, Any]:
    return {field.json_name: _as_json(value) for field, value in fields}


def _as_json(value: Any) -> Any:
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case dict():
            return {str(key): _as_json(each) for key, each in value.items()}
        case list() if value and isinstance(value[0], tuple):
            return _object(value)
        case list():
            return [_as_json(each) for each in value]
        case _:
            return value


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, doubled or put in."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0 if at < len(changed):
                changed[at] = rng.randrange(256)
            case 1:
                del changed[at : at + rng.choice((1, 4, 1000))]
            case 2:
                changed[at:at] = rng.randbytes(rng.choice((1, 3, 9)))
            case _:
                changed[at:at] = changed[max(0, at - 8) : at]
    return bytes(changed)
