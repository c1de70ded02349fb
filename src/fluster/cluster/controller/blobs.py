"""Content by hash in files: what is too large for a row. A blob that is there is complete, right and synced."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedRandom
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fluster.cluster.refusal import shown
from fluster.errors import FlusterError, ResourceExhausted

if TYPE_CHECKING:
    from hashlib import _Hash

DEFAULT_CAP_BYTES = 20 * 1024**3
MAX_UPLOADS = 256
"""Unfinished uploads kept at one time; the one that was idle longest gives way and starts again from 0."""
IDLE_UPLOAD_S = 3600.0
"""After so long without a chunk an upload is dropped by the next sweep."""
_NAME = re.compile(r"[0-9a-f]{64}", re.ASCII)
_PARTIAL = re.compile(r"(?P<sha256>[0-9a-f]{64})\.(?P<total>[0-9]{1,19})", re.ASCII)


class BlobNotFound(FlusterError):
    """No complete blob has this hash.

    Attributes:
        sha256: The hash.
    """

    sha256: str

    def __init__(self, sha256: str) -> None:
        super().__init__(f"no blob {sha256}; it was never sent completely, or nothing referred to it any more")
        self.sha256 = sha256


@dataclass(slots=True)
class _Upload:
    """An unfinished blob: a file that grows, and the hash of what it holds (None: of what an earlier process left)."""

    path: Path
    total_size: int
    touched: float
    size: int = 0
    hash: _Hash | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    dropped: bool = False


class BlobStore:
    """The blobs of a controller. All of it may be called from any thread.

    Args:
        directory: Made if it is missing.
        cap_bytes: For all blobs and uploads together.
        clock: Unix seconds of a steady clock: files are dated by it.
    """

    def __init__(
        self, directory: Path, *, cap_bytes: int = DEFAULT_CAP_BYTES, clock: Callable[[], float] = time.time
    ) -> None:
        self._directory = directory
        self._uploading = directory / "uploading"
        self._cap_bytes = cap_bytes
        self._clock = clock
        self._opened_at = clock()
        self._lock = threading.Lock()
        self._uploads: dict[str, _Upload] = {}
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # `parents` are made without the mode
        self._uploading.mkdir(mode=0o700, exist_ok=True)
        self._used = sum(size for _, size, _ in self._blobs())
        for entry in os.scandir(self._uploading):
            if named := _PARTIAL.fullmatch(entry.name):
                found = entry.stat(follow_symlinks=False)
                path = Path(entry.path)
                self._uploads[path.name] = _Upload(path, int(named["total"]), self._opened_at, found.st_size)
                self._used += found.st_size

    @property
    def used_bytes(self) -> int:
        """What blobs and uploads take."""
        return self._used

    def put(self, sha256: str, offset: int, chunk: bytes, total_size: int) -> int:
        """Takes a chunk of a blob; with the last one it is checked, synced and there.

        Repeating is harmless: what is already there is passed over, also of a blob that is complete. A chunk that
        would leave a gap is not taken.

        Returns:
            The offset of the chunk to send next; `total_size` when the blob is complete.

        Raises:
            ValueError: Hash, offset or size cannot be, or the bytes do not have this hash: they are dropped.
            ResourceExhausted: The store or the disk is full.
        """
        _check(sha256)
        if not 0 <= offset <= offset + len(chunk) <= total_size:
            raise ValueError(f"{len(chunk)} bytes at offset {offset} do not lie in a blob of {total_size} bytes")
        if self.renew(sha256):
            return self._complete_size(sha256, total_size)
        upload = self._upload(sha256, total_size)
        with upload.lock:
            if upload.dropped:
                return total_size if self.exists(sha256) else 0
            new = chunk[upload.size - offset :] if offset <= upload.size else b""
            if new:
                self._append(upload, new)
            if upload.size == total_size:
                self._finish(sha256, upload)
            return upload.size

    def exists(self, sha256: str) -> bool:
        """Whether the complete blob is there."""
        return self._path(sha256).is_file()

    def renew(self, sha256: str) -> bool:
        """Whether the blob is there; if so its age starts again, so that a sweep leaves time to refer to it."""
        path, now = self._path(sha256), self._clock()
        with self._lock:
            try:
                os.utime(path, (now, now))
            except FileNotFoundError:
                return False
        return True

    def size(self, sha256: str) -> int:
        """Its bytes. Raises BlobNotFound."""
        try:
            return self._path(sha256).stat().st_size
        except FileNotFoundError:
            raise BlobNotFound(sha256) from None

    def open(self, sha256: str, offset: int = 0) -> BinaryIO:
        """The blob as a file to read from `offset` on; it can be read to its end even when it is swept meanwhile.

        Raises:
            BlobNotFound: There is no such blob.
        """
        try:
            file = open(self._path(sha256), "rb")  # noqa: SIM115 - the caller closes it
        except FileNotFoundError:
            raise BlobNotFound(sha256) from None
        file.seek(offset)
        return file

    def sweep(self, referenced: Collection[str], *, min_age_s: float) -> int:
        """Deletes the blobs that nothing refers to, and uploads that nobody goes on with.

        Args:
            referenced: Hashes of those to keep.
            min_age_s: Younger ones stay: what refers to them may be on its way. An upload, and `renew`, makes young.

        Returns:
            How many bytes are free again.
        """
        before, now = self._used, self._clock()
        for path, size, modified in self._blobs():
            # Of what was there before nobody knows by which clock it was dated.
            if path.name not in referenced and now - max(modified, self._opened_at) >= min_age_s:
                self._delete(path, size, modified)
        with self._lock:
            idle = [upload for upload in self._uploads.values() if now - upload.touched >= IDLE_UPLOAD_S]
        for upload in idle:
            with upload.lock:
                self._drop(upload)
        return before - self._used

    def _path(self, sha256: str) -> Path:
        _check(sha256)
        return self._directory / sha256[:2] / sha256

    def _complete_size(self, sha256: str, claimed: int) -> int:
        size = self.size(sha256)
        if size != claimed:
            raise ValueError(f"the blob {sha256} has {size} bytes, not {claimed}")
        return size

    def _blobs(self) -> Iterator[tuple[Path, int, float]]:
        for folder in os.scandir(self._directory):
            if len(folder.name) == 2 and folder.is_dir(follow_symlinks=False):
                for entry in os.scandir(folder):
                    if _NAME.fullmatch(entry.name):
                        found = entry.stat(follow_symlinks=False)
                        yield Path(entry.path), found.st_size, found.st_mtime

    def _upload(self, sha256: str, total_size: int) -> _Upload:
        # Two senders that disagree on the size are two uploads: only one of them can have the right bytes.
        name = f"{sha256}.{total_size}"
        with self._lock:
            upload = self._uploads.get(name)
            if upload is None:
                self._check_room(total_size)
                upload = _Upload(self._uploading / name, total_size, self._clock(), hash=hashlib.sha256())
                self._uploads[name] = upload
            upload.touched = self._clock()
            longest_idle = min(self._uploads.values(), key=lambda u: u.touched)
            crowded = len(self._uploads) > MAX_UPLOADS
        if crowded:
            with longest_idle.lock:
                self._drop(longest_idle)
        return upload

    def _append(self, upload: _Upload, new: bytes) -> None:
        self._check_room(len(new))
        with _space_errors(), _opened(upload.path) as file:
            if upload.hash is None:
                upload.hash = hashlib.file_digest(file, "sha256")
            file.seek(upload.size)  # over the bytes of a write that failed half-way
            file.write(new)
        upload.hash.update(new)
        upload.size += len(new)
        self._take(len(new))

    def _finish(self, sha256: str, upload: _Upload) -> None:
        path = self._path(sha256)
        with _space_errors(), _opened(upload.path) as file:
            digest = (upload.hash or hashlib.file_digest(file, "sha256")).hexdigest()
            if digest != sha256:
                self._drop(upload)
                raise ValueError(f"the bytes sent do not have the hash {sha256} but {digest}; send them again")
            file.truncate(upload.size)
            now = self._clock()
            os.utime(file.fileno(), (now, now))
            os.fsync(file.fileno())
            path.parent.mkdir(mode=0o700, exist_ok=True)
            os.rename(upload.path, path)
            _sync(path.parent)
            _sync(self._directory)
        with self._lock:
            self._uploads.pop(upload.path.name, None)
            upload.dropped = True

    def _drop(self, upload: _Upload) -> None:
        """Forgets an upload, whose lock is held."""
        with self._lock:
            if upload.dropped:
                return
            upload.dropped = True
            self._uploads.pop(upload.path.name, None)
            upload.path.unlink(missing_ok=True)
        self._take(-upload.size)

    def _delete(self, path: Path, size: int, modified: float) -> None:
        with self._lock:  # against `renew`
            if path.exists() and path.stat().st_mtime == modified:
                path.unlink()
                self._used -= size

    def _check_room(self, needed: int) -> None:
        if self._used + needed > self._cap_bytes:
            raise ResourceExhausted(
                f"{needed} bytes do not fit into the blob store ({self._used} of {self._cap_bytes} bytes are in use); "
                "blobs go with the jobs that refer to them"
            )

    def _take(self, size: int) -> None:
        with self._lock:
            self._used += size


def _check(sha256: str) -> None:
    if not _NAME.fullmatch(sha256):
        raise ValueError(f"a blob's name must be its sha256 as 64 lower-case hex digits, got {shown(sha256)}")


@contextmanager
def _opened(path: Path) -> Iterator[BufferedRandom]:
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "r+b") as file:
        yield file


@contextmanager
def _space_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ResourceExhausted(f"a blob cannot be written: {error.strerror}; free some space") from error


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
