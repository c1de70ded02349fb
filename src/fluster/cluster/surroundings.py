"""Where this process stands: its directory, what it can import from where, its interpreter."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Surroundings:
    """A submitter's, for clusters that can give its jobs the same: those of this machine.

    Attributes:
        directory: Where it stands; empty if that directory is gone.
        import_path: What its `sys.path` holds beyond what the interpreter brings.
        python: Its interpreter; `None` where that is not a program of its own.
    """

    directory: str
    import_path: tuple[str, ...]
    python: str | None

    @classmethod
    def here(cls) -> Surroundings:
        """Those of this process, now."""
        try:
            directory = os.getcwd()
        except FileNotFoundError:
            directory = ""
        entries = [os.path.normpath(os.path.join(directory, entry)) for entry in sys.path]
        own = [entry for entry in dict.fromkeys(entries) if os.path.exists(entry) and not is_installed(entry)]
        return cls(directory, tuple(own), sys.executable or None)


@cache
def is_installed(path: str) -> bool:
    """Whether a path belongs to an interpreter or to what was installed for one, and not to the user's own project."""
    try:
        resolved = Path(path).resolve()
    except OSError:
        return True
    if {"site-packages", "dist-packages"}.intersection(resolved.parts):
        return True
    roots = _install_roots()
    return resolved in roots or any(parent in roots for parent in resolved.parents)


@cache
def _install_roots() -> frozenset[Path]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    found = [sysconfig.get_path(name) for name in names]
    found += [sysconfig.get_path(name, vars=base) for name in names]
    found += [*getattr(site, "getsitepackages", list)(), getattr(site, "getusersitepackages", str)()]
    return frozenset(Path(path).resolve() for path in found if path)
