"""`ActorService` itself: what a call over HTTP carries, and how what comes of it is told (extra `server`)."""

from __future__ import annotations

import json
import pickle
import secrets
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, TypeAlias

from connectrpc.code import Code
from connectrpc.codec import proto_binary_codec
from connectrpc.compression.gzip import GzipCompression
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext
from protobuf import Oneof

from fluster import pickler
from fluster.actor.http import Calls
from fluster.cluster.refusal import refuse, shown
from fluster.errors import ActorNotFound, RemoteError
from fluster.remote import Thrown, type_name
from fluster.rpc.codecs import JsonCodec
from fluster.rpc.errors import WireError, refusal
from fluster.rpc.gen.fluster.actor.v1.actor_connect import ActorServiceSync, ActorServiceWSGIApplication
from fluster.rpc.gen.fluster.actor.v1.actor_pb import (
    CallError,
    CallRequest,
    CallResponse,
    HealthCheckRequest,
    HealthCheckResponse,
    PickledArguments,
)

_Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]

MAX_ID_BYTES = 512
"""Of an actor's and a method's name and of a call's id: more than any has, and what each kept reply costs at most."""
_JSON_RULE = 'the arguments in json must be {"args": [...], "kwargs": {...}}, each of the two or none'


def application(calls: Calls, *, read_max_bytes: int) -> ActorServiceWSGIApplication:
    """The service as a WSGI application.

    Args:
        calls: Where calls go.
        read_max_bytes: Of a request, once unpacked.
    """
    return ActorServiceWSGIApplication(
        _Service(calls),
        read_max_bytes=read_max_bytes,
        compressions=[GzipCompression(level=1)],
        codecs=[proto_binary_codec(), JsonCodec()],
    )


class _BadArguments(ValueError):
    """The arguments cannot be loaded: the caller's fault, found out where the method would have run."""


class _Service(ActorServiceSync):
    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def call(self, request: CallRequest, ctx: RequestContext[CallRequest, CallResponse]) -> CallResponse:
        """One call. What the method does, an exit included, is a result; the RPC itself fails if it was not run."""
        _check_names(request)
        load = _loader(request)
        pickled = isinstance(_sent(request), PickledArguments)

        def dump(value: Any) -> CallResponse:
            return _pickled_result(request, value) if pickled else _json_result(request, value)

        try:
            call_id = request.call_id or secrets.token_hex(16)
            response: CallResponse = self._calls.call(request.actor, request.method, call_id, load, dump)
        except BaseException as error:
            if (not_run := _why_not_run(request, error)) is not None:
                raise not_run from error
            return _failure(_raised(error, pickled=pickled))
        return response

    def health_check(
        self, request: HealthCheckRequest, ctx: RequestContext[HealthCheckRequest, HealthCheckResponse]
    ) -> HealthCheckResponse:
        """That somebody is there."""
        return HealthCheckResponse(healthy=True)


def _sent(request: CallRequest) -> PickledArguments | str | None:
    return request.arguments.value if request.arguments is not None else None


def _check_names(request: CallRequest) -> None:
    for what, value in (("actor", request.actor), ("method", request.method)):
        if not value or len(value.encode()) > MAX_ID_BYTES:
            raise _invalid(str(refuse(what, f"a text of 1 to {MAX_ID_BYTES} bytes", value)))
    if len(request.call_id.encode()) > MAX_ID_BYTES:
        raise _invalid(str(refuse("call_id", f"a text of at most {MAX_ID_BYTES} bytes, or empty", request.call_id)))


def _loader(request: CallRequest) -> Callable[[], _Arguments]:
    """What gives the arguments. JSON is read at once; nothing is unpickled before the method's thread asks for it."""
    sent = _sent(request)
    if isinstance(sent, PickledArguments):
        return lambda: (_load(sent.args, "args", tuple), _load_keywords(sent.kwargs))
    arguments = _read_json(sent) if sent is not None else ((), {})
    return lambda: arguments


def _load_keywords(pickled: bytes) -> dict[str, Any]:
    keywords: dict[str, Any] = _load(pickled, "kwargs", dict)
    if not all(isinstance(name, str) for name in keywords):
        raise _BadArguments("kwargs must be the pickle of a dict whose keys are strings")
    return keywords


def _load(pickled: bytes, what: str, kind: type) -> Any:
    if not pickled:
        return kind()
    try:
        value = pickle.loads(pickled)
    except Exception as error:
        raise _BadArguments(
            f"{what} cannot be unpickled here: {type_name(type(error))}: {_text(error)};"
            " what they are made of must be importable in the actor's process"
        ) from error
    if not isinstance(value, kind):
        raise _BadArguments(f"{what} must be the pickle of a {kind.__name__}, got one of a {type_name(type(value))}")
    return value


def _read_json(text: str) -> _Arguments:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise _invalid(f"{_JSON_RULE}; this is no JSON: {error}") from error
    except RecursionError as error:
        raise _invalid(f"{_JSON_RULE}; this is nested too deeply") from error
    if not isinstance(value, dict):
        raise _invalid(f"{_JSON_RULE}, got {shown(value)}")
    if unknown := value.keys() - {"args", "kwargs"}:
        raise _invalid(f"{_JSON_RULE}; there is no {shown(min(unknown))}")
    args, kwargs = value.get("args", []), value.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        what, wrong = ("kwargs", kwargs) if isinstance(args, list) else ("args", args)
        raise _invalid(f"{_JSON_RULE}, got {what} {shown(wrong)}")
    return tuple(args), kwargs


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")


def _why_not_run(request: CallRequest, error: BaseException) -> ConnectError | None:
    """The error of the RPC; None: the method ran, and this is what it raised."""
    if isinstance(error, ActorNotFound) and error.name == request.actor:
        return _connect_error(WireError("not_found", error.message, "actor_not_found", {"name": error.name}))
    if isinstance(error, _BadArguments):
        return _invalid(str(error))
    if isinstance(error, AttributeError) and getattr(error, "refused", False) is True:
        return _invalid(_text(error))
    return None


def _invalid(text: str) -> ConnectError:
    return _connect_error(refusal("invalid_argument", text))


def _connect_error(error: WireError) -> ConnectError:
    return ConnectError(Code(error.code), _clean(error.message), details=[error.info()])


def _pickled_result(request: CallRequest, value: Any) -> CallResponse:
    # What is pickled, or told in JSON, may run code of the user's, which may raise anything.
    try:
        pickled = pickler.dumps(value)
    except BaseException as error:
        return _failure(_unsent(request, value, f"cannot be pickled: {_text(error)}"))
    result: Oneof[Literal["pickled"], bytes] = Oneof("pickled", pickled)
    return CallResponse(result=result)


def _json_result(request: CallRequest, value: Any) -> CallResponse:
    try:
        # A lone surrogate becomes its escape, which is what JSON has for it.
        text = _clean(json.dumps(value, allow_nan=False, ensure_ascii=False))
    except BaseException as error:
        cure = "return what JSON has, or send the arguments as pickles"
        return _failure(_unsent(request, value, f"cannot be told in JSON: {_text(error)}; {cure}"))
    result: Oneof[Literal["json"], str] = Oneof("json", text)
    return CallResponse(result=result)


def _failure(error: CallError) -> CallResponse:
    result: Oneof[Literal["error"], CallError] = Oneof("error", error)
    return CallResponse(result=result)


def _unsent(request: CallRequest, value: Any, why: str) -> CallError:
    """The method has run, but what it gave cannot travel."""
    text = f"the result of {shown(request.method)}, of type {type_name(type(value))}, {why}"
    return CallError(type_name=type_name(RemoteError), message=_clean(text))


def _raised(error: BaseException, *, pickled: bool) -> CallError:
    thrown = _thrown(error.with_traceback(_users_part(error.__traceback__)))
    return CallError(
        type_name=thrown.type_name,
        message=thrown.message,
        traceback=thrown.traceback,
        pickled=thrown.pickled if pickled else b"",
    )


def _thrown(error: BaseException) -> Thrown:
    try:
        return Thrown.of(error)
    except BaseException as failure:  # code of the user's, which may even exit
        return Thrown(_clean(type_name(type(error))), f"<asking for its text raised {type(failure).__name__}>", "", b"")


def _text(error: BaseException) -> str:
    return _thrown(error).message


def _users_part(trace: TracebackType | None) -> TracebackType | None:
    """From the first frame that is not Fluster's; all of it if there is none."""
    below = trace
    while below is not None and str(below.tb_frame.f_globals.get("__name__")).startswith("fluster."):
        below = below.tb_next
    return below or trace


def _clean(text: str) -> str:
    """Without lone surrogates, which no message may carry."""
    return text.encode("utf-8", "backslashreplace").decode()
