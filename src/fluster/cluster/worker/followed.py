"""The attempts that a runtime follows to their end, whatever runs them: who asks, waits, stops, reads, forgets."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from fluster.cluster.attempt import files
from fluster.cluster.attempt.record import stop_order
from fluster.cluster.worker.remains import write_fault
from fluster.cluster.worker.runtime import ExitRecord, Gone, LogFiles, Observation, Running


class NotStarted(Exception):
    """Nothing ran, by no fault of the user's."""


@dataclass(slots=True, eq=False)
class Followed:
    """One attempt as this worker follows it.

    Attributes:
        begun: Whether it runs, or why not, is known.
        end: How it ended.
    """

    uid: str
    directory: Path
    end: asyncio.Future[ExitRecord | Gone]
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    running: Running | None = None

    def begin(self, running: Running) -> None:
        """It runs."""
        self.running = running
        self.begun.set()

    async def observed(self) -> Observation:
        """The present state; of an attempt that is being started, the state it starts with."""
        await self.begun.wait()
        if self.running is not None and not self.end.done():
            return self.running
        return await asyncio.shield(self.end)


Life = Callable[[Followed], Awaitable[ExitRecord | Gone]]
"""Goes with an attempt from its start, or from being found, to its end. Raises `NotStarted`."""


class FollowedAttempts:
    """Those of one runtime, by their uids."""

    def __init__(self) -> None:
        self._attempts: dict[str, Followed] = {}
        self._lives: set[asyncio.Task[None]] = set()

    def follow(self, uid: str, directory: Path, life: Life) -> Followed:
        """The attempt of this uid; `life` goes with it, unless it is followed already."""
        if uid in self._attempts:
            return self._attempts[uid]
        attempt = self._attempts[uid] = Followed(uid, directory, asyncio.get_running_loop().create_future())
        task = asyncio.create_task(_follow(attempt, life))
        self._lives.add(task)
        task.add_done_callback(self._lives.discard)
        return attempt

    def known(self, uid: str) -> Followed:
        """That attempt.

        Raises:
            LookupError: There is none of this uid.
        """
        try:
            return self._attempts[uid]
        except KeyError:
            raise LookupError(f"no attempt {uid!r} here: it was never started or adopted, or is forgotten") from None

    async def wait(self, uid: str) -> ExitRecord | Gone:
        """Returns within milliseconds of the attempt's end; any number of callers."""
        return await asyncio.shield(self.known(uid).end)

    async def stop(self, uid: str, grace_s: float) -> None:
        """Tells the attempt's shim to end it; repeating may only shorten the grace."""
        attempt = self.known(uid)
        if not order(attempt.directory, stop_order(grace_s)):
            await attempt.begun.wait()  # too early, by milliseconds, or too late
            order(attempt.directory, stop_order(grace_s))

    def logs(self, uid: str) -> LogFiles:
        """Where the attempt's output goes; the files exist once it runs."""
        directory = self.known(uid).directory
        return LogFiles(directory / files.STDOUT, directory / files.STDERR)

    def forget(self, uid: str) -> None:
        """Drops what is kept of an ended attempt (not its directory); one that has not ended is kept."""
        attempt = self._attempts.get(uid)
        if attempt is not None and attempt.end.done():
            del self._attempts[uid]

    async def close(self) -> None:
        """Lets go of the attempts, which go on; who waits for one of them is cancelled."""
        for life in self._lives:
            life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)
        self._attempts.clear()


async def _follow(attempt: Followed, life: Life) -> None:
    try:
        attempt.end.set_result(await life(attempt))
    except NotStarted as fault:
        attempt.end.set_result(write_fault(attempt.directory, str(fault), now=time.time()))
    except Exception as error:
        attempt.end.set_exception(error)
    finally:
        attempt.end.cancel()
        attempt.begun.set()


def order(directory: Path, order: bytes) -> bool:
    """Writes to the shim's control FIFO; false if no shim reads it."""
    try:
        descriptor = os.open(directory / files.CONTROL, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # not made yet, or without a reader
        return False
    try:
        os.write(descriptor, order)
    except BlockingIOError:
        return True  # full of orders that say the same
    except BrokenPipeError:
        return False  # the shim has ended since it was opened
    finally:
        os.close(descriptor)
    return True
