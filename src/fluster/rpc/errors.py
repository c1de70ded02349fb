"""How errors cross the wire: one table of exception type, Connect code and stable reason, read by both ends."""

from __future__ import annotations

import binascii
import json
import logging
import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fluster.errors import (
    AlreadyExists,
    FailedPrecondition,
    FlusterError,
    JobNotFound,
    NotPermitted,
    RemoteFault,
    ResourceExhausted,
    Unreachable,
)
from fluster.rpc.gen.fluster.cluster.v1.controller_pb import ErrorInfo

_log = logging.getLogger(__name__)

_INFO_TYPE = "fluster.cluster.v1.ErrorInfo"


@dataclass(frozen=True, slots=True)
class WireError:
    """An error as it travels: Connect code, text for people, reason and facts for programs."""

    code: str
    message: str
    reason: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    def info(self) -> ErrorInfo:
        """The detail that carries reason and facts."""
        return ErrorInfo(reason=self.reason, metadata=dict(self.metadata))

    def to_json(self) -> bytes:
        """The body of a Connect error response."""
        value = b64encode(self.info().to_binary()).decode().rstrip("=")
        detail = {"type": _INFO_TYPE, "value": value}
        return json.dumps({"code": self.code, "message": self.message, "details": [detail]}).encode()


@dataclass(frozen=True, slots=True)
class _Row:
    """One kind of error. `facts` are the attributes its metadata carries."""

    reason: str
    code: str
    type: type[Exception]
    build: Callable[[str, Mapping[str, str]], Exception]
    facts: tuple[str, ...] = ()


# The first row of a type is how it is sent, the row of a reason how it is received.
_TABLE = (
    _Row(
        "job_not_found", "not_found", JobNotFound, lambda text, f: JobNotFound(f.get("job_id", ""), text), ("job_id",)
    ),
    _Row("already_exists", "already_exists", AlreadyExists, lambda text, _: AlreadyExists(text)),
    _Row("not_permitted", "permission_denied", NotPermitted, lambda text, _: NotPermitted(text)),
    _Row("unauthenticated", "unauthenticated", NotPermitted, lambda text, _: NotPermitted(text)),
    _Row("resource_exhausted", "resource_exhausted", ResourceExhausted, lambda text, _: ResourceExhausted(text)),
    _Row("failed_precondition", "failed_precondition", FailedPrecondition, lambda text, _: FailedPrecondition(text)),
    _Row("unavailable", "unavailable", Unreachable, lambda text, _: Unreachable(text)),
    _Row("invalid_argument", "invalid_argument", ValueError, lambda text, _: ValueError(text)),
    _Row("deadline_exceeded", "deadline_exceeded", TimeoutError, lambda text, _: TimeoutError(text)),
    _Row("internal", "internal", RemoteFault, lambda text, _: RemoteFault(text)),
    _Row("other", "unknown", FlusterError, lambda text, _: FlusterError(text)),
)
_BY_REASON = {row.reason: row for row in _TABLE}
# What has no reason was refused by the RPC library itself. The first row of a code that is not narrower than the code.
_BY_CODE = {row.code: row for row in reversed(_TABLE) if row.type is not JobNotFound}
_BY_TYPE = {row.type: row for row in reversed(_TABLE)}
_HUNG_UP = 499
"""The caller went away while it was being answered."""
_CODE_OF_STATUS = {
    400: "invalid_argument",
    401: "unauthenticated",
    403: "permission_denied",
    404: "unimplemented",
    415: "invalid_argument",
    421: "permission_denied",
    429: "unavailable",
    431: "resource_exhausted",
    501: "unimplemented",
    502: "unavailable",
    503: "unavailable",
    504: "unavailable",
}


def encode(error: BaseException, *, doing: str, request_id: str = "") -> WireError:
    """The error for the caller. What nobody expected becomes a neutral text; the log has the rest under the same id.

    Args:
        error: What the handler raised.
        doing: What was asked, for the log.
        request_id: By which the caller, and whoever reads the log, name this request; empty: one is made.
    """
    row = _row_of(error)
    if row is None:
        request_id = request_id or secrets.token_hex(8)
        _log.error("%s failed (request %s)", doing, request_id, exc_info=error)
        text = f"internal error; the server's log has the details under request {request_id}"
        return WireError("internal", text, "internal", {"request_id": request_id})
    text = error.message if isinstance(error, FlusterError) else str(error)
    return WireError(row.code, text, row.reason, {name: str(getattr(error, name)) for name in row.facts})


def refusal(reason: str, message: str) -> WireError:
    """An error that is no exception yet: a request that never reached a handler."""
    return WireError(_BY_REASON[reason].code, message, reason)


def is_refusal(status: int) -> bool:
    """Whether an answer of this HTTP status says that the request is not taken, rather than that one of us ended it."""
    return (400 <= status < 500 and status != _HUNG_UP) or status == 501


def refusal_by_status(status: int) -> WireError:
    """A refusal of which only the HTTP status is known."""
    return WireError(_CODE_OF_STATUS.get(status, "unknown"), f"HTTP status {status}", "other")


def code_of(error: BaseException) -> str | None:
    """The Connect code by which it is sent; None when it is a bug."""
    row = _row_of(error)
    return None if row is None else row.code


def decode(code: str, message: str, details: Sequence[Any] = ()) -> Exception:
    """The exception the other side meant.

    Args:
        code: Connect code.
        message: Text of the Connect error.
        details: Its details as they are in JSON; those of another type are passed over.
    """
    info = next(filter(None, map(_info, details)), None)
    row = _BY_REASON.get(info.reason) if info is not None else None
    row = row or _BY_CODE.get(code)
    if row is None:
        return RemoteFault(f"{message or 'no text'} ({code})")
    return row.build(message, info.metadata if info is not None else {})


def decode_body(status: int, body: bytes) -> Exception:
    """The exception that the body of an error response, or the `error` of a stream's end, stands for."""
    try:
        error = json.loads(body)
    except ValueError:
        error = None
    return decode_object(error, status)


def decode_object(error: object, status: int = 500) -> Exception:
    """The same, its JSON already parsed. The status decides where it is no Connect error."""
    if not isinstance(error, dict) or not isinstance(error.get("code"), str):
        return decode(_CODE_OF_STATUS.get(status, "unknown"), f"HTTP status {status}")
    details = error.get("details")
    return decode(error["code"], str(error.get("message") or ""), details if isinstance(details, list) else ())


def _row_of(error: BaseException) -> _Row | None:
    if type(error) is ValueError:  # its subclasses (UnicodeError, JSONDecodeError, ...) are accidents, not refusals
        return _BY_TYPE[ValueError]
    if not isinstance(error, FlusterError):
        return None
    return next(_BY_TYPE[kind] for kind in type(error).__mro__ if kind in _BY_TYPE)


def _info(detail: object) -> ErrorInfo | None:
    if not isinstance(detail, dict) or detail.get("type") != _INFO_TYPE:
        return None
    try:
        return ErrorInfo.from_binary(b64decode(str(detail.get("value")) + "==="))
    except (ValueError, binascii.Error):
        return None
