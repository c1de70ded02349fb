"""What the simulator found, each as a story of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fluster.cluster.controller.core.rows import Resources, Retry
from fluster.cluster.ids import AllocationId, JobId, WorkerId
from fluster.testing.sim import CALM, Config, Faults, Simulation, Work, simulate
from fluster.testing.sim.clients import USER
from fluster.testing.sim.controller import Controller
from fluster.testing.sim.machines import Machine
from fluster.testing.sim.messages import SyncRequest
from fluster.testing.sim.network import Call
from fluster.testing.sim.programs import GB, Program
from fluster.testing.sim.story import InvariantBroken
from fluster.testing.sim.worker_rpcs import WorkerRpcs

IDLE = Work(jobs=0, bursts=0, terminations=0, failures=0, children=0, endpoints=0)


def calm(*, workers: int = 2, lease_s: float = 60.0) -> Simulation:
    """A cluster in which nothing happens by itself."""
    return Simulation(Config(seed=0, workers=workers, lease_s=lease_s, faults=CALM, work=IDLE))


def launch(sim: Simulation, *, tasks: int = 1, run_s: float = 500.0) -> JobId:
    """A job whose attempts run for some minutes; returns once they do."""
    program = Program(
        "job", 0, IDLE, tasks, gang=False, priority=1, resources=Resources(1000, GB), retry=Retry(), run_s=run_s
    )
    sim.programs["job"] = program
    answers = ask(sim, lambda controller, call: controller.jobs.launch(program, "r", None, call))
    wait_for(sim, lambda: len(sim.truth.running()) == tasks)
    wait(sim, 1.0)
    assert isinstance(answers[0], str)
    return JobId(answers[0])


def ask(sim: Simulation, handler: Callable[[Controller, Call], None]) -> list[object]:
    """Where the answer to a user's request will be."""
    answers: list[object] = []
    sim.network.call(USER, lambda call: sim.route(call, handler), answers.append, sim.clock.now + 10)
    return answers


def wait(sim: Simulation, seconds: float) -> None:
    sim.clock.run(sim.clock.now + seconds)


def wait_for(sim: Simulation, condition: Callable[[], bool], within_s: float = 300.0) -> None:
    until = sim.clock.now + within_s
    while not condition():
        assert sim.clock.now < until
        wait(sim, 0.1)


def controller(sim: Simulation) -> Controller:
    assert sim.controller is not None
    return sim.controller


def lost(sim: Simulation, job_id: JobId) -> list[str]:
    return [line.message for line in sim.store.journal if line.kind == "TaskFailed" and line.job_id == job_id]


def test_a_report_sent_again_to_a_restarted_controller_ends_no_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client sends a request again when its connection breaks; what the worker said later may be known by then."""
    sim = calm()
    requests: list[SyncRequest] = []
    real = WorkerRpcs.sync

    def sync(self: WorkerRpcs, request: SyncRequest, call: Call) -> None:
        requests.append(request)
        real(self, request, call)

    monkeypatch.setattr(WorkerRpcs, "sync", sync)
    wait(sim, 30.0)
    job_id = launch(sim)
    host = sim.truth.running()[0].machine.name
    stale = [request for request in requests if request.worker_id == host and not request.observed][-1]
    sim.network.cut_up.add(host)  # nothing newer overtakes it
    sim.kill_controller(controller(sim))
    wait_for(sim, lambda: sim.controller is not None)

    call = Call(sim.network, stale.worker_id, lambda _: None, None, sim.clock.now + 30)
    controller(sim).serve(call, lambda: controller(sim).workers.sync(stale, call))
    sim.network.cut_up.clear()
    wait(sim, 30.0)

    assert lost(sim, job_id) == []
    assert len(sim.truth.running()) == 1


def test_a_controller_that_stood_still_for_less_than_a_lease_costs_nothing() -> None:
    """When it goes on it looks at the time before it reads what workers said: nobody was silent but itself."""
    sim = calm(workers=6, lease_s=300.0)
    wait_for(sim, lambda: all(machine.up for machine in sim.machines.values()) and len(sim.machines) == 6)
    wait(sim, 30.0)
    job_id = launch(sim, tasks=6, run_s=900.0)

    controller(sim).freeze(150.0)
    wait(sim, 400.0)

    assert lost(sim, job_id) == []
    assert sim.story.counts["AllocationReleased"] == 0
    assert len(sim.truth.running()) == 6


def test_a_controller_that_stands_still_is_not_taken_to_have_overlooked_silence() -> None:
    """It was the rule that was wrong: once it goes on nobody has been silent."""
    sim = calm(workers=2, lease_s=30.0)
    job_id = launch(sim, run_s=900.0)

    controller(sim).freeze(200.0)
    wait(sim, 400.0)  # everything is looked at once a minute

    assert len(lost(sim, job_id)) == 1  # the worker's lease has ended meanwhile


def test_a_machine_that_stood_still_beyond_its_lease_has_no_grace_left() -> None:
    sim = calm(workers=1, lease_s=30.0)
    job_id = launch(sim)
    machine = sim.truth.running()[0].machine

    machine.freeze(100.0)
    wait(sim, 100.0 + 5.0)  # the grace is 10 s

    assert "silent" in lost(sim, job_id)[0]
    assert all(process.uid.endswith(".2") for process in sim.truth.running())


def test_a_controller_whose_disk_is_full_does_not_spin() -> None:
    """It would decide the same at once again, load all it has, and fail again."""
    for seed in (2, 7):
        result = simulate(Config(seed=seed, seconds=550, faults=replace(Faults(), disk_full=60)))
        assert result.broken is None, result.broken


def test_every_end_of_a_member_of_a_gang_is_in_the_journal() -> None:
    """Also of one that had exited with 0, in vain."""
    result = simulate(Config(seed=0, seconds=200, faults=CALM, work=Work(jobs=600, run_s=10, failures=0.5)))
    assert result.broken is None, result.broken


def test_an_attempt_accepted_before_a_lease_ended_is_not_started_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that comes back late finds it not started yet, and others to adopt, which takes a while."""
    sim = calm(workers=2, lease_s=30.0)
    build_s = 0.01
    real = Program.behaviour
    monkeypatch.setattr(Program, "behaviour", lambda *given: replace(real(*given), build_s=build_s))
    launch(sim)
    machine = sim.truth.running()[0].machine
    build_s = 20.0
    other = Program("late", 0, IDLE, 1, True, 1, Resources(1000, GB), Retry(), run_s=500.0)
    sim.programs["late"] = other
    ask(sim, lambda controller, call: controller.jobs.launch(other, "r2", None, call))
    wait_for(sim, lambda: any(not held.started for held in machine.disk.attempts.values()))
    machine.kill_daemon(None)
    build_s = 0.001
    sim.network.cut_up.add(machine.name)
    wait(sim, 120.0)

    machine.start_daemon()
    wait(sim, 30.0)  # nothing runs twice: that is looked at whenever a process starts
    assert sim.truth.overlaps_checked >= 3


def test_a_machine_whose_network_was_gone_for_twenty_seconds_is_heard_well_before_it_is_given_back() -> None:
    """Two requests in a row were lost in that time, and each was waited for as long as a poll may take: for 60 s."""
    sim = calm(workers=2, lease_s=300.0)
    host = WorkerId("vm-0")
    wait_for(sim, lambda: host in controller(sim).state.last_seen)
    wait(sim, 30.0)
    asked_at = controller(sim).state.last_seen[host]
    wait_for(sim, lambda: controller(sim).state.last_seen[host] > asked_at)

    wait(sim, 16.0)
    sim.network.cut_up.add(host)
    sim.network.cut_down.add(host)
    wait(sim, 21.0)
    sim.network.cut_up.clear()
    sim.network.cut_down.clear()
    healed_at = sim.clock.now
    wait_for(sim, lambda: controller(sim).state.last_seen[host] > healed_at, within_s=13.0)


def test_a_controller_may_die_while_it_gives_back_machines_that_no_record_knows() -> None:
    sim = calm()
    wait(sim, 30.0)
    for number in range(3):
        name = AllocationId(f"stray-{number}")
        sim.machines[name] = Machine(sim, name, name, Resources(1000, GB), 0.0)
        sim.backend.create(name, sim.machines[name])
    wait_for(sim, lambda: len(sim._effects._strays) == 3)  # type: ignore[union-attr]

    sim.kill_controller(controller(sim))
    wait_for(sim, lambda: not any(name.startswith("stray") for name in sim.backend.vms))


def test_shims_that_went_on_after_their_lease_do_not_wait_for_a_daemon_that_has_just_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was the model that was wrong: real ones act by themselves."""
    sim = calm(workers=2, lease_s=30.0)
    launch(sim)
    machine = sim.truth.running()[0].machine
    monkeypatch.setattr(sim.chance, "random", lambda: 0.9)  # it takes a while to find out what runs
    machine.freeze(60.0)
    wait(sim, 1.0)
    machine.kill_daemon(1.0)
    wait(sim, 70.0)

    (process,) = sim.truth.running()
    assert process.machine is not machine


def test_silence_that_is_a_machines_own_is_no_blackout() -> None:
    """It was the rule that was too strict: a cable that was out beside the blackout, and was in again a moment ago."""
    sim = calm(workers=8, lease_s=300.0)
    wait_for(sim, lambda: all(machine.up for machine in sim.machines.values()) and len(sim.machines) == 8)
    wait(sim, 61.0)
    sim.network.dark_since, sim.network.dark_until = sim.clock.now - 40.0, sim.clock.now - 10.0
    row = controller(sim).state.allocations[AllocationId("vm-0")]
    with pytest.raises(InvariantBroken, match="silence of all proves nothing"):
        sim.rules._is_no_blackout(row)

    sim.machines["vm-0"].well_since = sim.clock.now - 5.0
    sim.rules._is_no_blackout(row)
    sim.machines["vm-0"].well_since = 0.0
    sim.network.lost_at["vm-0"] = sim.clock.now - 45.0  # a request, and that was waited for
    sim.rules._is_no_blackout(row)
