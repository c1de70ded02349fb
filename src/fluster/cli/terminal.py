"""What a command prints: data on stdout, as a table or JSON, and talk on stderr; plain text unless a person looks."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from fluster.cli.inert import inert

if TYPE_CHECKING:
    from rich.console import Console

_STATE_STYLES = {
    "succeeded": "green",
    "ready": "green",
    "running": "cyan",
    "building": "cyan",
    "assigned": "cyan",
    "pending": "yellow",
    "lost": "yellow",
    "stopped": "magenta",
    "failed": "red",
    "gone": "red",
}
_HIDDEN_FIELDS = ("access_key",)
"""Secrets: never printed."""


def is_fancy(stream: IO[str]) -> bool:
    """Whether colours and moving things may go there: a terminal, and its user did not say no."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown"):
        return False
    return is_terminal(stream)


def is_terminal(stream: IO[str]) -> bool:
    """Whether a person's terminal is at the other end."""
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # closed before the start: None, or closed since
        return False


def console(stream: IO[str]) -> Console:
    """A rich console there; only where `is_fancy`."""
    from rich.console import Console

    return Console(file=stream, force_terminal=True, highlight=False, markup=False, emoji=False)


def print_talk(text: str) -> None:
    """A line about what happens, on stderr; nobody has to read it."""
    try:
        print(inert(text), file=sys.stderr, flush=True)
    except OSError:
        pass


def print_line(text: str) -> None:
    """A line of data on stdout; inert on a terminal, else as it is."""
    print(inert(text) if is_terminal(sys.stdout) else text)


def print_json(values: Iterable[Any]) -> None:
    """A JSON array of objects, one on each line, written as they come."""
    separator = "["
    for value in values:
        # Written before the next value is waited for: a reader of a stream sees each at once.
        print(f"{separator}\n{json.dumps(as_json(value))}", end="", flush=True)
        separator = ","
    print("[]" if separator == "[" else "\n]")


def as_json(value: Any) -> Any:
    """A value of the library as JSON has it: dataclasses as objects with their own field names, without secrets."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.name not in _HIDDEN_FIELDS]
        return {name: as_json(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    return value


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str = "") -> None:
    """Rows under their columns; the last column is cut at the edge of a terminal. `empty` is said if there are none.

    A cell that is a state's name has its colour. Columns whose name begins with `>` are aligned to the right.
    """
    if not rows:
        print_talk(empty or "nothing")
        return
    cells = [[inert(cell).partition("\n")[0] for cell in row] for row in rows]
    if is_fancy(sys.stdout):
        _print_fancy(columns, cells)
    else:
        _print_plain(columns, cells)


def _print_plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [[column.lstrip(">") for column in columns], *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        padded = [
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for column, cell, width in zip(columns, line, widths, strict=True)
        ]
        print("  ".join(padded).rstrip())


def _print_fancy(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        last = index == len(columns) - 1
        table.add_column(
            column.lstrip(">"),
            justify="right" if column.startswith(">") else "left",
            no_wrap=True,
            overflow="ellipsis" if last else "fold",
            # What gives way in a narrow window is the last column, which holds prose.
            min_width=None if last else max(len(column.lstrip(">")), *(len(row[index]) for row in rows)),
        )
    for row in rows:
        table.add_row(*(Text(cell, style=_STATE_STYLES.get(cell, "")) for cell in row))
    console(sys.stdout).print(table)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Names and values below each other; values of several lines stay together. Empty ones are left out."""
    shown = [(name, value) for name, value in facts if value]
    width = max((len(name) for name, _ in shown), default=0)
    fancy = is_fancy(sys.stdout)
    out = console(sys.stdout) if fancy else None
    for name, value in shown:
        first, *rest = inert(value).splitlines() or [""]
        lines = [first, *(f"{'':{width}}  {line}" for line in rest)]
        if out is None:
            print(f"{name:{width}}  " + "\n".join(lines))
        else:
            from rich.text import Text

            style = _STATE_STYLES.get(first.partition(" ")[0], "")
            out.print(Text.assemble((f"{name:{width}}  ", "dim"), ("\n".join(lines), style)), soft_wrap=True)
