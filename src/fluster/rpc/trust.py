"""Whom a client of https believes: the system's authorities, those of a file, or the one authority that a token names.

A token handed to another machine ends in `.` and the sha256 of the cluster's authority, its pin. With it alone a client
can fetch the authority's certificate from anybody, because it can tell whether it is the right one.
"""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import threading
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fluster.rpc.connection import Address

AUTHORITY_PATH = "/ca.pem"
"""Where a server gives its authority's certificate to whoever asks."""
_PINNED = re.compile(r"(?P<token>.+)\.(?P<pin>[0-9a-f]{64})", re.DOTALL)
_FETCH_S = 10.0
_MAX_PEM_BYTES = 64 * 1024


def pinned(token: str, pin: str | None) -> str:
    """A token that also says which authority vouches for its cluster."""
    return token if pin is None else f"{token}.{pin}"


def split_pin(token: str) -> tuple[str, str | None]:
    """The token that is sent, and the pin that came with it."""
    found = _PINNED.fullmatch(token)
    return (found["token"], found["pin"]) if found is not None else (token, None)


def pin_of(pem: str) -> str:
    """The pin of an authority's certificate."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


@dataclass(frozen=True, slots=True)
class OwnCertificate:
    """What this side shows: files of a certificate and its key."""

    certificate: str
    key: str


class Trust:
    """What one client believes, and shows.

    Args:
        ca_file: Only authorities in this file are believed.
        pin: Without a file: only the authority with this sha256, which is fetched when it is first needed.
        keep: Where the fetched one is kept.
        own: For servers that ask for a certificate.
    """

    def __init__(
        self,
        ca_file: str | None = None,
        pin: str | None = None,
        *,
        keep: Path | None = None,
        own: OwnCertificate | None = None,
    ) -> None:
        self.ca_file = ca_file
        self.pin = pin
        self.own = own
        self._keep = keep
        self._pem: str | None = None
        self._context: ssl.SSLContext | None = None
        self._lock = threading.Lock()

    def show(self, own: OwnCertificate) -> None:
        """From the next connection on this certificate is shown.

        Raises:
            OSError: It cannot be used.
        """
        self.own = own
        if self._context is not None:
            self._context.load_cert_chain(own.certificate, own.key)

    def context(self, address: Address) -> ssl.SSLContext:
        """How to connect there.

        Raises:
            OSError: The authority cannot be fetched, or its file cannot be read.
        """
        if self._context is None:
            with self._lock:
                self._context = self._context or self._make(address)
        return self._context

    def _make(self, address: Address) -> ssl.SSLContext:
        if self.ca_file is None and self.pin is not None and self._pem is None:
            self._pem = fetch_authority(address, self.pin)
            if self._keep is not None:
                self._keep.write_text(self._pem)
        if self.ca_file is None and self._pem is None:
            context = ssl.create_default_context()
        else:
            try:
                context = ssl.create_default_context(cafile=self.ca_file, cadata=self._pem)
            except ssl.SSLError as error:
                raise OSError(f"{self.ca_file} holds no certificate: {error.reason}") from None
            except OSError as error:
                raise OSError(f"the authority's file {self.ca_file} cannot be read: {error.strerror}") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.own is not None:
            context.load_cert_chain(self.own.certificate, self.own.key)
        return context


def fetch_authority(address: Address, pin: str) -> str:
    """The certificate with this sha256, as the server there gives it. Nothing secret is sent.

    Raises:
        ssl.SSLCertVerificationError: It gives another.
        OSError: It cannot be reached, or gives none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # what comes is known by its sha256
    request = f"GET {AUTHORITY_PATH} HTTP/1.1\r\nHost: {address.authority}\r\nConnection: close\r\n\r\n"
    try:
        with (
            socket.create_connection((address.host, address.port), timeout=_FETCH_S) as sock,
            context.wrap_socket(sock, server_hostname=address.host) as tls,
        ):
            tls.sendall(request.encode())
            with HTTPResponse(tls, method="GET") as response:
                response.begin()
                content = response.read(_MAX_PEM_BYTES) if response.status == 200 else b""
    except (HTTPException, TimeoutError) as error:
        raise ConnectionError(f"its authority's certificate could not be fetched: {error}") from error
    pem = content.decode("ascii", "replace")
    try:
        found = pin_of(pem)
    except ValueError:
        found = ""
    if found != pin:
        raise ssl.SSLCertVerificationError("its authority is not the one that the token names")
    return pem


def why_untrusted(error: ssl.SSLError) -> str:
    """What a person can do about a handshake that failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        said = getattr(error, "verify_message", "") or str(error.args[-1] if error.args else error)
        return (
            f"its certificate is not believed: {said}; `ca_file` of the configured cluster, or FLUSTER_CA_FILE, "
            "names the authority to believe"
        )
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
        return "what answers there does not speak TLS; is its address http://?"
    return f"no encrypted connection: {error.reason or error}"
