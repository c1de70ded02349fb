"""A directory as one archive, named by its content: packed by whoever submits, unpacked without trust by a worker.

A gzipped tar of files, directories and links that stay inside. The same files give the same bytes.
"""

from __future__ import annotations

import gzip
import io
import os
import posixpath
import stat
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 100_000_000
"""Content of all files: what a launch can be expected to carry."""
MAX_FILES = 20_000
"""Entries, directories included: what a worker can be expected to write before each attempt."""
# What tar adds to each entry, with room for long names.
_OVERHEAD_BYTES = 3_072
_LONGEST_READ = 1 << 20
_BLOCK = 1 << 18
_LEVEL = 2
"""Of compression: six times as fast as the usual level, for a few percent of size."""


class BadArchive(ValueError):
    """What came is no archive that may be unpacked; the message says what in it is wrong."""


def pack(directory: Path, names: Iterable[str]) -> bytes:
    """The archive of these files and links below a directory; special files are left out.

    Raises:
        BadArchive: A name would be refused where it is unpacked, or a link leads out.
        OSError: A file cannot be read.
    """
    buffer, known = io.BytesIO(), _Known()
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=buffer, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in sorted(names):
            _add(archive, directory, name, known)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, directory: Path, name: str, known: _Known) -> None:
    path = directory / name
    mode = path.lstat().st_mode
    entry = tarfile.TarInfo(name)
    if stat.S_ISLNK(mode):
        known.add(name)
        entry.type, entry.linkname = tarfile.SYMTYPE, _check_link(name, os.readlink(path))
        archive.addfile(entry)
    elif stat.S_ISREG(mode):
        known.add(name)
        content = path.read_bytes()
        entry.size, entry.mode = len(content), 0o755 if mode & 0o100 else 0o644
        archive.addfile(entry, io.BytesIO(content))


def unpack(file: BinaryIO, directory: Path, *, go_on: Callable[[], bool] = lambda: True) -> None:
    """Writes the files of an archive that nobody vouches for into an empty directory, and nothing outside of it.

    Args:
        file: The archive.
        directory: Nobody else writes to it meanwhile.
        go_on: Asked before each entry; what is there when it says no is left.

    Raises:
        BadArchive: It holds what must not be unpacked; what is there by then is left.
        OSError: A file cannot be written.
    """
    source, known, links = _Source(file), _Known(), []
    with _opened(source) as archive:
        while go_on() and (entry := _next(archive)) is not None:
            path = directory / known.add(entry.name, is_directory=entry.isdir())
            if entry.issym():
                links.append((path, _check_link(entry.name, entry.linkname)))
            elif entry.isdir():
                path.mkdir(parents=True, exist_ok=True)
            elif entry.isreg() and not entry.issparse():
                known.take(entry.size)
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, entry, source)
            else:
                raise BadArchive(f"{entry.name!r} is neither a file nor a directory nor a link")
    # Last: no file can then be written through a link.
    for path, target in links:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, path)


class _Known:
    """The names of an archive so far, and how much it holds."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._leaves: set[str] = set()
        self._directories: set[str] = set()
        self._bytes = 0

    def add(self, name: str, *, is_directory: bool = False) -> str:
        """Checks one more name.

        Raises:
            BadArchive: It leads elsewhere, or is one of those before on some file system.
        """
        _check_name(name)
        parts = name.split("/")
        for depth in range(1, len(parts)):
            self._enter("/".join(parts[:depth]), is_directory=True)
        self._enter(name, is_directory=is_directory)
        if len(self._names) > MAX_FILES:
            raise BadArchive(f"it holds more than {MAX_FILES:,} files")
        return name

    def take(self, size: int) -> None:
        """Counts the content of one more file."""
        self._bytes += size
        if self._bytes > MAX_BYTES:
            raise BadArchive(f"its files hold more than {MAX_BYTES:,} bytes")

    def _enter(self, name: str, *, is_directory: bool) -> None:
        folded = unicodedata.normalize("NFC", name).casefold()
        before = self._names.setdefault(folded, name)
        if before != name:
            raise BadArchive(f"{name!r} and {before!r} are one name where case does not matter")
        if folded in self._leaves or (not is_directory and folded in self._directories):
            raise BadArchive(f"{name!r} is in it twice")
        (self._directories if is_directory else self._leaves).add(folded)


def _check_name(name: str) -> None:
    parts = name.split("/")
    if not name or name.startswith("/") or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise BadArchive(f"{name!r} is no path inside")
    if len(os.fsencode(name)) > 4_000 or any(len(os.fsencode(part)) > 255 for part in parts):
        raise BadArchive(f"{name[:80]!r}… is too long a path")


def _check_link(name: str, target: str) -> str:
    """The target of a link at `name`, if it lies inside.

    It may go up from where it stands, then only down: after another link the way up would lead from where that one led.
    """
    led = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    if not target or target.startswith("/") or "\0" in target or led.split("/")[0] == "..":
        raise BadArchive(f"the link {name!r} leads out, to {target!r}")
    if ".." in target.lstrip("./").split("/"):
        raise BadArchive(f"the link {name!r} goes down and up again, to {target!r}")
    return target


def _write(path: Path, entry: tarfile.TarInfo, source: _Source) -> None:
    mode = 0o755 if entry.mode & 0o100 else 0o644
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        source.seek(entry.offset_data)
        left = entry.size
        while left:
            if not (block := source.read(min(left, _BLOCK))):
                raise BadArchive("it ends in the middle of a file")
            file.write(block)
            left -= len(block)


def _opened(source: _Source) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=source, mode="r:")  # type: ignore[call-overload, no-any-return]
    except _DAMAGE as error:
        raise BadArchive(f"it is no archive: {error}") from error


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    archive.members.clear()  # type: ignore[attr-defined]  # or all of them would be kept
    try:
        return archive.next()
    except _DAMAGE as error:
        raise BadArchive(f"it is damaged: {error}") from error


_DAMAGE = (tarfile.TarError, ValueError, OverflowError, RecursionError)


class _Source:
    """What a gzipped file unpacks to, forwards only, and not more of it than an archive may have."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = gzip.GzipFile(fileobj=file, mode="rb")
        self._left = MAX_BYTES + MAX_FILES * _OVERHEAD_BYTES
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """As a file does."""
        if not 0 <= size <= _LONGEST_READ:  # only an entry that describes another one asks for so much at once
            raise BadArchive("one of its headers is larger than any name")
        try:
            content = self._file.read(size)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise BadArchive(f"it is damaged: {error}") from error
        self._position += len(content)
        self._left -= len(content)
        if self._left < 0:
            raise BadArchive(f"it unpacks to more than {MAX_BYTES:,} bytes")
        return content

    def seek(self, position: int, _whence: int = 0) -> int:
        """Forwards."""
        if position < self._position:
            raise BadArchive("it leads backwards")
        while self._position < position and self.read(min(position - self._position, _BLOCK)):
            pass
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def close(self) -> None:
        """Lets the file go, which is its owner's."""
        self._file.close()
