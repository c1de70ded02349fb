import pytest

from fluster.cli.inert import inert, inert_line

RED, RESET = "\x1b[31m", "\x1b[0m"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, tab\tand\nnewline", "plain, tab\tand\nnewline"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x1b[2J\x1b[1;1H", "\\x1b[2J\\x1b[1;1H"),
        ("back\b\b\bspace\r", "back\\x08\\x08\\x08space\\r"),
        ("\x9b31m", "\\x9b31m"),
        ("nul\0 del\x7f", "nul\\x00 del\\x7f"),
        ("right\u202eto left", "right\\u202eto left"),
        ("lone \ud800 half", "lone \\ud800 half"),
        ("Grüße, 世界, 🎉", "Grüße, 世界, 🎉"),
        (f"{RED}red", "\\x1b[31mred"),
    ],
)
def test_control_characters_are_shown_and_not_obeyed(text: str, shown: str) -> None:
    assert inert(text) == shown


def test_a_log_line_keeps_its_colours_and_ends_them() -> None:
    assert inert_line(f"a {RED}red{RESET} word") == f"a {RED}red{RESET} word{RESET}"
    assert inert_line(f"{RED}never ended") == f"{RED}never ended{RESET}"


def test_a_log_line_obeys_nothing_but_colours() -> None:
    assert inert_line(f"{RED}x\x1b[2J\x1b]0;t\x07") == f"{RED}x\\x1b[2J\\x1b]0;t\\x07{RESET}"


def test_a_rewritten_line_shows_its_last_state() -> None:
    assert inert_line("10 %\r50 %\r100 %") == "100 %"
    assert inert_line("10 %\r100 %\r") == "100 %"
    assert inert_line("windows\r") == "windows"
