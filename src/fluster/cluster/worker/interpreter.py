"""Which Python interpreter an attempt's callable runs under."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from functools import lru_cache

from fluster.cluster.worker.jobusers import as_user

_OWN_VERSION = "{}.{}.{}".format(*sys.version_info[:3])
_ASK = "import sys; print('%d.%d.%d' % sys.version_info[:3]); print(sys.executable)"
_ASK_TIMEOUT_S = 30.0
_CLAUSE = re.compile(r"\s*(?P<operator>~=|==|!=|>=|<=|>|<)\s*(?P<version>\d+(\.\d+)*)(?P<any>\.\*)?\s*")


class NoInterpreter(ValueError):
    """There is no such interpreter here, or it is none."""


async def choose_interpreter(asked: str | None, default: str | None, user: int | None = None) -> tuple[str, str]:
    """Path and full version of the interpreter.

    Args:
        asked: A version ("3.12"), a path, or `None`.
        default: Of `--python`; `None` for the worker's own.
        user: Whom whatever was asked for runs as, to find out what it is; `None`: the worker's own.

    Raises:
        NoInterpreter: What was asked for is not here; the message is for the user.
    """
    path = default or sys.executable
    if asked is None:
        return path, await _version(path)
    if "/" in asked:
        return asked, await _version(asked, user)
    if _is_of(asked, version := await _version(path)):
        return path, version
    name = f"python{'.'.join(asked.split('.')[:2])}"
    found = shutil.which(name)
    if found is None:
        raise NoInterpreter(f"Python {asked} was asked for, but this worker has no {name} on its PATH")
    version, itself = await _ask(found, user)
    if not _is_of(asked, version):
        raise NoInterpreter(f"Python {asked} was asked for, but {found} is {version}")
    # What is found may be a script that starts the interpreter: an environment needs that itself.
    return itself, version


def same_interpreter(one: str, other: str) -> bool:
    """Whether two paths give the same interpreter with the same packages: `python` and `python3` of one environment."""
    if one == other:
        return True
    # The directory decides on the environment, what the link leads to on the interpreter.
    return os.path.dirname(one) == os.path.dirname(other) and os.path.realpath(one) == os.path.realpath(other)


def satisfies(version: str, wanted: str) -> bool:
    """Whether a version is one that `requires-python` names; what is no clause excludes none."""
    return all(_meets(_numbers(version), clause) for clause in map(_CLAUSE.fullmatch, wanted.split(",")) if clause)


def _meets(have: tuple[int, ...], clause: re.Match[str]) -> bool:
    operator, numbers, any_below = clause["operator"], _numbers(clause["version"]), bool(clause["any"])
    at = have[: len(numbers)] if any_below else have
    wanted = numbers if any_below else numbers + (0,) * (len(have) - len(numbers))
    match operator:
        case "==":
            return at == wanted
        case "!=":
            return at != wanted
        case "~=":
            return have >= wanted and have[: len(numbers) - 1] == numbers[:-1]
        case ">=":
            return have >= wanted
        case "<=":
            return have <= wanted
        case ">":
            return have > wanted
        case _:
            return have < wanted


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def minor(version: str) -> str:
    """`3.12` of `3.12.4`."""
    return ".".join(version.split(".")[:2])


def _is_of(asked: str, version: str) -> bool:
    return f"{version}.".startswith(f"{asked.rstrip('.')}.")


async def _version(path: str, user: int | None = None) -> str:
    return _OWN_VERSION if same_interpreter(path, sys.executable) else (await _ask(path, user))[0]


async def _ask(path: str, user: int | None) -> tuple[str, str]:
    """Version, and the path it has in its own eyes."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise NoInterpreter(f"the interpreter {path} was asked for: {error.strerror}") from error
    return await asyncio.to_thread(_ask_once, path, status.st_mtime_ns, user)


@lru_cache(maxsize=256)
def _ask_once(path: str, _changed: int, user: int | None) -> tuple[str, str]:
    try:
        answer = subprocess.run(
            [path, "-I", "-c", _ASK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_TIMEOUT_S,
            text=True,
            cwd="/",
            **as_user(user),  # type: ignore[call-overload]
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise NoInterpreter(f"{path} does not run as a Python interpreter: {error}") from error
    version, _, itself = answer.stdout.strip().partition("\n")
    if answer.returncode != 0 or not version.replace(".", "").isdigit():
        raise NoInterpreter(f"{path} does not run as a Python interpreter")
    return version, itself if os.path.isabs(itself) else path
