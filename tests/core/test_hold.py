"""A waiting gang is not starved, whatever streams past it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from tests.core.scenario import START, Scenario

from fluster.cluster.controller.core.hold import Hold
from fluster.cluster.states import TaskState


@dataclass
class Stream:
    """Small jobs that never cease: one more each second, each running for as long as `duration` says."""

    scenario: Scenario
    duration: Callable[[int], float]
    cpu: float = 1
    ends: dict[str, float] = field(default_factory=dict)
    launched: int = 0

    def step(self) -> None:
        scenario = self.scenario
        for name in [name for name, end in self.ends.items() if end <= scenario.now]:
            del self.ends[name]
            scenario.exit(name)
        for _ in range(2):
            scenario.launch(f"small{self.launched:05d}", cpu=self.cpu)
            self.launched += 1
        for worker in sorted(scenario.state.workers):
            scenario.sync(worker)
        for placed in scenario.wait(1).placed:
            if placed.job_id.startswith("small"):
                scenario.start(placed.job_id)
                self.ends[placed.job_id] = scenario.now + self.duration(int(placed.job_id[5:]))

    def until_placed(self, name: str, *, within: int) -> None:
        """Goes on until the job is placed, for at most so many seconds."""
        for _ in range(within):
            self.step()
            if self.scenario.states(name)[0] is not TaskState.PENDING:
                return
        pytest.fail(f"{name} still waits after {within} s: {self.scenario.reason(name)}")


def equal(_: int) -> float:
    return 5.0


def filled(scenario: Scenario, *, workers: int, duration: Callable[[int], float]) -> Stream:
    for index in range(workers):
        scenario.worker(f"w{index}", cpu=4)
    stream = Stream(scenario, duration)
    for _ in range(30):
        stream.step()
    assert len(stream.ends) == 4 * workers, "the workers are full"
    return stream


@pytest.mark.parametrize(
    "duration",
    [equal, lambda n: 1.0 + n % 9, lambda n: 40.0 if n % 7 == 0 else 6.0],
    ids=["equal", "mixed", "some long"],
)
def test_a_gang_is_not_starved_by_a_stream_of_small_jobs(scenario: Scenario, duration: Callable[[int], float]) -> None:
    stream = filled(scenario, workers=2, duration=duration)
    scenario.launch("gang", tasks=2, cpu=4)

    stream.until_placed("gang", within=100)


def test_a_gang_is_placed_beside_a_job_that_runs_for_days(scenario: Scenario) -> None:
    scenario.worker("w0", cpu=4)
    scenario.launch("training", cpu=1)
    scenario.run("training")
    stream = filled_beside(scenario)
    scenario.launch("gang", tasks=2, cpu=4)

    stream.until_placed("gang", within=20)
    assert {row.worker_id for row in scenario.all_attempts("gang")} == {"w1", "w2"}


def filled_beside(scenario: Scenario) -> Stream:
    for name in ("w1", "w2"):
        scenario.worker(name, cpu=4)
    stream = Stream(scenario, equal)
    for _ in range(60):
        stream.step()
    return stream


def test_a_wrong_guess_is_given_up_in_the_end(scenario: Scenario) -> None:
    # The youngest task turns out to run for ever: the gang has to be waited for elsewhere.
    scenario.worker("w0", cpu=4)
    stream = Stream(scenario, equal)
    scenario.worker("w1", cpu=4)
    for _ in range(20):
        stream.step()
    victim = max(stream.ends, key=lambda name: (stream.ends[name], name))
    where = scenario.attempt(victim).worker_id
    stream.ends[victim] = float("inf")
    scenario.launch("gang", tasks=1, cpu=4)

    stream.until_placed("gang", within=200)
    assert scenario.attempt("gang").worker_id != where


def test_a_single_large_task_is_not_starved(scenario: Scenario) -> None:
    stream = filled(scenario, workers=3, duration=lambda n: 3.0 + n % 5)
    scenario.launch("big", cpu=4)

    stream.until_placed("big", within=20)


def test_two_waiting_gangs_are_served_in_turn(scenario: Scenario) -> None:
    stream = filled(scenario, workers=2, duration=equal)
    scenario.launch("first", tasks=2, cpu=4)
    scenario.now += 1
    scenario.launch("second", tasks=2, cpu=4)
    stream.until_placed("first", within=60)
    assert scenario.states("second") == [TaskState.PENDING] * 2
    for task in (0, 1):
        scenario.start("first", task)
    scenario.exit("first", 0)
    scenario.exit("first", 1)

    stream.until_placed("second", within=60)


def test_small_jobs_go_on_beside_what_is_held(scenario: Scenario) -> None:
    stream = filled(scenario, workers=3, duration=equal)
    scenario.launch("gang", tasks=1, cpu=4)
    before = stream.launched - len(stream.ends)
    stream.step()
    held = scenario.state.hold
    assert isinstance(held, Hold)
    for _ in range(5):
        stream.step()

    assert stream.launched - len(stream.ends) > before
    assert {scenario.attempt(name).worker_id for name in stream.ends} - set(held.places)


# What is held


def two_busy_workers(scenario: Scenario) -> None:
    """w0's job is older than w1's."""
    for index in range(2):
        scenario.worker(f"w{index}", cpu=2)
        scenario.launch(f"j{index}", cpu=2)
        scenario.run(f"j{index}")
        scenario.now += 10


def test_room_is_held_where_tasks_are_young(scenario: Scenario) -> None:
    two_busy_workers(scenario)
    scenario.launch("big", cpu=2)
    scenario.turn()

    assert scenario.state.hold == Hold(scenario.job("big").job_id, 0, (scenario.attempt("j1").worker_id,), START + 50)


def test_what_is_held_stays_held_until_its_time_is_over(scenario: Scenario) -> None:
    two_busy_workers(scenario)
    scenario.launch("big", cpu=2)
    held = scenario.turn().hold
    assert held is not None
    scenario.worker("w2", cpu=2)
    scenario.launch("j2", cpu=2, priority=2)
    scenario.run("j2")  # by now the youngest
    scenario.now = held.until - 0.1
    assert scenario.turn().hold == held
    scenario.now = held.until

    other = scenario.turn().hold
    assert other is not None
    assert other.places == ("w2",)


def test_the_next_look_is_due_when_what_is_held_is_given_up(scenario: Scenario) -> None:
    two_busy_workers(scenario)
    scenario.launch("big", cpu=2)
    decision = scenario.turn()

    assert decision.hold is not None
    assert decision.next_at == decision.hold.until


def test_what_is_held_is_chosen_anew_when_a_worker_is_lost(scenario: Scenario) -> None:
    two_busy_workers(scenario)
    scenario.launch("big", cpu=2)
    scenario.turn()
    scenario.machine("m", "w1", cpu=2)
    scenario.wait(0)
    held = scenario.turn().hold
    assert held is not None
    scenario.now += 400
    scenario.sync("w0")
    held = scenario.wait(0).hold

    assert held is not None
    assert held.places == ("w0",)


def test_nothing_is_held_for_a_gang_that_could_not_run_here_even_alone(scenario: Scenario) -> None:
    scenario.worker("w", cpu=2)
    scenario.launch("huge", tasks=3)
    scenario.launch("small")

    assert scenario.turn().hold is None
    assert scenario.states("small") == [TaskState.ASSIGNED]


def test_the_first_gang_that_could_run_is_held_for_although_an_older_one_cannot(scenario: Scenario) -> None:
    two_busy_workers(scenario)
    scenario.launch("huge", tasks=9)
    scenario.now += 1
    scenario.launch("big", cpu=2)
    held = scenario.turn().hold

    assert held is not None
    assert held.job_id == "big"


def test_what_was_placed_in_the_same_turn_counts_as_room_to_come(scenario: Scenario) -> None:
    scenario.worker("w", cpu=2)
    scenario.launch("small")
    scenario.now += 1
    scenario.launch("gang", tasks=2)
    scenario.now += 1
    scenario.launch("late")
    held = scenario.turn().hold

    assert held is not None
    assert held.job_id == "gang"
    assert scenario.states("late") == [TaskState.PENDING]


def test_room_that_is_there_is_held_before_room_that_may_come(scenario: Scenario) -> None:
    scenario.worker("w0", cpu=2)
    scenario.worker("w1", cpu=2)
    scenario.launch("a", cpu=2)
    scenario.launch("gang", tasks=2, cpu=2)
    held = scenario.turn().hold

    assert held is not None
    assert sorted(held.places) == ["w0", "w1"]


def test_a_slice_is_held_whole(scenario: Scenario) -> None:
    variant = "v5litepod-16"
    for name in ("s0", "s1"):
        scenario.machine(name, *(f"h{i}-{name}" for i in range(4)), tpu_variant=variant)
    for name in ("a", "b"):
        scenario.launch(name, tasks=4, tpu_variant=variant, slice_hosts=4)
        scenario.run(name)
    scenario.launch("c", tasks=4, tpu_variant=variant, slice_hosts=4)
    held = scenario.turn().hold

    assert held is not None
    assert {place[3:] for place in held.places} in ({"s0"}, {"s1"})
    assert len(set(held.places)) == 4
