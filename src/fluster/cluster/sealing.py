"""Secrets as they lie on a disk: encrypted under a key that lies elsewhere, for its owner alone."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Protocol

from fluster.errors import FailedPrecondition

_NONCE_BYTES = 12
_LABEL = b"fluster secrets "


class Sealer:
    """Seals and opens under one key (AES-256-GCM).

    The nonce is derived from what is sealed, so that the same secrets give the same bytes: a launch that is sent again
    is recognized by them, and nobody without the key learns more than that two jobs have the same secrets.

    Args:
        key: At least 256 random bits; others may be derived from it too.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = hmac.digest(key, _LABEL + b"cipher", hashlib.sha256)
        self._nonce = hmac.digest(key, _LABEL + b"nonce", hashlib.sha256)

    def seal(self, secrets: Mapping[str, str]) -> bytes:
        """What may be stored; empty for none.

        Raises:
            FailedPrecondition: The library that encrypts is missing here.
        """
        if not secrets:
            return b""
        text = json.dumps(dict(sorted(secrets.items()))).encode()
        nonce = hmac.digest(self._nonce, text, hashlib.sha256)[:_NONCE_BYTES]
        return nonce + _cipher(self._cipher).encrypt(nonce, text, None)

    def open(self, sealed: bytes) -> dict[str, str]:
        """What was sealed.

        Raises:
            ValueError: It was sealed under another key, or is damaged.
        """
        if not sealed:
            return {}
        cipher = _cipher(self._cipher)
        from cryptography.exceptions import InvalidTag

        try:
            text = cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)
        except (InvalidTag, ValueError):
            raise ValueError("the job's secrets cannot be opened: their key was replaced; launch it again") from None
        secrets: dict[str, str] = json.loads(text)
        return secrets


class _Cipher(Protocol):
    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes: ...


def _cipher(key: bytes) -> _Cipher:
    try:
        # Only where there are secrets: it takes a moment to load.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        why = "secrets are kept encrypted, and what encrypts is missing there: `pip install cryptography`"
        raise FailedPrecondition(why) from None
    return AESGCM(key)
