"""The cluster's own certificate authority, made at the first start: it vouches for controller, workers, attempts."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fluster.cluster.attempt.files import write_atomically
from fluster.cluster.controller.statedir import StateDirError, kept_secret
from fluster.rpc.trust import pin_of

AUTHORITY_DAYS = 3650.0
_SKEW = datetime.timedelta(days=1)
"""Clocks of other machines may be behind by so much."""
_CURVE = ec.SECP256R1()
_SIGNING = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
_VOUCHING = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
_BOTH_SIDES = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with the key it belongs to, both PEM."""

    certificate: str
    key: str = field(repr=False)


def worker_uri(worker_id: str) -> str:
    """How a worker's certificate names it."""
    return f"fluster:worker:{quote(worker_id, safe='')}"


class Authority:
    """An opened authority.

    Attributes:
        pem: Its certificate, which is no secret.
        pin: The sha256 by which tokens name it.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, pem: str) -> None:
        self.pem = pem
        self.pin = pin_of(pem)
        self._key = key
        self._certificate = x509.load_pem_x509_certificate(pem.encode())
        self._identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())

    @classmethod
    def open(cls, directory: Path) -> Self:
        """The authority of a state directory; made the first time, its key readable by its owner alone.

        Raises:
            StateDirError: Its files are damaged, or others can read its key.
        """
        key_file, file = directory / "ca.key", directory / "ca.pem"
        key = _load_key(key_file, kept_secret(key_file, lambda: _pem_of(ec.generate_private_key(_CURVE)).strip()))
        if not file.exists():
            write_atomically(file, _own_certificate(key).public_bytes(Encoding.PEM), durable=True)
        pem = file.read_text()
        try:
            same = x509.load_pem_x509_certificate(pem.encode()).public_key() == key.public_key()
        except ValueError:
            same = False
        if not same:
            raise StateDirError(file, "is not the certificate of ca.key", "restore both, or remove both for new ones")
        return cls(key, pem)

    def issue(self, names: Iterable[str], *, days: float, now: datetime.datetime | None = None) -> Issued:
        """A certificate with a new key for whoever has these names and addresses; for servers and clients."""
        key = ec.generate_private_key(_CURVE)
        certificate = self._sign(key.public_key(), map(_general_name, names), days, now)
        return Issued(certificate.public_bytes(Encoding.PEM).decode(), _pem_of(key))

    def certify(self, request: bytes, uri: str, *, days: float) -> bytes:
        """A certificate (PEM) for the key of a signing request (DER), whatever name that asks for.

        Raises:
            ValueError: It is no request, or not signed by its own key.
        """
        try:
            asked = x509.load_der_x509_csr(request)
            key = asked.public_key()
            genuine = isinstance(key, ec.EllipticCurvePublicKey) and asked.is_signature_valid
        except Exception as error:  # the library raises of several kinds on garbage
            raise ValueError("the certificate request must be a PKCS #10 request in DER") from error
        if not genuine or not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("the certificate request must be signed by its own elliptic-curve key")
        names = [x509.UniformResourceIdentifier(uri)]
        return self._sign(key, names, days, None).public_bytes(Encoding.PEM)

    def _sign(
        self,
        key: ec.EllipticCurvePublicKey,
        names: Iterable[x509.GeneralName],
        days: float,
        now: datetime.datetime | None,
    ) -> x509.Certificate:
        now = now or datetime.datetime.now(datetime.UTC)
        end = min(now + datetime.timedelta(days=days), self._certificate.not_valid_after_utc)
        return (
            x509.CertificateBuilder()
            .subject_name(_name("Fluster"))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_SIGNING, critical=True)
            .add_extension(_BOTH_SIDES, critical=False)
            .add_extension(x509.SubjectAlternativeName(list(names)), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(self._identifier, critical=False)
            .sign(self._key, SHA256())
        )


def names_of(pem: bytes) -> tuple[str, ...]:
    """The names and addresses a certificate is for.

    Raises:
        ValueError: It is none.
    """
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return (
        *names.get_values_for_type(x509.DNSName),
        *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    )


def ends_at(pem: bytes) -> float:
    """When a certificate ends, unix seconds."""
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()


def _own_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    name = _name("Fluster cluster authority")
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_VOUCHING, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem_of(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _load_key(path: Path, text: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(text.encode(), None)
    except ValueError:
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StateDirError(path, "holds no key", "restore it, or remove it and ca.pem: clients need the new ca.pem")
    return key
