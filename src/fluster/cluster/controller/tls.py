"""What the controller shows on encrypted connections: a certificate of its own authority, or the operator's."""

from __future__ import annotations

import asyncio
import datetime
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fluster.cluster.attempt.files import write_atomically
from fluster.cluster.controller.authority import AUTHORITY_DAYS, Authority, ends_at, names_of, worker_uri
from fluster.cluster.controller.names import names_here
from fluster.cluster.ids import WorkerId

_log = logging.getLogger(__name__)

SERVER_DAYS = 90.0
WORKER_DAYS = 90.0
_RENEW_DAYS = 30.0
_WARN_DAYS = 365.0
_LOOK_S = 3600.0
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """How connections are encrypted.

    Attributes:
        certificate, key: PEM files of the operator's own; `None`: the controller makes what it needs.
        names: By which others reach this machine, besides those it knows itself.
        worker_certificates: A worker must show the certificate that it was given when it joined.
    """

    certificate: Path | None = None
    key: Path | None = None
    names: tuple[str, ...] = ()
    worker_certificates: bool = False


class ServerTls:
    """The context of the server, and what keeps it valid.

    Args:
        directory: The state directory.
        config: How.
        host: What is bound.
        clock: Unix seconds.

    Attributes:
        context: Of the server; its certificate is exchanged while it serves.
        names: By which clients may call it.

    Raises:
        StateDirError: The authority's files cannot be used.
        ValueError: The operator's files cannot be used.
    """

    def __init__(
        self, directory: Path, config: TlsConfig, host: str, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.authority = Authority.open(directory)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.options |= ssl.OP_NO_RENEGOTIATION
        self._config = config
        self._clock = clock
        self._certificate = config.certificate or directory / "server.pem"
        self._key = config.key or self._certificate  # one file: it is exchanged in one step
        self._seen: tuple[int, int] = (0, 0)
        if config.worker_certificates:
            self.context.verify_mode = ssl.CERT_OPTIONAL
            self.context.load_verify_locations(cadata=self.authority.pem)
        if self.is_own:
            self.names = tuple(dict.fromkeys((*names_here(host), *config.names)))
            self._warn_of_the_end()
        else:
            self.names = (*_checked_names(self._certificate), *config.names)
        self.renew(at_start=True)

    @property
    def is_own(self) -> bool:
        """Whether clients believe it for the sake of the cluster's own authority."""
        return self._config.certificate is None

    @property
    def pin(self) -> str | None:
        """What tokens carry; `None`: clients believe the operator's certificate by other means."""
        return self.authority.pin if self.is_own else None

    @property
    def wants_worker_certificates(self) -> bool:
        """Whether a worker's token is worth nothing without its certificate."""
        return self._config.worker_certificates

    def worker_certificate(self, worker_id: WorkerId, request: bytes) -> bytes:
        """What the worker is to show from now on (PEM); empty where none is wanted.

        Raises:
            ValueError: It is no request for a certificate.
        """
        if not self.wants_worker_certificates:
            return b""
        return self.authority.certify(request, worker_uri(worker_id), days=WORKER_DAYS)

    def attempt_certificate(self, host: str) -> bytes:
        """Certificate and key (PEM) for the servers of an attempt on this host, for as long as it may run."""
        issued = self.authority.issue([host] if host else [], days=AUTHORITY_DAYS)
        return (issued.certificate + issued.key).encode()

    def uri_of(self, worker_id: WorkerId) -> str:
        """How that certificate names the worker."""
        return worker_uri(worker_id)

    async def keep_valid(self) -> None:
        """Looks every hour, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await asyncio.to_thread(self.renew)
            except (OSError, ValueError) as error:  # the old one goes on, and the log says it every hour
                _log.error("the server's certificate cannot be renewed: %s", error)

    def renew(self, *, at_start: bool = False) -> bool:
        """Makes a new certificate when the old one ends soon, or takes up files that changed; whether it did.

        Raises:
            OSError: Files cannot be read or written.
            ValueError: The operator's files do not fit each other.
        """
        if self.is_own and self._is_due(at_start=at_start):
            now = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC)
            issued = self.authority.issue(self.names, days=SERVER_DAYS, now=now)
            write_atomically(self._certificate, (issued.certificate + issued.key).encode(), durable=True)
        stamp = (self._certificate.stat().st_mtime_ns, self._key.stat().st_mtime_ns)
        if stamp == self._seen:
            return False
        try:
            self.context.load_cert_chain(self._certificate, self._key)
        except ssl.SSLError as error:
            raise ValueError(f"{self._certificate} and {self._key} are no certificate with its key: {error}") from None
        self._seen = stamp
        return True

    def _is_due(self, *, at_start: bool) -> bool:
        try:
            pem = self._certificate.read_bytes()
            if ends_at(pem) - self._clock() < _RENEW_DAYS * _DAY_S:
                return True
            # A machine that moved has other names.
            return at_start and not set(self.names) <= set(names_of(pem))
        except (OSError, ValueError):
            return True

    def _warn_of_the_end(self) -> None:
        left_days = (ends_at(self.authority.pem.encode()) - self._clock()) / _DAY_S
        if left_days < _WARN_DAYS:
            _log.warning(
                "the cluster's authority ends in %d days: then remove ca.key and ca.pem, start the controller again, "
                "and give clients and workers new tokens",
                left_days,
            )


def _checked_names(certificate: Path) -> tuple[str, ...]:
    try:
        return names_of(certificate.read_bytes())
    except OSError as error:
        raise ValueError(f"{certificate} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{certificate} holds no certificate (PEM)") from None
