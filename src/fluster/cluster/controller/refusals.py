"""Refused requests on their way into the journal: each is told once, and a flood of them in few lines."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace

from fluster.cluster.controller.core.events import RequestsRefused
from fluster.cluster.controller.core.rows import JournalRow
from fluster.cluster.controller.loop import Loop
from fluster.cluster.tokens import without_secrets
from fluster.errors import FlusterError

_log = logging.getLogger(__name__)

KIND = "RequestRefused"
ANONYMOUS = "anonymous"
EVERY_S = 1.0
"""Between two commits of refused requests."""
AFTER_FAILURE_S = 30.0
"""A commit that finds the disk full costs a turn and a load of the whole state: strangers must not cause many."""
MAX_LINES = 20
"""Of one commit: what is refused beyond that is counted, and told in one line more."""
_MAX_TEXT = 500


@dataclass(slots=True)
class _Told:
    line: JournalRow
    count: int = 1


class Refusals:
    """Collects refused requests; a background task brings them into the journal.

    Args:
        loop: Where they are committed.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._told: dict[tuple[str, str, str, str], _Told] = {}
        self._more = 0
        self._rung = asyncio.Event()

    def note(self, actor: str, peer: str, what: str, job_id: str = "") -> None:
        """A request was refused.

        Args:
            actor: Who asked.
            peer: From where.
            what: What was asked and why it was refused; secrets are taken out here.
            job_id: The job it was about, whether there is one or not.
        """
        text = without_secrets(what)[:_MAX_TEXT]
        key = (actor, peer.rpartition(":")[0], text, job_id)
        known = self._told.get(key)
        if known is not None:
            known.count += 1
        elif len(self._told) < MAX_LINES:
            line = JournalRow(self._loop.now(), KIND, actor, without_secrets(job_id), message=text, peer=peer)
            self._told[key] = _Told(line)
        else:
            self._more += 1
        self._rung.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._rung.wait()
            await asyncio.sleep(EVERY_S if await self.flush() else AFTER_FAILURE_S)

    async def flush(self) -> bool:
        """Brings what there is into the journal; whether that could be done."""
        self._rung.clear()
        lines = self._take()
        if not lines:
            return True
        try:
            await self._loop.submit(RequestsRefused(lines))
        except FlusterError as error:
            _log.warning("%d lines on refused requests are not in the journal: %s", len(lines), error)
            return False
        return True

    def _take(self) -> tuple[JournalRow, ...]:
        told, self._told = self._told, {}
        more, self._more = self._more, 0
        lines = [_line(each) for each in told.values()]
        if more:
            last = lines[-1]
            lines.append(replace(last, actor=ANONYMOUS, job_id="", peer="several", message=f"{more} more requests"))
        return tuple(lines)


def _line(told: _Told) -> JournalRow:
    if told.count == 1:
        return told.line
    return replace(told.line, message=f"{told.line.message} ({told.count} times)")
