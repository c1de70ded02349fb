"""What zygote and shims tell the worker: lines of JSON on a pipe that they share."""

from __future__ import annotations

import json
import os
import select
from typing import Any


class Replies:
    """This process's end of the pipe.

    It reads end of file at the worker when the zygote and all shims that may still answer are gone: so a shim lets
    go of it with its answer.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def tell(self, fields: dict[str, Any]) -> None:
        """Writes one line, shorter than what a pipe takes in one piece."""
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, json.dumps(fields).encode()[: select.PIPE_BUF - 1] + b"\n")
        except OSError:  # the worker is gone: the attempt's files say the same
            pass

    def answer(self, number: int, fields: dict[str, Any]) -> None:
        """The one answer to a request; later ones are dropped."""
        self.tell({"number": number, **fields})
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
