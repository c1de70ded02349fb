"""Until when a worker's attempts may run, told to their shims by a file: the worker's daemon may be dead or frozen."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

NAME = "lease"


@dataclass(frozen=True, slots=True)
class LeaseFile:
    """The file in a worker's state directory. It names a clock; its time of modification is the end on that clock.

    So that renewing a lease takes no room: a full disk must not end what runs.
    """

    path: Path

    def create(self, clock: int) -> None:
        """Names the clock; an end that is known on it stays.

        Raises:
            OSError: It cannot be written.
        """
        try:
            if self.path.read_text() == str(clock):
                return
        except FileNotFoundError:
            pass
        new = self.path.with_name(f"{self.path.name}.new")
        new.write_text(str(clock))
        os.utime(new, ns=(0, 0))
        os.replace(new, self.path)

    def renew(self, until: float) -> None:
        """Notes the end of the lease.

        Raises:
            OSError: It cannot be noted.
        """
        ns = int(until * 1e9)
        os.utime(self.path, ns=(ns, ns))

    def left_s(self) -> float | None:
        """Seconds until the lease ends, less than 0 afterwards; `None` where nothing is known of one."""
        try:
            with open(self.path, encoding="ascii") as file:
                return os.fstat(file.fileno()).st_mtime_ns / 1e9 - time.clock_gettime(int(file.read()))
        except (OSError, ValueError):
            return None
