"""Workers as they really are: processes run whether or not the controller hears of them, and messages get lost.

A worker follows the rules of its side: it starts only what the newest answer wants and only while its lease holds,
stops what it is told to stop, and stops everything when its lease has run out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tests.core.scenario import PORT, Scenario

from fluster.cluster.controller.core.desired import desired
from fluster.cluster.controller.core.events import Exit, Observed, WorkerSynced
from fluster.cluster.controller.core.rows import AttemptState
from fluster.cluster.ids import AttemptUid, WorkerId
from fluster.cluster.states import Cause
from fluster.errors import FailedPrecondition

BY_HAND = ("w0",)
"""Workers whose machines no backend knows: nobody says when those are gone."""


@dataclass
class Process:
    """An attempt on its machine. Nothing of it runs before BUILDING, nor once it has an exit."""

    seen: Observed
    stopping: bool = False

    @property
    def runs(self) -> bool:
        return self.seen.exit is None and self.seen.state is not AttemptState.ASSIGNED


@dataclass(frozen=True)
class Request:
    """One SyncWorker call on its way."""

    worker: str
    incarnation: str
    seq: int
    observed: tuple[Observed, ...]
    asked_at: float


@dataclass(frozen=True)
class Answer:
    """What the controller answered it."""

    request: Request
    wanted: tuple[tuple[AttemptUid, bool], ...]


@dataclass
class Machine:
    """A worker and what runs on it."""

    name: str
    allocation: str
    incarnation: str = ""
    seq: int = 0
    applied_seq: int = 0
    lease_until: float = 0.0
    heard: bool = True  # its requests arrive
    hears: bool = True  # the answers arrive
    processes: dict[AttemptUid, Process] = field(default_factory=dict)


class Fleet:
    """Machines beside a scenario's controller, and the messages between them."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.machines: dict[str, Machine] = {}
        self.requests: list[Request] = []
        self.answers: list[Answer] = []
        self._newest: dict[str, tuple[str, int]] = {}
        self._incarnations = 0

    # Machines

    def boot(self, name: str, *, keep: bool = True) -> None:
        """The machine's daemon starts: anew, or again, with what ran on it or (the machine restarted) without."""
        machine = self.machines.get(name) or Machine(name, allocation="" if name in BY_HAND else f"a-{name}")
        self.machines[name] = machine
        if machine.allocation and machine.allocation not in self.scenario.state.allocations:
            self.scenario.allocate(machine.allocation, name)
        self._incarnations += 1
        machine.incarnation = f"i{self._incarnations}"
        machine.seq = machine.applied_seq = 0
        if not keep:
            machine.processes = {}
        self.scenario.worker(name, allocation=machine.allocation, incarnation=machine.incarnation)
        machine.lease_until = self.scenario.now + self.scenario.state.settings.worker_lease_s

    def destroy(self, name: str) -> None:
        """The machine is gone, and its backend, if it has one, says so."""
        machine = self.machines.pop(name)
        if machine.allocation:
            self.scenario.gone(machine.allocation)

    def running(self, machine: Machine) -> list[AttemptUid]:
        return [uid for uid, process in machine.processes.items() if process.seen.exit is None]

    def advance(self, machine: Machine, uid: AttemptUid) -> None:
        """The attempt comes one step further: accepted, building, running."""
        process = machine.processes[uid]
        if process.stopping or self.scenario.now >= machine.lease_until:
            return
        state = AttemptState.RUNNING if process.seen.state is AttemptState.BUILDING else AttemptState.BUILDING
        if process.seen.state is not AttemptState.RUNNING:
            started_at = self.scenario.now if state is AttemptState.RUNNING else None
            port = PORT + len(uid)
            process.seen = replace(process.seen, state=state, started_at=started_at, master_port=port)

    def end(self, machine: Machine, uid: AttemptUid, how: Exit) -> None:
        """Nothing of the attempt runs any more."""
        process = machine.processes[uid]
        if process.stopping:
            how = Exit(143, Cause.TERMINATED, "stopped", self.scenario.now, stop_requested=True)
        elif process.seen.state is not AttemptState.RUNNING:
            how = replace(how, exit_code=None, cause=Cause.START_FAILED, fluster_fault=True)
        process.seen = replace(process.seen, exit=replace(how, finished_at=self.scenario.now))

    def enforce_leases(self) -> None:
        """A worker whose lease has run out has stopped all it had, at the latest a stop grace later."""
        grace = self.scenario.state.settings.stop_grace_s
        for machine in self.machines.values():
            if self.scenario.now >= machine.lease_until + grace:
                for uid in self.running(machine):
                    seen = machine.processes[uid].seen
                    how = Exit(143, Cause.WORKER_LOST, "lease ended", self.scenario.now)
                    machine.processes[uid].seen = replace(seen, exit=how)

    # Messages

    def send(self, machine: Machine) -> Request:
        machine.seq += 1
        observed = tuple(process.seen for process in machine.processes.values())
        request = Request(machine.name, machine.incarnation, machine.seq, observed, self.scenario.now)
        self.requests.append(request)
        return request

    def deliver(self, request: Request) -> Answer | None:
        """The request reaches the controller, perhaps not for the first time; `None` if it is not answered."""
        scenario = self.scenario
        worker = scenario.state.workers.get(WorkerId(request.worker))
        if worker is None or worker.incarnation != request.incarnation:
            try:
                scenario.apply(WorkerSynced(WorkerId(request.worker), request.incarnation, request.observed))
            except FailedPrecondition:
                return None
            raise AssertionError("an unknown incarnation was believed")
        incarnation, seq = self._newest.get(request.worker, ("", 0))
        if incarnation == request.incarnation and request.seq <= seq:
            return None  # superseded: the service does not pass it on
        self._newest[request.worker] = (request.incarnation, request.seq)
        scenario.apply(WorkerSynced(worker.worker_id, request.incarnation, request.observed))
        wanted = tuple((each.attempt.uid, each.stop) for each in desired(scenario.state, worker.worker_id))
        answer = Answer(request, wanted)
        self.answers.append(answer)
        return answer

    def receive(self, answer: Answer) -> None:
        """The answer reaches the worker."""
        request = answer.request
        machine = self.machines.get(request.worker)
        if machine is None or machine.incarnation != request.incarnation or request.seq <= machine.applied_seq:
            return
        machine.applied_seq = request.seq
        machine.lease_until = request.asked_at + self.scenario.state.settings.worker_lease_s
        wanted = dict(answer.wanted)
        machine.processes = {uid: process for uid, process in machine.processes.items() if uid in wanted}
        for uid, stop in wanted.items():
            known = machine.processes.get(uid)
            if known is None:
                refused = Exit(None, Cause.TERMINATED, "refused", self.scenario.now, stop_requested=True)
                seen = Observed(uid, AttemptState.ASSIGNED, None, refused if stop else None)
                machine.processes[uid] = Process(seen, stop)
            elif stop:
                known.stopping = True

    def exchange(self, machine: Machine) -> None:
        """One call, as far as the network lets it through."""
        request = self.send(machine)
        if not machine.heard:
            return
        self.requests.remove(request)
        answer = self.deliver(request)
        if answer is not None and machine.hears:
            self.answers.remove(answer)
            self.receive(answer)

    def forget_messages(self) -> None:
        self.requests.clear()
        self.answers.clear()

    # Truth

    def overlaps(self) -> list[str]:
        """Tasks of which more than one process runs."""
        alive: dict[str, list[str]] = {}
        for machine in self.machines.values():
            for uid, process in machine.processes.items():
                if process.runs:
                    alive.setdefault(uid.rsplit(".", 1)[0], []).append(f"{uid} on {machine.name}")
        return [f"{task}: {where}" for task, where in alive.items() if len(where) > 1]
