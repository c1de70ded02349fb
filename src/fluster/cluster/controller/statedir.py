"""The controller's state directory: who may read it, who holds it, and the two secrets that are made once."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from fluster.cluster.controller.statelock import StateLock
from fluster.cluster.tokens import TokenKind, admin_token, new_secret, parse_token
from fluster.errors import FlusterError

_LOCK = "controller.lock"
_KEY_BYTES = 32
_MAX_SECRET_BYTES = 4096


class StateDirError(FlusterError):
    """The state directory, or a secret in it, cannot be used as it is.

    Attributes:
        path: What is wrong.
    """

    path: Path

    def __init__(self, path: Path, why: str, cure: str) -> None:
        super().__init__(f"{path} {why}; {cure}")
        self.path = path


class StateDir:
    """An opened state directory, held until it is closed.

    Attributes:
        path: The directory.
        admin_token: The administrator's token, as `admin_token_file` holds it.
        cluster_key: Key of the tokens that are derived instead of stored.
    """

    def __init__(self, path: Path, lock: StateLock, token: str, key: bytes) -> None:
        self.path = path
        self.admin_token = token
        self.cluster_key = key
        self._lock = lock

    @classmethod
    def open(cls, path: Path, *, take_over: bool = False) -> Self:
        """Opens the directory for this process alone and makes what is missing in it.

        Args:
            path: Made if it is missing, with its parents.
            take_over: End the controller that holds it first.

        Raises:
            StateDirBusy: Another controller holds it; the error names it.
            StateDirError: It is no directory, others may write in it, or others may read a secret.
        """
        path = path.absolute()
        try:
            _make_private(path)
            lock = StateLock.take(path / _LOCK, take_over=take_over)
        except OSError as error:
            raise StateDirError(path, f"cannot be used as state directory: {error}", "choose another one") from error
        try:
            return cls(path, lock, _admin_token(path / "admin.token"), _cluster_key(path / "cluster.key"))
        except BaseException:
            lock.release()
            raise

    @property
    def admin_token_file(self) -> Path:
        """Where clients on this machine find their token."""
        return self.path / "admin.token"

    @property
    def database(self) -> Path:
        """The store."""
        return self.path / "fluster.db"

    @property
    def blobs(self) -> Path:
        """Content by hash."""
        return self.path / "blobs"

    @property
    def logs(self) -> Path:
        """Logs by job."""
        return self.path / "logs"

    @property
    def workers(self) -> Path:
        """State directories of local workers, by allocation."""
        return self.path / "workers"

    def free_bytes(self) -> int:
        """What is left on the disk for us."""
        disk = os.statvfs(self.path)
        return disk.f_bavail * disk.f_frsize

    def note_ending(self) -> None:
        """Tells another controller that wants in to wait a moment."""
        self._lock.note_ending()

    def close(self) -> None:
        """Lets another controller in; repeating is harmless."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _make_private(path: Path) -> None:
    """A directory that nobody else can write in. One that is ours, or still empty, is closed to readers too."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat()
    if found.st_uid != os.geteuid() != 0:
        raise StateDirError(path, "belongs to another user", "choose another state directory, or run as that user")
    if not found.st_mode & 0o077:
        return
    # An existing directory with other things in it may have to be readable by others.
    if (path / _LOCK).exists() or not any(path.iterdir()):
        path.chmod(0o700)
    elif found.st_mode & 0o022:
        raise StateDirError(path, "can be written by others", f"run `chmod go-w {path}` or choose another one")


def _admin_token(path: Path) -> str:
    text = kept_secret(path, lambda: admin_token(new_secret()))
    parsed = parse_token(text)
    if parsed is None or parsed.kind is not TokenKind.ADMIN:
        raise StateDirError(path, "holds no administrator's token", "remove it to have a new one made")
    return text


def _cluster_key(path: Path) -> bytes:
    try:
        key = bytes.fromhex(kept_secret(path, lambda: secrets.token_hex(_KEY_BYTES)))
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        cure = "restore it, or remove it to have a new one made: tokens given to workers and running jobs end then"
        raise StateDirError(path, "holds no key", cure)
    return key


def kept_secret(path: Path, make: Callable[[], str]) -> str:
    """The text in the file; what `make` gives is put there the first time."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        text = make()
        _write_once(path, f"{text}\n".encode())
        return text
    except OSError as error:
        raise StateDirError(path, f"cannot be read: {error.strerror}", "it must be a plain file of yours") from error
    with open(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise StateDirError(path, "is no plain file", "remove it to have a new one made")
        if found.st_mode & 0o077:
            raise StateDirError(
                path, "can be read by others", f"run `chmod 600 {path}`, or remove it and take new tokens"
            )
        return file.read(_MAX_SECRET_BYTES).decode("ascii", errors="replace").strip()


def _write_once(path: Path, content: bytes) -> None:
    """Appears complete and synced, or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
