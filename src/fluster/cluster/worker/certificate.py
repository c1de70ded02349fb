"""The key that a worker makes for the certificate it shows, and how long that is good."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


def make_request() -> tuple[bytes, bytes]:
    """A new key (PEM), and the request for a certificate of it (DER); the controller knows what name to write."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, request.public_bytes(Encoding.DER)


def half_over(pem: bytes, now: float) -> bool:
    """Whether half of a certificate's time has passed."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError:
        return True
    begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return now > (begin + end) / 2
