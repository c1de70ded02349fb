"""Finds the environment Zephyr is installed in, and talks to a program that runs there."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

import fluster

LONG = pytest.mark.skipif(not os.environ.get("ZEPHYR_LONG"), reason="takes minutes: `make zephyr` runs it")
ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


@functools.cache
def find_zephyr() -> tuple[str, str]:
    """The interpreter, or why there is none."""
    python = os.environ.get("ZEPHYR_PYTHON") or str(ROOT / ".venv-zephyr" / "bin" / "python")
    if not Path(python).exists():
        return "", "needs Zephyr in an environment of its own: `tools/zephyr-env` makes it, or ZEPHYR_PYTHON names it"
    look = "import importlib.util as u, sys; sys.exit(not (u.find_spec('zephyr') and u.find_spec('fray')))"
    if subprocess.run([python, "-c", look], capture_output=True, timeout=30).returncode:
        return "", f"needs Zephyr: {python} has no marin-zephyr"
    return python, ""


def zephyr_python() -> str:
    """The interpreter; skips the test where there is none."""
    python, reason = find_zephyr()
    if reason:
        pytest.skip(reason)
    return python


def variables(**more: str) -> dict[str, str]:
    """What a program there is started with: Fluster without its extras, and where its daemons' interpreter is."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    source = str(Path(fluster.__file__).parents[1])
    return {**kept, "PYTHONPATH": source, "FLUSTER_SERVER_PYTHON": sys.executable, **more}


class Driver:
    """A program that runs functions of a module on a cluster of its own, one after the other.

    Args:
        module: Of this directory.
        directory: Where it runs, and leaves what it prints.
        cpu: Cores its cluster offers.
    """

    def __init__(self, module: str, directory: Path, cpu: int) -> None:
        command = [zephyr_python(), str(HERE / "driver.py"), module, str(cpu)]
        self._errors = (directory / "driver.err").open("w+")
        self._process = subprocess.Popen(
            command,
            cwd=directory,
            env=variables(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
        self._errors.close()

    def __call__(self, name: str, *arguments: Any) -> Any:
        """What the function gives; fails with its traceback."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            pytest.fail(f"the program ended:\n{self._errors.read()[-5000:]}", pytrace=False)
        value, problem = json.loads(line)
        if problem:
            pytest.fail(problem, pytrace=False)
        return value
