"""The page on security names tests; they are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "security.md"


def test_every_bad_input_of_the_page_names_a_test() -> None:
    tables = re.findall(
        r"^\|[^\n]*\| shown by \|\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    rows = [row for table in tables for row in table.splitlines()]

    assert len(tables) == 9
    assert [row for row in rows if "::test_" not in row.split("|")[3]] == []


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`([a-z0-9_/]+\.py)::(test_\w+)`", PAGE.read_text(encoding="utf-8"))
    absent = [
        f"{file}::{name}"
        for file, name in named
        if not re.search(rf"def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"))
    ]

    assert len(named) > 80
    assert absent == []
