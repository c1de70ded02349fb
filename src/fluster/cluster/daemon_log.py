"""What controller and worker say of themselves, on stderr: strangers can neither forge lines of it nor flood it."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

from fluster.cluster.inert import inert

_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_OF_STRANGERS = ("fluster.rpc", "uvicorn")
"""Loggers, with those below them, on which whoever reaches the port brings lines about."""
_AT_ONCE = 20
_WINDOW_S = 1.0


def log_to_stderr() -> None:
    """Sets this process's logging up; for the main program of a daemon."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(_FORMAT))
    handler.addFilter(Sparing())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # A line for each request and connection is noise here.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


class OneLine(logging.Formatter):
    """One line for each message, whatever names and paths of others are in it; tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 # logging's name
        """As `logging.Formatter` does it."""
        record.message = record.message.replace("\n", "\\n")
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        """As `logging.Formatter` does it."""
        return inert(super().format(record))


class Sparing(logging.Filter):
    """Lets 20 lines of one kind through a second, of what strangers can cause; the next tells how many it left out.

    Args:
        clock: Steady seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._windows: dict[str, tuple[float, int]] = {}  # by kind, of which the code has few

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is written."""
        if not any(record.name == name or record.name.startswith(f"{name}.") for name in _OF_STRANGERS):
            return True
        kind, now = f"{record.name} {record.msg}", self._clock()
        began, count = self._windows.get(kind, (now, 0))
        if now - began >= _WINDOW_S:
            if count > _AT_ONCE:
                record.msg = f"{record.msg} (and {count - _AT_ONCE} like it were left out)"
            began, count = now, 0
        self._windows[kind] = began, count + 1
        return count < _AT_ONCE
