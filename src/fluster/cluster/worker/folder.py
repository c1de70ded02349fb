"""The worker's own files of an attempt, and how attempts are found again after a restart."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fluster.cluster.attempt.files import ENTRYPOINT, RESULT, STDERR, STDOUT, write_atomically
from fluster.cluster.sealing import Sealer
from fluster.cluster.worker.ending import StopReason
from fluster.cluster.worker.jobusers import open_ways
from fluster.cluster.worker.messages import callable_entrypoint
from fluster.rpc.gen.fluster.cluster.v1.controller_pb import AttemptSpec
from fluster.rpc.gen.fluster.cluster.v1.types_pb import ExitReport, Payload

_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_SPEC, _NOTES, _REPORT, _TOKEN = "spec", "notes.", "report", "token"
_SECRETS, _SECRETS_KEY = "secrets", "secrets.key"
_WORK, _TMP, _AUTHORITY, _CERTIFICATE = "work", "tmp", "ca.pem", "certificate.pem"


@dataclass(frozen=True, slots=True)
class Notes:
    """What must outlive the daemon.

    Attributes:
        standalone: Submitted to this worker alone, not by a controller.
        accepted_at: Unix seconds; the order in which standalone jobs wait.
        started: The runtime was asked to start it, or was about to be.
        ports: Handed out, by name.
        master_port: Chosen here; 0: none.
        gpus: Indices handed out.
        user: Whose processes it has; `None`: the worker's own.
        stop_reason: Why it is being stopped.
        stop_detail: Numbers that belong to the reason.
    """

    standalone: bool = False
    accepted_at: float = 0.0
    started: bool = False
    ports: dict[str, int] = field(default_factory=dict)
    master_port: int = 0
    gpus: tuple[int, ...] = ()
    user: int | None = None
    stop_reason: StopReason | None = None
    stop_detail: str = ""


def check_uid(uid: str) -> str:
    """The uid, which names a directory.

    Raises:
        ValueError: It could lead elsewhere.
    """
    if not _UID.fullmatch(uid) or ".." in uid:
        raise ValueError(
            "an attempt's uid must be 1 to 128 of the characters A-Z a-z 0-9 . _ -, the first a letter or digit,"
            f" without '..', got {ascii(uid)[:80]}"
        )
    return uid


@dataclass(frozen=True, slots=True)
class Folder:
    """One attempt's directory."""

    path: Path

    @property
    def uid(self) -> str:
        """Whose it is."""
        return self.path.name

    @property
    def entrypoint(self) -> Path:
        """Pickled callable."""
        return self.path / ENTRYPOINT

    @property
    def result(self) -> Path:
        """Written by the attempt's own process."""
        return self.path / RESULT

    @property
    def stdout(self) -> Path:
        """Everything it wrote there."""
        return self.path / STDOUT

    @property
    def stderr(self) -> Path:
        """Everything it wrote there."""
        return self.path / STDERR

    @property
    def token(self) -> Path:
        """For the attempt's own eyes."""
        return self.path / _TOKEN

    @property
    def certificate(self) -> Path:
        """What the attempt's servers show, with its key; for the attempt's own eyes."""
        return self.path / _CERTIFICATE

    @property
    def authority(self) -> Path:
        """Whom the attempt is to believe about the controller."""
        return self.path / _AUTHORITY

    @property
    def work(self) -> Path:
        """Where it starts, unless its environment says otherwise."""
        return self.path / _WORK

    @property
    def tmp(self) -> Path:
        """Its TMPDIR."""
        return self.path / _TMP

    def create(self, spec: AttemptSpec, notes: Notes) -> None:
        """Writes everything that a later daemon needs to run the attempt.

        Raises:
            OSError: Nothing usable was written.
        """
        self.path.mkdir(mode=0o700)
        self.work.mkdir()
        self.tmp.mkdir()
        if (content := _pickled(spec)) is not None:
            _write(self.entrypoint, content)
        if spec.certificate:
            _write(self.certificate, spec.certificate)
        if spec.token:
            _write(self.token, spec.token.encode())
        if spec.environment is not None and spec.environment.secrets:
            _write(self.path / _SECRETS, self._sealer().seal(spec.environment.secrets))
        _write(self.path / _SPEC, lean(spec).to_binary())
        # Last: a directory without notes was never accepted.
        self.write_notes(notes)

    def write_notes(self, notes: Notes) -> None:
        """Supersedes the notes."""
        # Each time under a new name: replacing a file has ext4 write the new one to disk at once, a millisecond or two.
        write_atomically(self.path / f"{_NOTES}{time.monotonic_ns():020}", json.dumps(asdict(notes)).encode())

    def read_notes(self) -> Notes | None:
        """The notes; `None` if the attempt was never accepted or its directory is damaged."""
        try:
            # By name: the attempt runs within one boot, so the clock tells which were written last.
            latest = max(name for name in os.listdir(self.path) if name.startswith(_NOTES))
            fields: dict[str, Any] = json.loads((self.path / latest).read_bytes())
            fields["gpus"] = tuple(fields["gpus"])
            fields["stop_reason"] = StopReason(fields["stop_reason"]) if fields["stop_reason"] else None
            return Notes(**fields)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def read_spec(self) -> AttemptSpec | None:
        """The specification without token and pickled callable, which are files of their own."""
        try:
            return AttemptSpec.from_binary((self.path / _SPEC).read_bytes())
        except (OSError, ValueError):
            return None

    def read_secrets(self) -> dict[str, str]:
        """The variables that are for the attempt's process alone.

        Raises:
            ValueError: They cannot be opened.
        """
        try:
            sealed = (self.path / _SECRETS).read_bytes()
        except OSError:
            return {}
        return self._sealer().open(sealed)

    def _sealer(self) -> Sealer:
        """Of this worker: its key lies in its own directory, for no attempt to read by accident."""
        path = self.path.parent.parent / _SECRETS_KEY
        try:
            return Sealer(path.read_bytes())
        except FileNotFoundError:
            write_atomically(path, secrets.token_bytes(32), durable=True)
            return Sealer(path.read_bytes())

    def write_report(self, report: ExitReport) -> None:
        """Notes the end: a later daemon reports it again instead of looking at the attempt."""
        write_atomically(self.path / _REPORT, report.to_binary())

    def read_report(self) -> ExitReport | None:
        """The end, if it has come."""
        try:
            return ExitReport.from_binary((self.path / _REPORT).read_bytes())
        except (OSError, ValueError):
            return None


def lean(spec: AttemptSpec) -> AttemptSpec:
    """The specification without token, secrets and pickled callable, which are files of their own."""
    kept = AttemptSpec.from_binary(spec.to_binary())
    kept.token, kept.certificate = "", b""
    if kept.environment is not None:
        kept.environment.secrets = {}
    kind = kept.entrypoint.kind if kept.entrypoint else None
    if kind is not None and kind.field == "callable" and _pickled(spec) is not None:
        kept.entrypoint = callable_entrypoint(Payload(sha256=kind.value.sha256))
    return kept


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)


def _pickled(spec: AttemptSpec) -> bytes | None:
    """The callable, if it came in place."""
    kind = spec.entrypoint.kind if spec.entrypoint else None
    if kind is None or kind.field != "callable":
        return None
    content = kind.value.content
    return content.value if content is not None and content.field == "inline" else None


class Folders:
    """All attempts' directories of one worker, and where they wait to be deleted."""

    def __init__(self, state: Path) -> None:
        self._attempts = state / "attempts"
        self._trash = state / "trash"

    def open(self) -> None:
        """Makes what is missing."""
        for path in (self._attempts, self._trash):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def open_ways(self) -> None:
        """Lets attempts of other users reach their own directories."""
        open_ways((self._attempts.parent, self._attempts))

    def of(self, uid: str) -> Folder:
        """The directory of an attempt, there or not."""
        return Folder(self._attempts / check_uid(uid))

    def all(self) -> Iterator[Folder]:
        """Those there are."""
        for entry in sorted(os.listdir(self._attempts)):
            if _UID.fullmatch(entry):
                yield Folder(self._attempts / entry)

    def discard(self, folder: Folder) -> Path | None:
        """Takes the directory out of the way; what is returned is to be given to `delete`."""
        for number in range(1000):
            target = self._trash / f"{folder.uid}.{os.getpid()}.{number}"
            try:
                os.rename(folder.path, target)
            except FileNotFoundError:
                return None
            except OSError:
                if not target.exists():
                    raise
            else:
                return target
        return folder.path

    def trash(self) -> list[Path]:
        """What an earlier daemon had no time to delete."""
        return [self._trash / name for name in os.listdir(self._trash)]


def delete(path: Path) -> None:
    """Deletes a directory that a job could write to. Links are removed, never followed; what resists is left."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
        return
    # Python's rmtree works by descriptors here, so that a link swapped in while it runs leads nowhere.
    assert shutil.rmtree.avoids_symlink_attacks
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        _make_writable(path)
        shutil.rmtree(path, ignore_errors=True)


def _make_writable(path: Path) -> None:
    """Gives its owner back the directories that a job closed to everybody."""
    waiting = [path]
    while waiting:
        directory = waiting.pop()
        try:
            descriptor = os.open(directory, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            # By descriptor: the name may lead elsewhere by now.
            os.chmod(f"/proc/self/fd/{descriptor}", 0o700)
            with os.scandir(f"/proc/self/fd/{descriptor}") as entries:
                waiting += [directory / entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            pass
        finally:
            os.close(descriptor)
