"""Whom a worker believes about its controller, and the certificate it shows where the controller asks for one."""

from __future__ import annotations

import time
from pathlib import Path

from fluster.cluster.attempt.files import write_atomically
from fluster.cluster.context import read_token_file
from fluster.cluster.worker.config import WorkerConfig
from fluster.rpc.trust import OwnCertificate, Trust, pin_of, split_pin

AUTHORITY = "ca.pem"
_SHOWN = "worker.pem"


class Credentials:
    """One worker's.

    Args:
        config: How the worker is run.
        controller: Address of the controller.

    Attributes:
        trust: For connections to the controller; `None`: they are not encrypted.
        ca_file: The authority to believe, once the controller has been reached; `None`: the system's are believed.

    Raises:
        ValueError: The join token is of a cluster with encrypted connections, and the address is not.
    """

    def __init__(self, config: WorkerConfig, controller: str) -> None:
        self._config = config
        self._shown = config.state_dir / _SHOWN
        self._key: bytes | None = None
        pin = self._pin()
        self.trust: Trust | None = None
        self.ca_file: Path | None = None
        if not controller.startswith("https:"):
            if pin is not None:
                raise ValueError(
                    f"the join token is of a cluster with encrypted connections, and {controller} is not: say https://"
                )
            return
        kept = config.state_dir / AUTHORITY
        own = OwnCertificate(str(self._shown), str(self._shown)) if self._shown.exists() else None
        if config.ca_file is not None:
            self.ca_file, self.trust = config.ca_file, Trust(str(config.ca_file), own=own)
        elif pin is None or _is_authority(kept, pin):
            self.ca_file = kept if kept.exists() else None
            self.trust = Trust(str(kept) if kept.exists() else None, own=own)
        else:
            self.ca_file, self.trust = kept, Trust(None, pin, keep=kept, own=own)

    def join_token(self) -> str | None:
        """What lets an unknown worker register; `None`: there is none.

        Raises:
            ValueError: Its file cannot be read.
        """
        file = self._config.token_file
        return None if file is None else split_pin(read_token_file(file))[0]

    def request(self) -> bytes:
        """A request for a certificate; empty when none is needed, or it is not due. Takes a moment the first time."""
        if self.trust is None or not self.due():
            return b""
        from fluster.cluster.worker.certificate import make_request

        self._key, request = make_request()
        return request

    def take(self, certificate: bytes) -> None:
        """Shows this certificate from now on, also after a restart.

        Raises:
            OSError: It cannot be kept, or does not fit what was asked for.
        """
        if self.trust is None or self._key is None or not certificate:
            return
        write_atomically(self._shown, certificate + self._key, durable=True)
        self.trust.show(OwnCertificate(str(self._shown), str(self._shown)))

    def due(self) -> bool:
        """Whether there is no certificate, or half of its time is over."""
        if not self._shown.exists():
            return True
        from fluster.cluster.worker.certificate import half_over

        return half_over(self._shown.read_bytes(), time.time())

    @property
    def shows_one(self) -> bool:
        """Whether the controller gave one."""
        return self._shown.exists()

    def _pin(self) -> str | None:
        """What the join token names; once the worker has joined, its file may be gone."""
        try:
            return split_pin(read_token_file(self._config.token_file))[1] if self._config.token_file else None
        except ValueError:
            return None


def _is_authority(file: Path, pin: str) -> bool:
    try:
        return pin_of(file.read_text()) == pin
    except (OSError, ValueError):
        return False
