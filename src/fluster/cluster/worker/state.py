"""A worker's state directory: one daemon at a time, who it is, whom it obeyed last and until when."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fluster.cluster.attempt import proc
from fluster.cluster.attempt.files import write_atomically
from fluster.cluster.attempt.lease import NAME as LEASE
from fluster.cluster.attempt.lease import LeaseFile
from fluster.cluster.ids import WorkerId
from fluster.cluster.tokens import new_secret, secret_sha256, worker_token
from fluster.errors import AlreadyExists

_log = logging.getLogger(__name__)

Clock = Callable[[], float]

LOCK = "lock"
_IDENTITY, _CONTACT = "identity.json", "contact.json"
# Whoever asks whether the lock is held holds it for an instant.
_LOCK_S = 0.3


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this worker is, kept for as long as its state directory.

    Attributes:
        secret: Made here; the controller keeps its hash.
        registered: A controller has accepted it.
        next_secret: Of the daemon that runs, until it is known that a controller has taken it. Empty: `secret` is.
    """

    worker_id: str
    secret: str
    registered: bool = False
    next_secret: str = ""

    @property
    def token(self) -> str:
        """What it sends once it is registered."""
        return worker_token(WorkerId(self.worker_id), self.secret)

    @property
    def next_token(self) -> str:
        """What it sends once this daemon is registered."""
        return worker_token(WorkerId(self.worker_id), self.next_secret or self.secret)

    @property
    def next_sha256(self) -> str:
        """What the controller is told when this daemon registers."""
        return secret_sha256(self.next_secret or self.secret)


@dataclass(frozen=True, slots=True)
class Contact:
    """The last answer that was obeyed.

    Attributes:
        epoch: Highest of any controller obeyed.
        controller: Which start of a controller that was.
        boot: Of the machine; a steady clock means nothing beyond it.
        lease_until: On the worker's steady clock; a little early.
    """

    epoch: int = 0
    controller: str = ""
    boot: str = ""
    lease_s: float = 0.0
    lease_until: float = 0.0


class WorkerState:
    """The directory of one worker, locked while it is open; a context manager.

    Raises:
        AlreadyExists: Another daemon runs on it.
        OSError: It cannot be written.
    """

    def __init__(self, path: Path, *, worker_id: str | None = None) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path
        self._lock = _lock(path / LOCK)
        try:
            self.identity = self._load_identity(worker_id)
            self.contact = self._load_contact()
            self._lease: LeaseFile | None = None
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Unlocks it."""
        os.close(self._lock)

    def renew_secret(self) -> None:
        """A daemon that starts gets a secret of its own; the one before is good until a controller has taken it.

        One that no controller is known to have taken is offered again: it may be the one that is good.
        """
        if not self.identity.registered or self.identity.next_secret:
            return
        renewed = replace(self.identity, next_secret=new_secret())
        try:
            # On disk before any controller hears of it: who crashes in between must not be locked out.
            self._write_identity(renewed)
        except OSError as error:
            _log.warning("this worker keeps the secret it had: %s", error)

    def registered(self) -> None:
        """Notes that a controller has accepted this worker, and its newest secret."""
        known = self.identity
        if known.registered and not known.next_secret:
            return
        self.identity = replace(known, registered=True, secret=known.next_secret or known.secret, next_secret="")
        try:
            self._write_identity(self.identity)
        except OSError as error:
            _log.warning("cannot note that this worker is registered: %s", error)

    def tell_lease(self, clock: int) -> None:
        """From now on the end of the lease, on this clock, is also told to those who outlive the daemon."""
        self._lease = LeaseFile(self.path / LEASE)
        self._lease.create(clock)

    def obey(self, epoch: int, controller: str, lease_s: float, lease_until: float) -> None:
        """Notes an answer before it is obeyed; a new epoch at once, the lease for a later daemon now and then."""
        if self._lease is not None:
            self._lease.renew(lease_until)
        last = self.contact
        if epoch == last.epoch and lease_s == last.lease_s and lease_until - last.lease_until < lease_s / 10:
            return
        self.contact = Contact(epoch, controller, proc.boot_id(), lease_s, lease_until)
        durable = epoch != last.epoch
        try:
            write_atomically(self.path / _CONTACT, json.dumps(asdict(self.contact)).encode(), durable=durable)
        except OSError as error:
            # A full disk must not end the worker: it obeys what it remembers, and a later daemon less than it could.
            _log.warning("cannot note the controller's epoch and lease: %s", error)

    def _load_identity(self, worker_id: str | None) -> Identity:
        fields = _read(self.path / _IDENTITY)
        if fields is not None:
            found = Identity(**fields)
            if worker_id is not None and found.worker_id != worker_id:
                raise AlreadyExists(f"{self.path} belongs to worker {found.worker_id!r}, not to {worker_id!r}")
            return found
        identity = Identity(worker_id or f"w-{secrets.token_hex(6)}", new_secret())
        self._write_identity(identity)
        return identity

    def _write_identity(self, identity: Identity) -> None:
        write_atomically(self.path / _IDENTITY, json.dumps(asdict(identity)).encode(), durable=True)
        self.identity = identity

    def _load_contact(self) -> Contact:
        fields = _read(self.path / _CONTACT)
        contact = Contact(**fields) if fields is not None else Contact()
        if contact.boot != proc.boot_id():
            return replace(contact, boot=proc.boot_id(), lease_until=0.0)
        return contact


def lease_clock(*, same_machine: bool) -> int:
    """The clock for leases, the same for all daemons of one boot.

    Time that the machine sleeps counts, for a controller elsewhere does not sleep with it.
    """
    if same_machine or not hasattr(time, "CLOCK_BOOTTIME"):
        return time.CLOCK_MONOTONIC
    return time.CLOCK_BOOTTIME


def steady_clock(clock: int) -> Clock:
    """Reads that clock."""
    return lambda: time.clock_gettime(clock)


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_S
    while not _try_lock(descriptor):
        if time.monotonic() >= deadline:
            holder = os.pread(descriptor, 64, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise AlreadyExists(f"another worker (process {holder}) runs on {path.parent}")
        time.sleep(0.01)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path) -> dict[str, Any] | None:
    try:
        fields: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return fields
