"""All attempts of one worker: accepted, adopted, dropped, compared with what the controller wants."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from fluster.cluster.worker.build import Site
from fluster.cluster.worker.decide import Drop, Known, Refuse, Start, Step, Stop, Wanted, decide
from fluster.cluster.worker.ending import StopReason, stopped_before_start
from fluster.cluster.worker.folder import Folder, Folders, Notes, delete, lean
from fluster.cluster.worker.lifecycle import GRACE_S, Attempt, Phase, incomplete, unusable_files
from fluster.cluster.worker.turns import NoTurns, Turns
from fluster.rpc.gen.fluster.cluster.v1.controller_pb import AttemptSpec, DesiredAttempt, ObservedAttempt
from fluster.rpc.gen.fluster.cluster.v1.types_pb import ExitReport, TaskState

_log = logging.getLogger(__name__)

_STATES = {
    Phase.ACCEPTED: TaskState.ASSIGNED,
    Phase.BUILDING: TaskState.BUILDING,
    Phase.RUNNING: TaskState.RUNNING,
    Phase.ENDED: TaskState.RUNNING,
}


class Attempts:
    """The attempts, by uid, and the tasks that are their lives.

    Args:
        folders: Where they are kept.
        site: What they share.
        changed: Called with `urgent` at each step worth reporting.
        turns: Of standalone jobs.
    """

    def __init__(
        self,
        folders: Folders,
        site: Site,
        *,
        changed: Callable[[bool], None],
        turns: Turns,
    ) -> None:
        self._folders = folders
        self._site = site
        self._changed = changed
        self._turns = turns
        self._no_turns = NoTurns()
        self._attempts: dict[str, Attempt] = {}
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._drops: set[asyncio.Task[Any]] = set()
        self._error: BaseException | None = None
        self._failed = asyncio.Event()

    async def open(self) -> None:
        """Adopts what an earlier daemon left; returns once it is known what of it runs."""
        self._folders.open()
        for path in self._folders.trash():
            self._spawn(asyncio.to_thread(delete, path))
        found = [(folder, folder.read_notes()) for folder in self._folders.all()]
        # Those that run have their turns before those that wait.
        for folder, notes in sorted(
            found, key=lambda pair: (not pair[1].started, pair[1].accepted_at) if pair[1] else ()
        ):
            self._adopt(folder, notes)
        await asyncio.gather(*(attempt.wait_settled() for attempt in self.all()))

    async def close(self) -> None:
        """Lets go of the attempts, which go on."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def failed(self) -> None:
        """Raises what no part of the worker expected, if that ever comes. The daemon is then to be started again."""
        await self._failed.wait()
        assert self._error is not None
        raise self._error

    def get(self, uid: str) -> Attempt | None:
        """The attempt, unless it is being dropped."""
        attempt = self._attempts.get(uid)
        return None if attempt is None or attempt.dropping else attempt

    def all(self) -> list[Attempt]:
        """Every attempt, in the order in which they came."""
        return list(self._attempts.values())

    @property
    def idle(self) -> bool:
        """Whether nothing of any attempt runs."""
        return all(attempt.over for attempt in self._attempts.values())

    def accept(self, uid: str, spec: AttemptSpec, notes: Notes, report: ExitReport | None = None) -> Attempt:
        """Writes the attempt down and starts its life; one with a `report` has ended already."""
        folder = self._folders.of(uid)
        try:
            folder.create(spec, notes)
            if report is not None:
                folder.write_report(report)
        except OSError as error:
            _log.warning("cannot write the files of attempt %s: %s", uid, error)
            report = unusable_files(error)
        return self._add(folder, lean(spec), notes, report)

    def drop(self, attempt: Attempt) -> None:
        """Ends what runs of it, then forgets it with everything it wrote; returns before that is done."""
        attempt.dropping = True
        task = self._spawn(self._drop_when_over(attempt))
        self._drops.add(task)
        task.add_done_callback(self._drops.discard)

    async def reconcile(self, desired: Sequence[DesiredAttempt]) -> None:
        """Does what brings the attempts here to the desired set; returns before it is done."""
        specs = {each.attempt_uid: each.spec for each in desired}
        wanted = [Wanted(each.attempt_uid, each.stop, each.spec is not None) for each in desired]
        for step in decide(wanted, [_known(attempt) for attempt in self.all()]):
            await self._take(step, specs)

    def observed(self) -> list[ObservedAttempt]:
        """Every attempt as its controller is to see it."""
        return [_observation(attempt) for attempt in self.all() if not (attempt.dropping and attempt.over)]

    async def stop_all(self, reason: StopReason, *, grace_s: float = GRACE_S) -> None:
        """Stops every attempt; their ends are reported."""
        for attempt in self.all():
            await attempt.stop(reason, grace_s=grace_s)

    async def wait_over(self) -> None:
        """Returns once nothing of any attempt runs."""
        await asyncio.gather(*(attempt.wait_over() for attempt in self.all()))

    async def wait_dropped(self) -> None:
        """Returns once nothing is left of what is being dropped."""
        await asyncio.gather(*self._drops)

    def _adopt(self, folder: Folder, notes: Notes | None) -> None:
        spec = folder.read_spec()
        if notes is not None and spec is not None:
            self._add(folder, spec, notes, folder.read_report())
            return
        _log.warning("the directory of attempt %s is incomplete", folder.uid)
        self._add(folder, AttemptSpec(), Notes(started=True), incomplete())
        self._spawn(self._end_unknown(folder))

    async def _end_unknown(self, folder: Folder) -> None:
        await self._site.runtime.adopt(folder.uid, folder.path)
        await self._site.runtime.stop(folder.uid, 0.0)

    def _add(self, folder: Folder, spec: AttemptSpec, notes: Notes, report: ExitReport | None) -> Attempt:
        attempt = Attempt(
            folder,
            spec,
            notes,
            self._site,
            changed=self._changed,
            turns=self._turns if notes.standalone else self._no_turns,
            report=report,
        )
        self._attempts[folder.uid] = attempt
        self._lives[folder.uid] = self._spawn(attempt.run())
        self._changed(report is not None)
        return attempt

    async def _take(self, step: Step, specs: Mapping[str, AttemptSpec | None]) -> None:
        match step:
            case Start(uid) | Refuse(uid):
                spec = specs[uid]
                assert spec is not None
                now = time.time()
                report = stopped_before_start(StopReason.REQUESTED, now=now) if isinstance(step, Refuse) else None
                self.accept(uid, spec, Notes(accepted_at=now), report)
            case Stop(uid):
                await self._attempts[uid].stop(StopReason.REQUESTED)
            case Drop(uid):
                self.drop(self._attempts[uid])

    async def _drop_when_over(self, attempt: Attempt) -> None:
        was_reported = not attempt.over
        await attempt.stop(StopReason.REQUESTED)
        await attempt.wait_over()
        # What is left of its life is telling of its end, which nobody waits for.
        life = self._lives.pop(attempt.uid)
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        await attempt.clear()
        trash = self._folders.discard(attempt.folder)
        del self._attempts[attempt.uid]
        if was_reported:
            self._changed(False)
        if trash is not None:
            await asyncio.to_thread(delete, trash)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        _log.error("a part of the worker failed", exc_info=error)
        self._error = error
        self._failed.set()


def _known(attempt: Attempt) -> Known:
    stopping = attempt.notes.stop_reason is StopReason.REQUESTED
    return Known(attempt.uid, ended=attempt.over, stopping=stopping, dropping=attempt.dropping)


def _observation(attempt: Attempt) -> ObservedAttempt:
    return ObservedAttempt(
        attempt_uid=attempt.uid,
        state=_STATES[attempt.phase],
        started_at=attempt.started_at,
        exit=attempt.report,
        master_port=attempt.notes.master_port,
        environment=attempt.environment,
    )
