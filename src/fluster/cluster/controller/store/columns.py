"""How each kind of row lies in its table: a column per field, composite fields as compact JSON."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from enum import Enum
from functools import lru_cache
from operator import attrgetter
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from fluster.cluster.controller.core.rows import (
    AllocationRow,
    AttemptRow,
    EndpointRow,
    JobRow,
    JournalRow,
    Quota,
    RequestRow,
    Resources,
    ResultRow,
    Retry,
    SpecRow,
    TaskRow,
    TokenRow,
    UserRow,
    WorkerRow,
)
from fluster.cluster.controller.store import sql

R = TypeVar("R")
Values = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Codec:
    """A field that is not stored as it is. `encode` None: SQLite takes it, only reading needs a step."""

    decode: Callable[[Any], Any]
    encode: Callable[[Any], str] | None = None


class Table(Generic[R]):
    """A kind of row and its table.

    Args:
        name: Of the table.
        row: Its dataclass; the fields are the columns.
        key: Columns that identify a row.
        fixed: Indexed columns that never change.
    """

    def __init__(self, name: str, row: type[R], key: tuple[str, ...] = (), fixed: tuple[str, ...] = ()) -> None:
        self.name = name
        self.row = row
        self.key = key
        self.fixed = fixed
        self.columns = tuple(field.name for field in fields(row))  # type: ignore[arg-type]
        self.upsert = sql.upsert(name, self.columns, fixed, key) if key else ""
        hints = get_type_hints(row)
        codecs = [(i, codec) for i, column in enumerate(self.columns) if (codec := _codec(hints[column]))]
        self._decoders = [(i, codec.decode) for i, codec in codecs]
        self._encoders = [(i, codec.encode) for i, codec in codecs if codec.encode]
        self._values: Callable[[R], Values] = attrgetter(*self.columns)

    def encode(self, row: R) -> Values:
        """The row's values in the order of its columns."""
        if not self._encoders:
            return self._values(row)
        values = list(self._values(row))
        for i, encode in self._encoders:
            values[i] = encode(values[i])
        return tuple(values)

    def decode(self, values: Iterable[Any]) -> R:
        """The row of these values."""
        decoded = list(values)
        for i, decode in self._decoders:
            if decoded[i] is not None:
                decoded[i] = decode(decoded[i])
        return self.row(*decoded)

    def select(self, statement: str, prefix: str = "") -> str:
        """`statement` with this table's columns filled in."""
        return statement.format(columns=sql.names(self.columns, prefix), values=", ".join("?" * len(self.columns)))


def _codec(hint: Any) -> Codec | None:
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(arm for arm in get_args(hint) if arm is not type(None))
    if hint is bool:
        return Codec(bool)
    if hint in (Resources, Retry, Quota):
        return Codec(*_record_codec(hint))
    if hint == tuple[str, ...]:
        return Codec(_strings, _compact)
    if hint == tuple[tuple[str, str], ...]:
        return Codec(_pairs, _compact)
    if isinstance(hint, type) and issubclass(hint, Enum):
        members: dict[str, Any] = {member.value: member for member in hint}  # a dict is ten times faster than a call
        return Codec(members.__getitem__)
    return None  # str, int, float, bytes, ids; StrEnum members are str to SQLite


def _record_codec(record: type[Any]) -> tuple[Callable[[str], Any], Callable[[Any], str]]:
    """Both ways for a small flat record. Cached: most jobs ask for what others asked for."""
    names = tuple(field.name for field in fields(record))

    @lru_cache(maxsize=1024)
    def decode(text: str) -> Any:
        return record(**json.loads(text))

    @lru_cache(maxsize=1024)
    def encode(value: Any) -> str:
        return _compact({name: getattr(value, name) for name in names})

    return decode, encode


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _strings(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((key, value) for key, value in json.loads(text))


JOBS = Table("jobs", JobRow, ("job_id",), fixed=("name", "namespace", "submitted_at"))
SPECS = Table("specs", SpecRow, ("job_id",))
TASKS = Table("tasks", TaskRow, ("job_id", "index"))
ATTEMPTS = Table("attempts", AttemptRow, ("job_id", "task", "number"))
RESULTS = Table("results", ResultRow, ("uid",))
WORKERS = Table("workers", WorkerRow, ("worker_id",))
ALLOCATIONS = Table("allocations", AllocationRow, ("allocation_id",))
ENDPOINTS = Table("endpoints", EndpointRow, ("endpoint_id",))
TOKENS = Table("tokens", TokenRow, ("token_id",))
USERS = Table("users", UserRow, ("name",))
REQUESTS = Table("requests", RequestRow, ("caller", "request_id"), fixed=("at",))
JOURNAL = Table("journal", JournalRow)

UPSERTED: dict[type, Table[Any]] = {
    table.row: table
    for table in (JOBS, SPECS, TASKS, ATTEMPTS, RESULTS, WORKERS, ALLOCATIONS, ENDPOINTS, TOKENS, USERS, REQUESTS)
}
