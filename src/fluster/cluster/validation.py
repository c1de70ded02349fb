"""The rules for every value a client can give, over plain values: constructors and the controller call the same.

Each `check_*` returns what it was given (tuples and dicts as copies) or raises a `ValueError` naming rule and value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from numbers import Integral, Real

from fluster.cluster.addresses import check_endpoint_address, parse_endpoint_address
from fluster.cluster.gpu import check_gpu_variant
from fluster.cluster.refusal import nearest, refuse, shown
from fluster.cluster.texts import (
    MAX_ENV_BYTES,
    MAX_ENV_VARS,
    RESERVED_ENV_PREFIX,
    check_command,
    check_docker_image,
    check_env_vars,
    check_extras,
    check_metadata,
    check_pip_packages,
    check_python,
    check_strings,
    check_text,
    metadata_bytes,
)
from fluster.cluster.tpu import check_tpu_shape, get_tpu_topology

__all__ = [
    "MAX_BYTES",
    "MAX_CPU",
    "MAX_ENV_BYTES",
    "MAX_ENV_VARS",
    "MAX_SECONDS",
    "MAX_TASKS",
    "RESERVED_ENV_PREFIX",
    "check_choice",
    "check_command",
    "check_cpu",
    "check_device_count",
    "check_docker_image",
    "check_endpoint_address",
    "check_env_vars",
    "check_extras",
    "check_gpu_variant",
    "check_id",
    "check_int",
    "check_metadata",
    "check_name",
    "check_num_tasks",
    "check_number",
    "check_pip_packages",
    "check_places",
    "check_port_names",
    "check_python",
    "check_replicas",
    "check_retry",
    "check_seconds",
    "check_strings",
    "check_text",
    "check_tpu_shape",
    "get_tpu_topology",
    "metadata_bytes",
    "nearest",
    "parse_bytes",
    "parse_endpoint_address",
    "refuse",
    "shown",
]

MAX_CPU = 1_000_000
"""Cores of one task: far above any machine."""
MIN_CPU = 0.001
"""The kernel's cpu weights and quotas resolve no finer."""
MAX_BYTES = 2**60
"""Memory or disk of one task: 1 EiB."""
MAX_SECONDS = 315_576_000.0
"""Ten years: a longer time limit is a mistake in the unit."""
MAX_TASKS = 10_000
"""Tasks of one job: what one launch transaction and one status answer carry comfortably."""
MAX_RETRIES = 1_000_000
MAX_DEVICES = 1_024
"""GPUs of one task."""
MAX_PLACES = 100
"""Regions or zones of one job."""
MAX_PORTS = 64
MAX_ID = 128
NAME_RULE = "1 to 128 of A-Z a-z 0-9 . _ / -, the first a letter or digit, without '..'"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_ID = re.compile(r"[ -~]{1,128}")
_PORT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_PLACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
_SIZE = re.compile(r"([0-9]+)(?:\.([0-9]+))? *([a-z]*)")
_UNITS = {
    **{"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12},
    **{"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40},
}


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
    number: int | None = None
    if isinstance(value, str):
        found = _SIZE.fullmatch(value.strip().lower()) if len(value) <= MAX_ID else None
        if found and found[3] in _UNITS:
            # Whole numbers throughout: 4.35 * 10**9 in floats is a byte short.
            decimals = found[2] or ""
            number = int(found[1] + decimals) * _UNITS[found[3]] // 10 ** len(decimals)
    elif isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
    if number is None or not 1 <= number <= MAX_BYTES:
        raise refuse(what, rule, value)
    return number
