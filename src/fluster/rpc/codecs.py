"""How messages are read from JSON: unknown fields are named, and nesting has a bound."""

from __future__ import annotations

import re
from typing import Any

from connectrpc.codec import Codec, proto_json_codec

MAX_DEPTH = 100
"""Far more than any message has. The parser of the protobuf library recurses natively: a hundred thousand brackets
would overflow the stack and end the process."""
# A string that does not end reaches to the end: to look for its end again from each quote would take for ever.
_PART = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[{]|[\]}]', re.DOTALL)


class JsonCodec:
    """The library's codec for JSON, strict and safe."""

    def __init__(self) -> None:
        self._codec: Codec[Any, Any] = proto_json_codec(ignore_unknown_fields=False)

    def name(self) -> str:
        """As content types call it."""
        return self._codec.name()

    def encode(self, message: Any) -> bytes:
        """A message as JSON."""
        return self._codec.encode(message)

    def decode(self, data: bytes | bytearray, message_class: type[Any]) -> Any:
        """A message of JSON.

        Raises:
            ValueError: It is none, or is nested too deeply.
        """
        if _depth_exceeds(data, MAX_DEPTH):
            raise ValueError(f"JSON must be nested at most {MAX_DEPTH} deep")
        return self._codec.decode(data, message_class)


def _depth_exceeds(data: bytes | bytearray, limit: int) -> bool:
    if data.count(b"[") + data.count(b"{") <= limit:
        return False
    depth = 0
    for found in _PART.finditer(data):
        match found[0]:
            case b"[" | b"{":
                depth += 1
                if depth > limit:
                    return True
            case b"]" | b"}":
                depth -= 1
    return False
