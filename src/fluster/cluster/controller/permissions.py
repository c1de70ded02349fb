"""Which RPC of the controller is for whom: the one table. What is not in it is for nobody."""

from __future__ import annotations

from collections.abc import Mapping

from fluster.cluster.tokens import TokenKind

_ADMIN = frozenset({TokenKind.ADMIN})
_CLIENT = frozenset({TokenKind.ADMIN, TokenKind.USER, TokenKind.ATTEMPT})
_WORKER = frozenset({TokenKind.WORKER})

# What a user or an attempt may see and change of it (`context.Controller`), and that a worker speaks for itself alone,
# is for the service to say: it knows the object. Nothing is for those without a valid token.
ALLOWED: Mapping[str, frozenset[TokenKind]] = {
    "LaunchJob": _CLIENT,
    "LaunchJobs": _CLIENT,
    "GetJobStatus": _CLIENT,
    "TerminateJob": _CLIENT,
    "ListJobs": _CLIENT,
    "WaitJobs": _CLIENT,
    "GetResult": _CLIENT,
    "FetchLogs": _CLIENT,
    "ExplainJob": _CLIENT,
    "ListEvents": _CLIENT,
    "ListWorkers": frozenset({TokenKind.ADMIN, TokenKind.USER}),
    "ListAllocations": _ADMIN,
    "RegisterEndpoint": _CLIENT,
    "RenewEndpoints": _CLIENT,
    "UnregisterEndpoint": _CLIENT,
    "LookupEndpoints": _CLIENT,
    "ListEndpoints": _CLIENT,
    "RegisterWorker": frozenset({TokenKind.JOIN, TokenKind.WORKER}),
    "SyncWorker": _WORKER,
    "PushLogs": _WORKER,
    "PutBlob": _CLIENT | _WORKER,
    "GetBlob": _CLIENT | _WORKER,
    "GetWheel": _ADMIN | _WORKER,
    "CreateToken": _ADMIN,
    "ListTokens": _ADMIN,
    "RevokeToken": _ADMIN,
}


def allowed(rpc: str, kind: TokenKind) -> bool:
    """Whether an identity of this kind may call the RPC at all."""
    return kind in ALLOWED.get(rpc, ())
