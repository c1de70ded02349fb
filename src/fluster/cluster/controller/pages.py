"""Page tokens: where a listing goes on, authenticated so that a forged one is refused rather than obeyed."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass

_MAX_TOKEN_CHARS = 1_024


@dataclass(frozen=True, slots=True)
class Page:
    """The last job of the page before."""

    submitted_at: float
    job_id: str


def write_page_token(key: bytes, page: Page) -> str:
    """The token that `read_page_token` takes."""
    body = json.dumps([page.submitted_at, page.job_id])
    return urlsafe_b64encode(json.dumps([body, _mac(key, body)]).encode()).decode()


def read_page_token(key: bytes, token: str) -> Page | None:
    """Where to go on; `None`: at the start.

    Raises:
        ValueError: The token was not made by this controller.
    """
    if not token:
        return None
    try:
        if len(token) > _MAX_TOKEN_CHARS:
            raise ValueError("too long")
        body, mac = json.loads(urlsafe_b64decode(token.encode()))
        if not hmac.compare_digest(_mac(key, body), mac):
            raise ValueError("forged")
        submitted_at, job_id = json.loads(body)
    except (ValueError, TypeError):
        raise ValueError("page_token must be one that a listing of this controller gave") from None
    return Page(submitted_at, job_id)


def _mac(key: bytes, body: str) -> str:
    return hmac.new(key, f"page:{body}".encode(), hashlib.sha256).hexdigest()
