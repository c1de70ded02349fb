"""Directories of this machine that its operator shows to containers; no job can ask for one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

_KEPT = (
    *("/bin", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run", "/sbin", "/sys", "/usr"),
    *("/var/run", "/var/lib/fluster", "/fluster"),
)
"""The image's system, and what Fluster puts into containers."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One directory.

    Attributes:
        source: Where it is on this machine.
        target: Where containers see it.
        read_only: They cannot write to it.
    """

    source: Path
    target: PurePosixPath
    read_only: bool = False

    def __post_init__(self) -> None:
        for path in (self.source, self.target):
            if not path.is_absolute() or ".." in path.parts:
                raise ValueError(f"a mount's directories are absolute and without '..', got {str(path)[:200]!r}")
        if any(_overlap(self.target, PurePosixPath(kept)) for kept in _KEPT):
            raise ValueError(f"a mount on {self.target} would hide what containers need there: choose /mnt/… or /data")

    @classmethod
    def parse(cls, text: str) -> Mount:
        """The one written as DIR, DIR:DIR_IN_CONTAINERS or DIR:DIR_IN_CONTAINERS:ro.

        Raises:
            ValueError: It is written otherwise, or breaks a rule.
        """
        match text.split(":"):
            case [source] if source:
                return cls(Path(source), PurePosixPath(source))
            case [source, target] if source and target:
                return cls(Path(source), PurePosixPath(target))
            case [source, target, "ro"] if source and target:
                return cls(Path(source), PurePosixPath(target), read_only=True)
        raise ValueError(f"a mount is DIR, DIR:DIR_IN_CONTAINERS or DIR:DIR_IN_CONTAINERS:ro, got {text[:200]!r}")

    def for_engine(self) -> dict[str, Any]:
        """As the engine is told; one that is not there is refused by it, and not made."""
        return {
            "Type": "bind",
            "Source": str(self.source),
            "Target": str(self.target),
            "ReadOnly": self.read_only,
            "BindOptions": {"Propagation": "rprivate"},
        }


def check_mounts(mounts: Sequence[Mount], kept: Iterable[Path]) -> None:
    """Looks whether these can be had together.

    Args:
        mounts: What is to be shown.
        kept: What no container may see: the engine's socket, with which it would be root here, and state directories.

    Raises:
        ValueError: They cannot; the text says which.
    """
    private = [Path(os.path.realpath(path)) for path in kept]
    for index, mount in enumerate(mounts):
        if not mount.source.is_dir():
            raise ValueError(f"the mount {mount.source} is no directory of this machine")
        source = Path(os.path.realpath(mount.source))
        for path in private:
            if _overlap(PurePosixPath(source), PurePosixPath(path)):
                raise ValueError(f"the mount {mount.source} would show {path} to jobs: choose a directory beside it")
        if any(_overlap(mount.target, other.target) for other in mounts[:index]):
            raise ValueError(f"two mounts are at {mount.target}, or one within the other")


def _overlap(one: PurePosixPath, other: PurePosixPath) -> bool:
    """Whether one lies in the other, or is it."""
    return one.is_relative_to(other) or other.is_relative_to(one)
