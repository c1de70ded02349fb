"""What daemons log: lines that nobody can forge, and not without bound."""

from __future__ import annotations

import logging

from fluster.cluster.daemon_log import OneLine, Sparing


def record(message: str, *values: object, name: str = "fluster.rpc.gate") -> logging.LogRecord:
    return logging.LogRecord(name, logging.INFO, __file__, 1, message, values, None)


def test_a_message_is_one_line_in_which_nothing_is_active() -> None:
    shown = OneLine("%(name)s %(message)s").format(record("refused %s", "/x\n2026 INFO all is well\x1b]0;title\x07"))
    assert shown == r"fluster.rpc.gate refused /x\n2026 INFO all is well\x1b]0;title\x07"


def test_a_traceback_keeps_its_lines_and_is_inert() -> None:
    try:
        raise LookupError("red \x1b[31m")
    except LookupError as error:
        line = record("it broke")
        line.exc_info = (type(error), error, error.__traceback__)
    first, *rest, last = OneLine("%(message)s").format(line).splitlines()
    assert first == "it broke"
    assert rest[0].startswith("Traceback")
    assert last == r"LookupError: red \x1b[31m"


def test_of_a_flood_a_part_is_written_and_the_rest_counted() -> None:
    now = 100.0
    sparing = Sparing(lambda: now)
    assert sum(sparing.filter(record("refused %s", n)) for n in range(1_000)) == 20
    assert sparing.filter(record("another kind"))
    assert all(sparing.filter(record("placed %s", n, name="fluster.cluster.controller.loop")) for n in range(100))
    now += 1.0
    line = record("refused %s", "/x")
    assert sparing.filter(line)
    assert line.getMessage() == "refused /x (and 980 like it were left out)"
    now += 1.0
    line = record("refused %s", "/y")
    assert sparing.filter(line)
    assert line.getMessage() == "refused /y"
