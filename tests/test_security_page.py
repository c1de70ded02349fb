"""The page on security names tests; they are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "security.md"


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`([a-z0-9_/]+\.py)::(test_\w+)`", PAGE.read_text(encoding="utf-8"))
    absent = [
        f"{file}::{name}"
        for file, name in named
        if not re.search(rf"def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"))
    ]

    assert len(named) > 80
    assert absent == []
