"""What a command prints: data on stdout, as a table or JSON, and talk on stderr; plain text unless a person looks."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    "ok": "green",
    "limited": "yellow",
    "gone": "red",
}
_GAP = "  "
_LEAST_ROOM = 8
"""Of the last column: below it a window is too narrow for the table, which then wraps."""
_GOOD_ROOM = 24
"""Of the last column: for it a wide one before it gives way, though not below _GOOD_INNER."""
_GOOD_INNER = 24
_LEAST_INNER = 8
"""For the least room of the last column it gives way down to here."""
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

    A cell that is a state's name has its colour. Columns whose name begins with `>` are aligned to the right. A
    terminal does not show columns in which nothing is.
    """
    if not rows:
        print_talk(empty or "nothing")
        return
    cells = [[inert(cell).partition("\n")[0] for cell in row] for row in rows]
    if is_fancy(sys.stdout):
        used = [index for index in range(len(columns)) if any(row[index] for row in cells)]
        _print_fancy([columns[index] for index in used], [[row[index] for index in used] for row in cells])
    else:
        for line in _aligned(columns, cells, len):
            print("".join(line).rstrip())


def _aligned(columns: Sequence[str], rows: Sequence[Sequence[str]], width_of: Callable[[str], int]) -> list[list[str]]:
    """Heading and rows, each cell but the last filled up to its column's width and the gap to the next."""
    lines = [[column.lstrip(">") for column in columns], *rows]
    widths = [max(width_of(line[index]) for line in lines) for index in range(len(columns))]
    aligned = []
    for line in lines:
        fill = [" " * (width - width_of(cell)) for cell, width in zip(line, widths, strict=True)]
        parts = zip(columns, line, fill, strict=True)
        cells = [f"{blank}{cell}" if column.startswith(">") else f"{cell}{blank}" for column, cell, blank in parts]
        aligned.append([*(f"{cell}{_GAP}" for cell in cells[:-1]), cells[-1].rstrip()])
    return aligned


def _print_fancy(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    screen = console(sys.stdout)
    for number, line in enumerate(_aligned(columns, _narrowed(columns, rows, screen.width), cell_len)):
        *cells, last = line
        # What gives way in a narrow window is the last column, which holds prose.
        room = screen.width - sum(map(cell_len, cells))
        if cell_len(last) > room >= _LEAST_ROOM:
            last = f"{set_cell_size(last, room - 1).rstrip()}…"
        styled = [(cell, "bold" if number == 0 else _STATE_STYLES.get(cell.strip(), "")) for cell in (*cells, last)]
        screen.print(Text.assemble(*styled), soft_wrap=True)


def _narrowed(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> Sequence[Sequence[str]]:
    """Rows whose widest inner column gives way, from the middle of its cells, where the last would have no room."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, (column.lstrip(">"), *cells))) for column, *cells in zip(columns, *rows, strict=True)]
    lacking = sum(widths[:-1]) + len(_GAP) * (len(widths) - 1) + min(widths[-1], _GOOD_ROOM) - room
    if lacking <= 0 or len(widths) < 3:
        return rows
    widest = max(range(1, len(widths) - 1), key=widths.__getitem__)
    width = max(widths[widest] - lacking, min(widths[widest], _GOOD_INNER))
    left = room - (sum(widths[:-1]) - widths[widest] + len(_GAP) * (len(widths) - 1))
    width = min(width, max(left - _LEAST_ROOM, _LEAST_INNER))
    return [[_cut(cell, width) if index == widest else cell for index, cell in enumerate(row)] for row in rows]


def _cut(text: str, width: int) -> str:
    """Beginning and end of a text that is too wide: names of one sweep differ in one of them."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    end = text[-(width // 2) :]
    while cell_len(end) > width // 2:
        end = end[1:]
    return f"{set_cell_size(text, width - cell_len(end) - 1).rstrip()}…{end}"


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
