"""Rules for texts and what is made of them: variables, command lines, packages, interpreters, metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from fluster.cluster.refusal import refuse, shown

MAX_ENV_VARS = 4_096
MAX_ENV_BYTES = 128_000
"""All of `key=value` with their terminators: below the 131,072 bytes Linux allows one such string (MAX_ARG_STRLEN)."""
MAX_ARGV_BYTES = 1_000_000
"""All of a command: half of what Linux leaves for arguments and environment under the usual 8 MiB stack."""
MAX_ARG_BYTES = 131_071
"""One argument: MAX_ARG_STRLEN of Linux, less its terminator."""
MAX_PACKAGES = 1_000
MAX_TEXT_BYTES = 4_096
"""Paths and package requirements."""
RESERVED_ENV_PREFIX = "FLUSTER_"

_IMAGE = re.compile(r"[A-Za-z0-9][!-~]{0,511}")
_EXTRA = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_PYTHON_VERSION = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}(\.[0-9]{1,3})?")
_UNENCODABLE = 2**62
"""Above every limit."""


def check_text(value: object, what: str, *, limit: int = MAX_TEXT_BYTES) -> str:
    """A text that can become an argument, a path or a variable: UTF-8, no NUL."""
    if not isinstance(value, str) or not value or "\0" in value or _size(value) > limit:
        raise refuse(what, f"a text of 1 to {limit} bytes of UTF-8 without NUL", value)
    return value


def check_strings(values: object, what: str, limit: int) -> tuple[str, ...]:
    """A sequence of texts; a bare string is refused, it would be taken letter by letter."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise refuse(what, "a sequence of texts", values)
    items = tuple(values)
    if len(items) > limit:
        raise ValueError(f"{what} must be at most {limit} entries, got {len(items)}")
    for item in items:
        check_text(item, f"an entry of {what}")
    return items


def check_env_vars(values: object, what: str = "env_vars") -> dict[str, str]:
    """Variables a user sets for a task."""
    if not isinstance(values, Mapping):
        raise refuse(what, "a mapping of names to texts", values)
    if len(values) > MAX_ENV_VARS:
        raise ValueError(f"{what} must be at most {MAX_ENV_VARS} variables, got {len(values)}")
    for key, value in values.items():
        _check_env_var(key, value, what)
    total = sum(_size(key) + _size(value) + 2 for key, value in values.items())
    if total > MAX_ENV_BYTES:
        raise ValueError(f"{what} must be at most {MAX_ENV_BYTES} bytes in all, got {total}")
    return dict(values)


def _check_env_var(key: str, value: object, what: str) -> None:
    if not isinstance(key, str) or not key or "=" in key or "\0" in key or _size(key) > MAX_ENV_BYTES:
        raise refuse(f"a name in {what}", "a UTF-8 text without '=' and NUL", key)
    if key.startswith(RESERVED_ENV_PREFIX):
        raise refuse(f"a name in {what}", f"outside {RESERVED_ENV_PREFIX}*, which Fluster sets itself", key)
    # The value itself may be a secret, so it is not shown.
    if not isinstance(value, str) or "\0" in value or _size(value) > MAX_ENV_BYTES:
        raise ValueError(f"{what}[{shown(key)}] must be a UTF-8 text of at most {MAX_ENV_BYTES} bytes without NUL")


def check_command(argv: object) -> tuple[str, ...]:
    """A command line, program first."""
    if isinstance(argv, str | bytes) or not isinstance(argv, Iterable):
        raise refuse("a command", "a sequence of texts, program first", argv)
    items = tuple(argv)
    if not items or not items[0]:
        raise refuse("a command", "at least a program", items)
    for item in items:
        if not isinstance(item, str) or "\0" in item or _size(item) > MAX_ARG_BYTES:
            raise refuse("an argument of a command", f"a UTF-8 text of at most {MAX_ARG_BYTES} bytes without NUL", item)
    total = sum(_size(item) + 1 for item in items)
    if total > MAX_ARGV_BYTES:
        raise ValueError(f"a command must be at most {MAX_ARGV_BYTES} bytes in all, got {total}")
    return items


def check_pip_packages(values: object) -> tuple[str, ...]:
    """Requirements for the installer; never its options."""
    packages = check_strings(values, "pip_packages", MAX_PACKAGES)
    for package in packages:
        if package.lstrip().startswith("-") or "\n" in package or "\r" in package:
            raise refuse("an entry of pip_packages", "one requirement, not an option", package)
    return packages


def check_extras(values: object) -> tuple[str, ...]:
    """Extras of the workspace's project."""
    extras = check_strings(values, "extras", MAX_PACKAGES)
    for extra in extras:
        if not _EXTRA.fullmatch(extra):
            raise refuse("an entry of extras", "1 to 128 letters, digits or . _ - inside", extra)
    return extras


def check_python(value: object) -> str:
    """The interpreter asked for."""
    if not isinstance(value, str) or not ("/" in value or _PYTHON_VERSION.fullmatch(value)):
        raise refuse("python", "a version like '3.12' or the path of an interpreter", value)
    return check_text(value, "python")


def check_docker_image(value: object) -> str:
    """An image reference."""
    if not isinstance(value, str) or not _IMAGE.fullmatch(value):
        raise refuse("docker_image", "1 to 512 printable ASCII characters without spaces", value)
    return value


def check_metadata(values: object, what: str = "metadata") -> dict[str, str]:
    """What is told about an endpoint. How much of it is allowed is a quota, and the controller's matter."""
    if not isinstance(values, Mapping):
        raise refuse(what, "a mapping of texts to texts", values)
    for key, value in values.items():
        if not key or any(not isinstance(text, str) or _size(text) >= _UNENCODABLE for text in (key, value)):
            raise refuse(f"an entry of {what}", "two texts of UTF-8, the first not empty", (key, value))
    return dict(values)


def metadata_bytes(values: Mapping[str, str]) -> int:
    """How much of the quota an endpoint's metadata take."""
    return sum(_size(key) + _size(value) for key, value in values.items())


def _size(text: Any) -> int:
    """Bytes of a text in UTF-8; more than any limit for a lone surrogate, which has no encoding."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return _UNENCODABLE
