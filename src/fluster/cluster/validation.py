"""The rules for every value a client can give, over plain values: constructors and the controller call the same.

Each `check_*` returns what it was given (tuples and dicts as copies) or raises a `ValueError` naming rule and value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

MAX_CPU = 1_000_000
"""Cores of one task. Far above any machine, far below where sums lose precision."""
MIN_CPU = 0.001
"""The kernel's cpu weights and quotas resolve no finer."""
MAX_BYTES = 2**60
"""Memory or disk of one task: 1 EiB; sums over 10,000 tasks are still checked as Python integers."""
MAX_SECONDS = 315_576_000.0
"""Ten years: a longer time limit is a mistake in the unit."""
MAX_TASKS = 10_000
"""Tasks of one job: what one launch transaction and one status answer carry comfortably."""
MAX_RETRIES = 1_000_000
MAX_DEVICES = 1_024
"""GPUs of one task."""
MAX_PLACES = 100
"""Regions or zones of one job."""
MAX_ENV_VARS = 4_096
MAX_ENV_BYTES = 128_000
"""All of `key=value` with their terminators: below the 131,072 bytes Linux allows one such string (MAX_ARG_STRLEN)."""
MAX_ARGV_BYTES = 1_000_000
"""All of a command: half of what Linux leaves for arguments and environment under the usual 8 MiB stack."""
MAX_ARG_BYTES = 131_071
"""One argument: MAX_ARG_STRLEN of Linux, less its terminator."""
MAX_PACKAGES = 1_000
MAX_PORTS = 64
MAX_TEXT = 4_096
"""Paths, package requirements, image names."""
MAX_ID = 128
RESERVED_ENV_PREFIX = "FLUSTER_"
NAME_RULE = "1 to 128 of A-Z a-z 0-9 . _ / -, the first a letter or digit, without '..'"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_ID = re.compile(r"[ -~]{1,128}")
_PORT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_PLACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
_EXTRA = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_PYTHON_VERSION = re.compile(r"[0-9]+\.[0-9]+(\.[0-9]+)?")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([a-z]*)", re.ASCII)
_UNITS = {
    **{"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12},
    **{"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40},
}


def shown(value: object) -> str:
    """The value for an error message: one line, ASCII, at most 80 characters."""
    try:
        text = ascii(value)
    except Exception:  # a __repr__ of the user's, or an int too long to print
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def refuse(what: str, rule: str, value: object) -> ValueError:
    """The error for a broken rule: ``what`` must be ``rule``, got ``value``."""
    return ValueError(f"{what} must be {rule}, got {shown(value)}")


# Names and ids.


def check_name(value: object, what: str = "name") -> str:
    """A job's, namespace's or endpoint's name."""
    if not isinstance(value, str) or not _NAME.fullmatch(value) or ".." in value:
        raise refuse(what, NAME_RULE, value)
    return value


def check_id(value: object, what: str = "request_id") -> str:
    """An id made by somebody else: kept and compared, never interpreted."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise refuse(what, f"1 to {MAX_ID} printable ASCII characters", value)
    return value


def check_port_names(values: object, what: str = "ports") -> tuple[str, ...]:
    """Names of ports; each becomes an environment variable, so case must not be the only difference."""
    names = check_strings(values, what, MAX_PORTS)
    for name in names:
        if not _PORT_NAME.fullmatch(name):
            raise refuse(f"a name in {what}", "1 to 64 letters, digits or underscores, the first a letter", name)
    if len({name.upper() for name in names}) != len(names):
        raise refuse(what, "names that differ in more than case", names)
    return names


def check_places(values: object, what: str) -> tuple[str, ...]:
    """Regions or zones."""
    names = check_strings(values, what, MAX_PLACES)
    for name in names:
        if not _PLACE.fullmatch(name):
            raise refuse(f"a name in {what}", "1 to 63 letters, digits or dashes, the first a letter or digit", name)
    return names


def check_choice(value: object, choices: Iterable[str], what: str) -> str:
    """One of a known set; the error names the nearest."""
    known = list(choices)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"unknown {what} {shown(value)}{nearest(value, known)}")
    return value


def nearest(value: object, known: Iterable[str]) -> str:
    """The end of an error message: which of the known names were probably meant."""
    names = list(known)
    by_lower = {name.lower(): name for name in names}
    close = get_close_matches(str(value)[:MAX_ID].lower(), by_lower, n=3, cutoff=0.5)
    if close:
        return f"; the nearest are {', '.join(by_lower[name] for name in close)}"
    return f"; known are {', '.join(names[:40])}"


# Numbers.


def check_number(value: float, what: str, rule: str, *, low: float, high: float) -> float:
    """A finite number from low to high."""
    # Written so that NaN, which compares false with everything, is refused too.
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:
        raise refuse(what, rule, value)
    return value


def check_int(value: object, what: str, *, low: int, high: int) -> int:
    """A whole number from low to high."""
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or not low <= number <= high:
        raise refuse(what, f"a whole number from {low} to {high}", value)
    return number


def check_cpu(value: float) -> float:
    """Cores of one task."""
    return check_number(value, "cpu", f"a number of cores from {MIN_CPU} to {MAX_CPU}", low=MIN_CPU, high=MAX_CPU)


def check_seconds(value: float, what: str, *, zero: bool = False) -> float:
    """A duration; zero only where that means something."""
    low, rule = (0.0, "from 0") if zero else (5e-324, "above 0")
    return check_number(value, what, f"a number of seconds {rule} to {MAX_SECONDS:.0f}", low=low, high=MAX_SECONDS)


def check_replicas(value: int) -> int:
    """Tasks of a job; slices where they are TPU slices."""
    return check_int(value, "replicas", low=1, high=MAX_TASKS)


def check_num_tasks(value: int) -> int:
    """All tasks of a job."""
    return check_int(value, "the number of tasks", low=1, high=MAX_TASKS)


def check_device_count(value: int, what: str = "count") -> int:
    """Devices of one task."""
    return check_int(value, what, low=1, high=MAX_DEVICES)


def check_retry(max_failures: int, max_preemptions: int, backoff_s: float, max_backoff_s: float) -> None:
    """The numbers of a retry policy."""
    check_int(max_failures, "max_failures", low=0, high=MAX_RETRIES)
    check_int(max_preemptions, "max_preemptions", low=0, high=MAX_RETRIES)
    check_seconds(backoff_s, "backoff_s", zero=True)
    check_seconds(max_backoff_s, "max_backoff_s", zero=True)


def parse_bytes(value: object, what: str) -> int:
    """Bytes of ``2147483648``, ``"512MB"``, ``"1.5GiB"`` or ``"8g"``.

    KB MB GB TB are powers of 1000; KiB MiB GiB TiB and the single letters k m g t powers of 1024; case does not matter.
    """
    rule = f"bytes or a size like '512MB', '1.5GiB' or '8g', above 0 to {MAX_BYTES} bytes"
    number: Fraction | int | None = None
    if isinstance(value, str):
        # Fractions, because 4.35 * 10**9 in floats is a byte short.
        found = _SIZE.fullmatch(value.strip().lower()) if len(value) <= MAX_ID else None
        if found and found[2] in _UNITS:
            number = Fraction(found[1]) * _UNITS[found[2]]
    elif isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
    if number is None or not 1 <= number <= MAX_BYTES:
        raise refuse(what, rule, value)
    return int(number)


# Texts and environment.


def check_text(value: object, what: str, *, limit: int = MAX_TEXT) -> str:
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
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][!-~]{0,511}", value):
        raise refuse("docker_image", "1 to 512 printable ASCII characters without spaces", value)
    return value


def check_metadata(values: object, what: str = "metadata") -> dict[str, str]:
    """What is told about an endpoint. How much of it is allowed is a quota, and the controller's matter."""
    if not isinstance(values, Mapping):
        raise refuse(what, "a mapping of texts to texts", values)
    for key, value in values.items():
        if not key or any(not isinstance(text, str) or _size(text) > MAX_BYTES for text in (key, value)):
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
        return MAX_BYTES + 1
