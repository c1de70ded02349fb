"""The attempts of one daemon: what `worker.attempts` and `worker.lifecycle` do between the real decisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fluster.cluster.controller.convert import exit_of
from fluster.cluster.controller.core.events import Exit, Observed
from fluster.cluster.controller.core.rows import AttemptState
from fluster.cluster.ids import AttemptUid
from fluster.cluster.worker import decide
from fluster.cluster.worker.decide import Drop, Known, Refuse, Start, Stop, Wanted
from fluster.cluster.worker.ending import StopReason, never_ran, report_end, stopped_before_start
from fluster.cluster.worker.lifecycle import GRACE_S, Phase
from fluster.cluster.worker.runtime import ExitRecord, Gone, Limits
from fluster.rpc.gen.fluster.cluster.v1.types_pb import Cause
from fluster.testing.sim.machines import Process
from fluster.testing.sim.messages import AttemptSpec, SyncAnswer
from fluster.testing.sim.programs import Behaviour

if TYPE_CHECKING:
    from fluster.testing.sim.daemon import Daemon

_STATES = {
    Phase.ACCEPTED: AttemptState.ASSIGNED,
    Phase.BUILDING: AttemptState.BUILDING,
    Phase.RUNNING: AttemptState.RUNNING,
    Phase.ENDED: AttemptState.RUNNING,
}


@dataclass(slots=True)
class Held:
    """One attempt. Up to `report` it is what the attempt's directory keeps; the rest is the daemon's memory.

    Attributes:
        started: Noted before its process is started.
        over: Nothing of it runs and nothing will.
        preparing: It is being built.
    """

    uid: str
    spec: AttemptSpec
    started: bool = False
    stop_reason: StopReason | None = None
    port: int = 0
    report: Exit | None = None
    phase: Phase = Phase.ACCEPTED
    over: bool = False
    dropping: bool = False
    preparing: bool = False
    started_at: float | None = None
    seen: Observed | None = None

    def observed(self) -> Observed:
        """As its controller is to see it."""
        if self.seen is None:
            uid = AttemptUid(self.uid)
            self.seen = Observed(uid, _STATES[self.phase], self.started_at, self.report, self.port)
        return self.seen


class Attempts:
    """By uid; their directories are on the machine's disk."""

    def __init__(self, daemon: Daemon) -> None:
        self._d = daemon
        self._held: dict[str, Held] = {}
        self._unsettled = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def idle(self) -> bool:
        """Whether nothing of any attempt runs."""
        return all(held.over for held in self._held.values())

    def observed(self) -> tuple[Observed, ...]:
        """Every attempt as the controller is to see it."""
        return tuple([held.observed() for held in self._held.values() if not (held.dropping and held.over)])

    def adopt(self) -> None:
        """Takes up what an earlier daemon left; `Daemon.open` is called once it is known what of it runs."""
        for left in sorted(self._d.machine.disk.attempts.values(), key=lambda held: not held.started):
            self._adopt(left)
        if not self._unsettled:
            self._d.open()

    def reconcile(self, answer: SyncAnswer, *, new: bool) -> None:
        """Does what brings the attempts here to the desired set; `new`: also what is not here yet."""
        if not answer.desired and not self._held:
            return  # as most of the time
        desired = answer.desired if new else [each for each in answer.desired if each.uid in self._held]
        specs = {each.uid: each.spec for each in desired if each.spec is not None}
        wanted = [Wanted(each.uid, each.stop, each.spec is not None) for each in desired]
        known = [
            Known(held.uid, held.over, held.stop_reason is StopReason.REQUESTED, held.dropping)
            for held in self._held.values()
        ]
        for step in decide.decide(wanted, known):
            match step:
                case Start(uid) | Refuse(uid):
                    spec = specs[uid]
                    held = Held(uid, spec)
                    self._d.machine.disk.attempts[uid] = self._held[uid] = held
                    self._d.sim.story.tell("AttemptAccepted", spec.job_id, self._d.machine.name, uid)
                    if isinstance(step, Refuse):
                        held.stop_reason = StopReason.REQUESTED
                        self._end(held, exit_of(stopped_before_start(StopReason.REQUESTED, now=self._d.machine.wall())))
                    else:
                        self._execute(held)
                        self._d.changed(False)
                case Stop(uid):
                    self._stop(self._held[uid], StopReason.REQUESTED)
                case Drop(uid):
                    self._drop(self._held[uid])

    def _adopt(self, left: Held) -> None:
        """What the directory keeps is all that is known of it."""
        held = Held(left.uid, left.spec, left.started, left.stop_reason, left.port, left.report)
        self._d.machine.disk.attempts[held.uid] = self._held[held.uid] = held
        if held.report is not None:
            held.phase, held.over = Phase.ENDED, True
            self._d.changed(True)
        elif held.started:
            self._unsettled += 1
            self._d.later(0.005 + 0.3 * self._d.sim.chance.random() ** 3, lambda: self._settle(held))
        else:
            self._execute(held)
            self._d.changed(False)

    def _settle(self, held: Held) -> None:
        process = self._d.machine.processes.get(held.uid)
        self._unsettled -= 1
        if process is None:
            self._describe(held, Gone())
        elif process.record is not None:
            self._describe(held, process.record)
        else:
            self._runs(held, process)
        if not self._unsettled:
            self._d.open()

    def _execute(self, held: Held) -> None:
        if held.stop_reason is not None:
            self._end(held, exit_of(stopped_before_start(held.stop_reason, now=self._d.machine.wall())))
            return
        held.phase, held.preparing, held.seen = Phase.BUILDING, True, None
        does = held.spec.program.behaviour(held.spec.task, held.spec.number)
        self._d.later(does.build_s, lambda: self._built(held, does))

    def _built(self, held: Held, does: Behaviour) -> None:
        if not held.preparing:
            return
        held.preparing = False
        if decide.lease_ended(self._d.session, self._d.sim.clock.now):
            held.stop_reason = StopReason.LEASE_ENDED
            self._end(held, exit_of(stopped_before_start(held.stop_reason, now=self._d.machine.wall())))
            return
        spec = held.spec
        if does.build_fault:
            user = does.build_fault == "user"
            if user:
                self._d.sim.truth.failed.add(AttemptUid(held.uid))
            why = never_ran(
                Cause.BUILD_FAILED, "no such package", now=self._d.machine.wall(), user=user, fluster=not user
            )
            self._end(held, exit_of(why))
            return
        if spec.chooses_port:
            held.port, held.seen = 20_000 + self._d.sim.chance.randrange(10_000), None
            self._d.changed(True)
        held.started = True
        process = Process(self._d.machine, held.uid, spec.job_id, spec.task, spec.program.resources, does)
        self._d.machine.processes[held.uid] = process
        process.start(spec.program.timeout_s)
        self._d.sim.clients.process_started(process, spec)
        self._runs(held, process)

    def _runs(self, held: Held, process: Process) -> None:
        held.phase, held.started_at, held.seen = Phase.RUNNING, process.started_at, None
        self._d.changed(False)
        if held.stop_reason is not None:
            process.stop(GRACE_S)

    def process_ended(self, uid: str) -> None:
        """The shim has written its record."""
        self._d.later(0.001, lambda: self._record_found(uid))

    def _record_found(self, uid: str) -> None:
        held, process = self._held.get(uid), self._d.machine.processes.get(uid)
        if held is not None and process is not None and process.record is not None and held.phase is Phase.RUNNING:
            self._describe(held, process.record)

    def _describe(self, held: Held, record: ExitRecord | Gone) -> None:
        """The report, once the logs have arrived."""
        if held.over:
            return
        held.over = True
        if held.dropping:
            self._forget(held)
            self._d.changed(False)
        else:
            self._d.later(0.002, lambda: self._ship_logs(held, record))

    def _ship_logs(self, held: Held, record: ExitRecord | Gone) -> None:
        if held.dropping or held.report is not None:
            return
        if not self._d.sim.reachable(self._d.machine.name):
            self._d.later(1.0, lambda: self._ship_logs(held, record))
            return
        if isinstance(record, ExitRecord):
            held.started_at = record.started_at
        report = report_end(
            record,
            limits=Limits(time_s=held.spec.program.timeout_s),
            stop_reason=held.stop_reason,
            now=self._d.machine.wall(),
        )
        self._end(held, exit_of(report))

    def _end(self, held: Held, report: Exit) -> None:
        held.report, held.phase, held.over, held.preparing, held.seen = report, Phase.ENDED, True, False, None
        self._d.changed(True)

    def _stop(self, held: Held, reason: StopReason, grace_s: float = GRACE_S) -> None:
        if held.over:
            return
        if held.stop_reason is None or reason is StopReason.REQUESTED:
            held.stop_reason = reason
        if held.preparing:
            self._end(held, exit_of(stopped_before_start(held.stop_reason, now=self._d.machine.wall())))
            if held.dropping:
                self._forget(held)
        elif held.phase is Phase.RUNNING:
            self._d.machine.processes[held.uid].stop(grace_s)

    def stop_all(self, reason: StopReason, grace_s: float = GRACE_S) -> None:
        """Stops every attempt; their ends are reported."""
        for held in list(self._held.values()):
            self._stop(held, reason, grace_s)

    def _drop(self, held: Held) -> None:
        held.dropping = True
        self._d.sim.story.tell("AttemptDropped", held.spec.job_id, self._d.machine.name, held.uid)
        if held.over:
            self._forget(held)
        else:
            self._stop(held, StopReason.REQUESTED)

    def _forget(self, held: Held) -> None:
        if self._held.pop(held.uid, None) is not None:
            self._d.machine.disk.attempts.pop(held.uid, None)
            self._d.machine.processes.pop(held.uid, None)
