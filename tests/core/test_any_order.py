"""Whatever happens in whatever order: rules that always hold, and everything ends once faults stop."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.core.fleet import BY_HAND, Fleet, Machine
from tests.core.scenario import Scenario

from fluster.cluster.controller.core.events import AllocationUnwanted, Exit, GangPlaced
from fluster.cluster.controller.core.reconcile import Release, reconcile
from fluster.cluster.controller.core.rows import AttemptState, JobRow, Retry
from fluster.cluster.controller.core.state import Settings, has_process
from fluster.cluster.ids import AllocationId, JobId, WorkerId
from fluster.cluster.states import Cause, TaskState
from fluster.errors import FailedPrecondition, FlusterError

T = TypeVar("T")

SETTINGS = Settings(worker_lease_s=20, stop_grace_s=15, lease_margin_s=1, silent_release_s=12, endpoint_lease_s=15)
CALM_STEPS = 400

numbers = st.integers(0, 11)
ENDS = [
    Exit(0, None, "", 0.0),
    Exit(0, None, "", 0.0),
    Exit(1, Cause.EXIT, "exited with code 1", 0.0),
    Exit(137, Cause.OUT_OF_MEMORY, "out of memory", 0.0),
    Exit(143, Cause.TIME_LIMIT, "time limit", 0.0),
    Exit(143, Cause.PREEMPTED, "preempted", 0.0),
]


class AnyOrder(RuleBasedStateMachine):
    """Two machines that never hold all there is to do, and a third one now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.scenario = Scenario(SETTINGS)
        self.fleet = Fleet(self.scenario)
        self.launched = 0
        self.last_placed: list[GangPlaced] = []

    @initialize()
    def two_machines(self) -> None:
        self.fleet.boot("w0")
        self.fleet.boot("w1")

    # Who asks

    @rule(
        tasks=st.integers(1, 3),
        gang=st.booleans(),
        cpu=st.integers(1, 2),
        priority=st.integers(0, 2),
        max_failures=st.integers(0, 2),
        max_preemptions=st.integers(0, 2),
        timeout=st.sampled_from([None, None, None, 40.0]),
        parent=st.none() | numbers,
    )
    def launch(
        self,
        tasks: int,
        gang: bool,
        cpu: int,
        priority: int,
        max_failures: int,
        max_preemptions: int,
        timeout: float | None,
        parent: int | None,
    ) -> None:
        self.launched += 1
        above = None if parent is None or not self.jobs() else pick(self.jobs(), parent)
        try:
            self.scenario.launch(
                f"j{self.launched:03d}",
                tasks=tasks,
                gang=gang,
                cpu=cpu,
                priority=priority,
                retry=Retry(max_failures, max_preemptions, backoff_s=1.0, max_backoff_s=4.0),
                scheduling_timeout_s=timeout,
                parent=above,
            )
        except FailedPrecondition:
            assert above is not None

    @precondition(lambda self: self.jobs())
    @rule(which=numbers)
    def terminate(self, which: int) -> None:
        name = pick(self.jobs(), which)
        try:
            self.scenario.terminate(name)
        except FlusterError:
            assert self.scenario.job(name).outcome is not None
        assert self.scenario.job(name).outcome is not None or self.scenario.job(name).stop_at is not None

    @rule(which=numbers, owned=st.booleans())
    def register_endpoint(self, which: int, owned: bool) -> None:
        self.launched += 1
        jobs = [job for job in self.scenario.state.jobs.values() if self.scenario.attempts(job.job_id)]
        job = pick(jobs, which).job_id if owned and jobs else None
        try:
            self.scenario.register("calc", f"e{self.launched}", job=job)
        except FailedPrecondition:
            assert job is not None
            assert self.scenario.attempt(job).state not in (AttemptState.ASSIGNED, AttemptState.RUNNING)

    # The controller

    @rule()
    def turn(self) -> None:
        self.last_placed = self.scenario.turn().placed

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0, 11.0, 25.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.scenario.now += seconds
        self.fleet.enforce_leases()
        self.last_placed = self.scenario.wait(0).placed

    @rule()
    def controller_restarts(self) -> None:
        self.scenario.restart()

    @precondition(lambda self: self.last_placed)
    @rule()
    def a_placement_is_repeated(self) -> None:
        placed = self.last_placed[0]
        if TaskState.PENDING not in self.scenario.states(placed.job_id):
            with pytest.raises(FlusterError):
                self.scenario.apply(placed)

    # Machines

    @rule(which=numbers)
    def worker_and_controller_talk(self, which: int) -> None:
        if machine := self.machine(which):
            self.fleet.exchange(machine)

    @rule(which=numbers, heard=st.booleans(), hears=st.booleans())
    def a_network_changes(self, which: int, heard: bool, hears: bool) -> None:
        if machine := self.machine(which):
            machine.heard, machine.hears = heard, hears

    @rule(which=numbers)
    def a_request_is_on_its_way(self, which: int) -> None:
        if machine := self.machine(which):
            self.fleet.send(machine)

    @precondition(lambda self: self.fleet.requests)
    @rule(which=numbers, last=st.booleans())
    def a_request_arrives(self, which: int, last: bool) -> None:
        request = pick(self.fleet.requests, which)
        if last:
            self.fleet.requests.remove(request)
        self.fleet.deliver(request)

    @precondition(lambda self: self.fleet.answers)
    @rule(which=numbers, lost=st.booleans())
    def an_answer_arrives_or_is_lost(self, which: int, lost: bool) -> None:
        answer = pick(self.fleet.answers, which)
        self.fleet.answers.remove(answer)
        if not lost:
            self.fleet.receive(answer)

    @rule()
    def all_goes_well_for_a_moment(self) -> None:
        self.last_placed = self.scenario.turn().placed
        for machine in self.fleet.machines.values():
            self.fleet.exchange(machine)
            for uid in self.fleet.running(machine):
                self.fleet.advance(machine, uid)
            self.fleet.exchange(machine)

    @rule(which=numbers, process=numbers)
    def an_attempt_advances(self, which: int, process: int) -> None:
        machine = self.machine(which)
        if machine and (running := self.fleet.running(machine)):
            self.fleet.advance(machine, pick(running, process))

    @rule(which=numbers, process=numbers, how=st.sampled_from(ENDS))
    def an_attempt_ends(self, which: int, process: int, how: Exit) -> None:
        machine = self.machine(which)
        if machine and (running := self.fleet.running(machine)):
            self.fleet.end(machine, pick(running, process), how)

    @rule(which=st.integers(0, 2), keep=st.booleans())
    def a_daemon_starts(self, which: int, keep: bool) -> None:
        machine = self.fleet.machines.get(f"w{which}")
        if machine is None or (machine.heard and machine.hears):  # else it cannot register
            self.fleet.boot(f"w{which}", keep=keep)

    @rule(which=numbers)
    def a_machine_is_gone(self, which: int) -> None:
        if machine := self.machine(which):
            self.fleet.destroy(machine.name)
            held = self.scenario.state.held.get(WorkerId(machine.name), {})
            assert machine.name in BY_HAND or not any(has_process(attempt) for attempt in held.values()), (
                "that it is gone proves their end"
            )

    @rule(which=numbers)
    def a_machine_is_given_back(self, which: int) -> None:
        if machine := self.machine(which):
            self.scenario.apply(AllocationUnwanted(AllocationId(machine.allocation), "test"))

    @rule()
    def the_backend_acts(self) -> None:
        for action in reconcile(self.scenario.state):
            if isinstance(action, Release):
                self.fleet.machines.pop(action.allocation_id.removeprefix("a-"), None)
                self.scenario.gone(action.allocation_id)

    @rule()
    def the_cluster_is_shut_down(self) -> None:
        self.fleet.machines.clear()
        self.scenario.forget_machines()

    # What always holds, besides what each event is checked for

    @invariant()
    def no_task_runs_twice(self) -> None:
        assert self.fleet.overlaps() == []

    def teardown(self) -> None:
        """Faults stop and machines are well: everything ends."""
        self.fleet.forget_messages()
        for machine in self.fleet.machines.values():
            machine.heard = machine.hears = True
        for _ in range(CALM_STEPS):
            self.calm_step()
            if not self.scenario.state.jobs:
                break
        assert not self.scenario.state.jobs, self.scenario.state.waiting
        assert all(job.outcome is not None for job in self.all_jobs())
        assert (self.scenario.state.held, self.scenario.state.attempts) == ({}, {})
        assert (self.scenario.state.children, self.scenario.state.parents) == ({}, {})
        assert self.scenario.state.endpoints_by_attempt == {}

    def calm_step(self) -> None:
        self.the_backend_acts()
        for name in ("w0", "w1"):
            worker = self.scenario.state.workers.get(WorkerId(name))
            machine = self.fleet.machines.get(name)
            if machine is None or worker is None or worker.incarnation != machine.incarnation:
                self.fleet.boot(name)
        for machine in self.fleet.machines.values():
            self.fleet.exchange(machine)
            for uid in self.fleet.running(machine):
                self.fleet.advance(machine, uid)
                process = machine.processes[uid]
                if process.stopping or process.seen.state is AttemptState.RUNNING:
                    self.fleet.end(machine, uid, Exit(0, None, "", 0.0))
        self.scenario.now += 1
        self.fleet.enforce_leases()
        self.scenario.wait(0)
        self.no_task_runs_twice()

    def all_jobs(self) -> list[JobRow]:
        return [row for row in self.scenario.store.rows.values() if isinstance(row, JobRow)]

    def jobs(self) -> list[JobId]:
        """All that were launched, finished or not."""
        return sorted(job.job_id for job in self.all_jobs())

    def machine(self, which: int) -> Machine | None:
        return pick(list(self.fleet.machines.values()), which) if self.fleet.machines else None


def pick(choices: Sequence[T], which: int) -> T:
    return choices[which % len(choices)]


TestAnyOrder = AnyOrder.TestCase
# The same examples in every run. Looking for new ones: derandomize=False, max_examples=5000.
TestAnyOrder.settings = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=100,
    stateful_step_count=50,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize(("heard", "hears"), [(False, False), (True, False), (False, True)])
def test_a_cut_off_worker_has_stopped_a_task_before_it_runs_elsewhere(heard: bool, hears: bool) -> None:
    scenario = Scenario(SETTINGS)
    fleet = Fleet(scenario)
    for name in ("w0", "w1"):
        fleet.boot(name)
    scenario.launch("a")
    cut, other = fleet.machines["w0"], fleet.machines["w1"]
    where = set()
    for second in range(120):
        cut.heard, cut.hears = (heard, hears) if second >= 10 else (True, True)
        scenario.wait(1)
        fleet.enforce_leases()
        for machine in (cut, other):
            fleet.exchange(machine)
            for uid in fleet.running(machine):
                fleet.advance(machine, uid)
        assert fleet.overlaps() == []
        where |= {machine.name for machine in (cut, other) for each in machine.processes.values() if each.runs}

    assert scenario.attempts("a")[0].cause is Cause.WORKER_LOST
    assert scenario.attempt("a").number == 2
    assert heard or where == {"w0", "w1"}


@pytest.mark.parametrize("seed", range(40))
def test_long_stories_end_well(seed: int) -> None:
    """The same rules by chance: longer, and with accidents as rare as they need to be for work to get done."""
    chance = random.Random(seed)
    machine = AnyOrder()
    machine.two_machines()
    steps: list[tuple[float, Callable[[], object]]] = [
        (4, lambda: launch_by_chance(machine, chance)),
        (2, lambda: machine.register_endpoint(chance.randrange(12), chance.random() < 0.8)),
        (16, machine.all_goes_well_for_a_moment),
        (20, lambda: machine.time_passes(chance.choice([0.1, 1.0, 1.0, 4.0]))),
        (0.3, lambda: machine.time_passes(chance.choice([11.0, 25.0, 40.0]))),
        (8, lambda: machine.a_request_is_on_its_way(chance.randrange(12))),
        (
            4,
            lambda: machine.a_network_changes(chance.randrange(12), chance.random() < 0.75, chance.random() < 0.75),
        ),
        (16, lambda: machine.fleet.requests and machine.a_request_arrives(chance.randrange(12), chance.random() < 0.8)),
        (
            16,
            lambda: (
                machine.fleet.answers
                and machine.an_answer_arrives_or_is_lost(chance.randrange(12), chance.random() < 0.2)
            ),
        ),
        (12, lambda: machine.an_attempt_advances(chance.randrange(12), chance.randrange(12))),
        (4, lambda: machine.an_attempt_ends(chance.randrange(12), chance.randrange(12), chance.choice(ENDS))),
        (1, lambda: machine.jobs() and machine.terminate(chance.randrange(100))),
        (0.5, machine.controller_restarts),
        (2, lambda: machine.a_daemon_starts(chance.randrange(3), chance.random() < 0.7)),
        (0.2, lambda: machine.a_machine_is_gone(chance.randrange(12))),
        (0.2, lambda: machine.a_machine_is_given_back(chance.randrange(12))),
        (1, machine.the_backend_acts),
        (0.1, machine.the_cluster_is_shut_down),
    ]
    weights, actions = zip(*steps, strict=True)
    for action in chance.choices(actions, weights, k=600):
        action()
        machine.no_task_runs_twice()
    machine.teardown()


def launch_by_chance(machine: AnyOrder, chance: random.Random) -> None:
    machine.launch(
        tasks=chance.randint(1, 3),
        gang=chance.random() < 0.7,
        cpu=chance.randint(1, 2),
        priority=chance.randrange(3),
        max_failures=chance.randrange(3),
        max_preemptions=chance.randrange(3),
        timeout=chance.choice([None, None, None, 40.0]),
        parent=chance.choice([None, None, chance.randrange(100)]),
    )
