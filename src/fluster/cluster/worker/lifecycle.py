"""One attempt on this worker: accepted, built, started, ended, reported."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from functools import cached_property
from typing import Any

from fluster.cluster.worker import disk
from fluster.cluster.worker.build import Site, build, chooses_master_port, limits_of
from fluster.cluster.worker.ending import StopReason, blame_full_disk, never_ran, report_end, stopped_before_start
from fluster.cluster.worker.failures import BuildFailed
from fluster.cluster.worker.folder import Folder, Notes
from fluster.cluster.worker.outcome import BadOutcome, read_outcome
from fluster.cluster.worker.results import add_result, fail
from fluster.cluster.worker.runtime import AttemptStart, ExitRecord, Gone, LogFiles, Running
from fluster.cluster.worker.text import said_last
from fluster.cluster.worker.turns import Turns
from fluster.cluster.worker.veil import Veil
from fluster.errors import FlusterError
from fluster.rpc.gen.fluster.cluster.v1.controller_pb import AttemptSpec
from fluster.rpc.gen.fluster.cluster.v1.types_pb import Cause, ExitReport

_log = logging.getLogger(__name__)

GRACE_S = 10.0
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class Phase(IntEnum):
    """How far an attempt has come."""

    ACCEPTED = 0
    BUILDING = 1
    RUNNING = 2
    ENDED = 3


class _Stopped(Exception):
    """It was told to stop before its process was started."""


class Attempt:
    """One attempt. `run` is its life; `stop` may come at any time.

    Attributes:
        phase: How far it has come; ENDED once its end may be reported.
        report: Its end; given at construction when an earlier daemon has seen it.
        started_at: Unix seconds, once its process exists.
        dropping: Nobody wants to hear of it any more.
        environment: What is being done about its environment, or what it took.
    """

    def __init__(
        self,
        folder: Folder,
        spec: AttemptSpec,
        notes: Notes,
        site: Site,
        *,
        changed: Callable[[bool], None],
        turns: Turns,
        report: ExitReport | None = None,
    ) -> None:
        """`changed(urgent)` is called at each step worth reporting; it uses the machine only in its turn."""
        self.folder = folder
        self.spec = spec
        self.notes = notes
        self.phase = Phase.ACCEPTED if report is None else Phase.ENDED
        self.report = report
        self.started_at: float | None = None
        self.dropping = False
        self.environment = ""
        self._site = site
        self._changed = changed
        self._turns = turns
        self._preparation: asyncio.Task[Any] | None = None
        self._over = asyncio.Event()
        self._ended = asyncio.Event()
        self._settled = asyncio.Event()

    @property
    def uid(self) -> str:
        """Names it in every report."""
        return self.folder.uid

    @property
    def over(self) -> bool:
        """Whether nothing of it runs and nothing will."""
        return self._over.is_set()

    @cached_property
    def veil(self) -> Veil:
        """Hides its secrets in what is shown of it."""
        try:
            return Veil(self.folder.read_secrets().values())
        except (ValueError, FlusterError):  # then its process does not get them either
            return Veil(())

    async def run(self) -> None:
        """Its whole life, up to the report of its end."""
        try:
            if self.report is None:
                self._end(await self._live())
        finally:
            self._settled.set()
            self._over.set()
            self._ended.set()

    async def stop(self, reason: StopReason, *, grace_s: float = GRACE_S, detail: str = "") -> None:
        """Ends its process tree; repeating may only shorten the grace. What a user asks for outranks other reasons."""
        if self.over:
            return
        if self.notes.stop_reason is None or reason is StopReason.REQUESTED:
            self._note(stop_reason=reason, stop_detail=detail)
        if self._preparation is not None:
            self._preparation.cancel()
        if self.phase is Phase.RUNNING:
            await self._site.runtime.stop(self.uid, grace_s)

    async def wait_over(self) -> None:
        """Returns once nothing of it runs."""
        await self._over.wait()

    async def wait_ended(self) -> None:
        """Returns once its end may be reported, or nobody will."""
        await self._ended.wait()

    async def wait_settled(self) -> None:
        """Returns once it is known whether a process of it exists."""
        await self._settled.wait()

    async def clear(self) -> None:
        """Has everybody forget it. Its directory is left."""
        self._site.delivery.forget(self.uid)
        await self._site.runtime.forget(self.uid)

    async def _live(self) -> ExitReport:
        try:
            record = await self._adopt() if self.notes.started else await self._execute()
        except BuildFailed as error:
            fault = error.fluster_fault
            return never_ran(Cause.BUILD_FAILED, str(error), now=time.time(), user=not fault, fluster=fault)
        except _Stopped:
            return stopped_before_start(self.notes.stop_reason or StopReason.REQUESTED, now=time.time())
        except OSError as error:
            return unusable_files(error)
        finally:
            self._site.ports.give_back(self.uid)
            self._site.provision.release(self.uid)
            self._site.users.give_back(self.uid)
            await self._site.gpus.give_back(self.uid)
        self._over.set()
        return await self._describe(record)

    async def _execute(self) -> ExitRecord | Gone:
        async with contextlib.AsyncExitStack() as turn:
            self._settled.set()
            start = await self._until_stopped(self._prepare(turn))
            if not self._site.may_start():
                self._note(stop_reason=StopReason.LEASE_ENDED)
                raise _Stopped
            self._note(started=True)
            self._follow_logs(adopted=False)
            observation = await self._site.runtime.start(start)
            return await self._watch(observation) if isinstance(observation, Running) else observation

    async def _prepare(self, turn: contextlib.AsyncExitStack) -> AttemptStart:
        await turn.enter_async_context(self._turns())
        self.phase = Phase.BUILDING
        start, notes = await build(self.folder, self.spec, self.notes, self._site, self._say)
        # A reason to stop may have been noted meanwhile. Written down with the start that follows.
        self.notes = replace(
            self.notes, ports=notes.ports, master_port=notes.master_port, gpus=notes.gpus, user=notes.user
        )
        if chooses_master_port(self.spec):
            self._note()
            self._changed(True)
        return start

    def _say(self, what: str) -> None:
        self.environment = what
        self._changed(False)

    async def _until_stopped(self, preparation: Any) -> Any:
        """What `preparation` gives, unless `stop` ends it."""
        if self.notes.stop_reason is not None:
            preparation.close()
            raise _Stopped
        self._preparation = asyncio.create_task(preparation)
        try:
            prepared = await self._preparation
        except asyncio.CancelledError:
            if self.notes.stop_reason is not None and not _is_cancelled():
                raise _Stopped from None
            raise
        finally:
            self._preparation.cancel()
            self._preparation = None
        if self.notes.stop_reason is not None:
            raise _Stopped
        return prepared

    async def _adopt(self) -> ExitRecord | Gone:
        self._site.ports.keep(self.uid, [*self.notes.ports.values(), self.notes.master_port])
        self._site.gpus.keep(self.uid, self.notes.gpus)
        self._site.users.keep(self.uid, self.notes.user)
        self._follow_logs(adopted=True)
        async with self._turns(at_once=True):
            observation = await self._site.runtime.adopt(self.uid, self.folder.path)
            self._settled.set()
            _log.info("adopted attempt %s: %s", self.uid, type(observation).__name__)
            return await self._watch(observation) if isinstance(observation, Running) else observation

    async def _watch(self, running: Running) -> ExitRecord | Gone:
        self.started_at = running.started_at
        self.phase = Phase.RUNNING
        self._changed(False)
        if self.notes.stop_reason is not None:
            await self._site.runtime.stop(self.uid, GRACE_S)
        limit = self.spec.resources.disk_bytes if self.spec.resources else 0
        watcher = asyncio.create_task(self._watch_disk(limit)) if limit else None
        try:
            return await self._site.runtime.wait(self.uid)
        finally:
            if watcher is not None:
                watcher.cancel()
                await asyncio.gather(watcher, return_exceptions=True)

    async def _watch_disk(self, limit_bytes: int) -> None:
        used = await disk.wait_until_over(self.folder.path, limit_bytes)
        await self.stop(StopReason.DISK_LIMIT, detail=f"{used:,} bytes used, {limit_bytes:,} asked for")

    async def _describe(self, record: ExitRecord | Gone) -> ExitReport:
        """The report, once the logs have arrived: nothing may be missing when an end is known."""
        await self._site.delivery.finish_logs(self.uid)
        if isinstance(record, ExitRecord) and record.started_at is not None:
            self.started_at = record.started_at  # nobody may have seen it run
        damage = ""
        try:
            outcome = read_outcome(self.folder.result)
            if outcome is not None and outcome.thrown is not None:
                self.veil.rewrite(self.folder.result)
        except (BadOutcome, OSError) as error:
            outcome, damage = None, str(error)
        report = report_end(
            record,
            limits=limits_of(self.spec),
            stop_reason=self.notes.stop_reason,
            stop_detail=self.notes.stop_detail,
            thrown=outcome.thrown if outcome is not None else None,
            said=said_last(self.folder.stdout, self.folder.stderr),
            now=time.time(),
        )
        if damage and report.cause is Cause.UNSPECIFIED:
            fail(report, damage)
        report.error_message = self.veil.text(report.error_message)
        await add_result(report, self.folder, outcome, self._site.delivery)
        if disk.is_full(self.folder.path):
            blame_full_disk(report)
        return report

    def _follow_logs(self, *, adopted: bool) -> None:
        files = LogFiles(self.folder.stdout, self.folder.stderr, self.veil)
        self._site.delivery.follow_logs(self.uid, files, adopted=adopted)

    def _note(self, **changes: Any) -> None:
        self.notes = replace(self.notes, **changes)
        try:
            self.folder.write_notes(self.notes)
        except OSError:
            if changes.get("started"):
                raise  # a process that no later daemon would find must not be started
            _log.warning("cannot write the notes of attempt %s", self.uid, exc_info=True)

    def _end(self, report: ExitReport) -> None:
        self.report = report
        self.phase = Phase.ENDED
        try:
            self.folder.write_report(report)
        except OSError:
            # A later daemon finds out again how it ended; only for one that never ran there is nothing to find.
            _log.warning("cannot note the end of attempt %s", self.uid, exc_info=True)
        self._changed(True)


def incomplete() -> ExitReport:
    """The report of an attempt whose directory tells too little to go on."""
    why = "its directory on the worker is incomplete: the machine lost power, or somebody changed it"
    return never_ran(Cause.WORKER_LOST, why, now=time.time())


def unusable_files(error: OSError) -> ExitReport:
    """The report of an attempt whose files could not be written."""
    if error.errno in _NO_ROOM:
        return never_ran(Cause.DISK_FULL, f"no room for its files on the worker: {error}", now=time.time())
    why = f"the worker cannot use the attempt's files: {error}"
    return never_ran(Cause.START_FAILED, why, now=time.time(), fluster=True)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
