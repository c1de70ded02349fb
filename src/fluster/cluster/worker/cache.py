"""What attempts of a machine share on disk: environments and archives of workspaces, by the hash of what they are."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fluster.cluster.attempt import files
from fluster.cluster.worker.folder import delete

DEFAULT_CAP_BYTES = 20 * 1024**3
_LOOK_S = 0.05


def default_cache_dir(without_home: Path) -> Path:
    """Of this user on this machine, whatever worker asks; `without_home` where the user has no home directory."""
    home = os.environ.get("XDG_CACHE_HOME") or ""
    try:
        return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "fluster"
    except RuntimeError:
        return without_home


@dataclass(frozen=True, slots=True)
class Shelf:
    """Directories by key that are complete once they are there.

    One is made under its lock, elsewhere, and then renamed; whoever uses one marks it under its lock, with a link to
    the attempt's directory, so that a mark says by itself whether it still counts, whoever died meanwhile.
    """

    directory: Path

    def open(self) -> None:
        """Makes what is missing."""
        for name in ("", "making", "locks", "uses", "trash"):
            (self.directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Where it is, or will be."""
        return self.directory / key

    @contextlib.asynccontextmanager
    async def locked(self, key: str, waits: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
        """Holds the key's lock against all workers of the machine; `waits` is called once if another one has it."""
        self.open()
        descriptor = self._try(key)
        if descriptor is None:
            waits()
        while descriptor is None:
            await asyncio.sleep(_LOOK_S)
            descriptor = self._try(key)
        try:
            yield
        finally:
            os.close(descriptor)

    def new(self, key: str) -> Path:
        """A name to make it under, with its lock held."""
        return self.directory / "making" / f"{key}.{secrets.token_hex(4)}"

    def clear(self, key: str) -> None:
        """Removes what is half made of it, with its lock held: by this process, or by one that died."""
        for left in (self.directory / "making").glob(f"{key}.*"):
            delete(left)

    def put(self, key: str, made: Path) -> None:
        """Has what was made be there, with its lock held."""
        os.rename(made, self.path(key))

    def use(self, key: str, attempt: Path) -> None:
        """Marks it as used by an attempt, with its lock held."""
        marks = self.directory / "uses" / key
        marks.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.symlink(attempt.absolute(), marks / attempt.name)
        os.utime(self.path(key))

    def release(self, attempt: str) -> None:
        """The attempt of that uid uses nothing any more."""
        for mark in (self.directory / "uses").glob(f"*/{attempt}"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(mark)

    def evict(self, cap_bytes: int, size_of: Callable[[Path], int]) -> list[str]:
        """Deletes what was not used for longest, and not in use, until the rest fits; the keys. Blocks."""
        self._sweep()
        kept = sorted((path.stat().st_mtime, path.name, size_of(path)) for path in self._all())
        total, gone = sum(size for _, _, size in kept), []
        for _, key, size in kept:
            if total <= cap_bytes:
                break
            if self._delete_unused(key):
                total -= size
                gone.append(key)
        return gone

    def in_use(self, key: str) -> bool:
        """Whether an attempt that has not ended, and still exists, uses it."""
        try:
            marks = list((self.directory / "uses" / key).iterdir())
        except FileNotFoundError:
            return False
        return any(mark.is_dir() and not (mark / files.EXIT).exists() for mark in marks)

    def _all(self) -> Iterator[Path]:
        for path in self.directory.iterdir():
            if path.name not in ("making", "locks", "uses", "trash"):
                yield path

    def _delete_unused(self, key: str) -> bool:
        descriptor = self._try(key)
        if descriptor is None:
            return False
        trash = self.directory / "trash" / f"{key}.{secrets.token_hex(4)}"
        try:
            if self.in_use(key):
                return False
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.path(key), trash)
            delete(self.directory / "uses" / key)
        finally:
            os.close(descriptor)
        delete(trash)
        return True

    def _sweep(self) -> None:
        """Removes what crashes left: half made, half deleted."""
        for left in (self.directory / "trash").iterdir():
            delete(left)
        for left in (self.directory / "making").iterdir():
            descriptor = self._try(left.name.partition(".")[0])
            if descriptor is not None:
                delete(left)
                os.close(descriptor)

    def _try(self, key: str) -> int | None:
        path = self.directory / "locks" / key
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor
