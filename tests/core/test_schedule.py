import pytest
from tests.core.scenario import GB, Scenario

from fluster.cluster.controller.core.events import AllocationObserved, AllocationUnwanted, AllocationWanted
from fluster.cluster.controller.core.rows import AllocationStatus, Resources
from fluster.cluster.controller.core.schedule import schedule
from fluster.cluster.controller.core.waits import Waiting
from fluster.cluster.ids import AllocationId, JobId
from fluster.cluster.states import TaskState


def where(scenario: Scenario, name: str) -> list[str]:
    """The worker of each task; empty where it waits."""
    scenario.turn()
    tasks = scenario.tasks(name)
    return ["" if task.state is TaskState.PENDING else scenario.attempt(name, task.index).worker_id for task in tasks]


def waiting(scenario: Scenario, name: str) -> Waiting:
    return scenario.turn().waiting[JobId(name)]


# Order


def test_older_jobs_go_first(scenario: Scenario) -> None:
    scenario.worker("w", cpu=1)
    scenario.launch("z")
    scenario.now += 1
    scenario.launch("a")

    assert (where(scenario, "z"), where(scenario, "a")) == (["w"], [""])


def test_jobs_of_one_moment_go_by_their_ids(scenario: Scenario) -> None:
    scenario.worker("w", cpu=1)
    scenario.launch("b")
    scenario.launch("a")

    assert (where(scenario, "a"), where(scenario, "b")) == (["w"], [""])


def test_a_higher_priority_goes_before_age(scenario: Scenario) -> None:
    scenario.worker("w", cpu=2)
    for name, priority in (("low", 0), ("normal", 1), ("high", 2)):
        scenario.launch(name, priority=priority)
        scenario.now += 1

    assert (where(scenario, "high"), where(scenario, "normal"), where(scenario, "low")) == (["w"], ["w"], [""])


def test_a_job_that_fits_beside_one_that_waits_goes_ahead(scenario: Scenario) -> None:
    scenario.worker("small", cpu=1)
    scenario.worker("large", cpu=4)
    scenario.launch("old", cpu=4)
    scenario.run("old")
    scenario.launch("big", cpu=4)
    scenario.launch("little", cpu=1)

    assert where(scenario, "little") == ["small"]


def test_nothing_is_decided_when_nothing_waits(scenario: Scenario) -> None:
    scenario.worker("w")

    assert scenario.turn().placed == []
    assert scenario.turn().next_at is None


def test_deciding_alters_nothing_and_gives_the_same_each_time(scenario: Scenario) -> None:
    scenario.worker("w0", cpu=2)
    scenario.worker("w1", cpu=2)
    for name in "abc":
        scenario.launch(name, tasks=2)

    assert schedule(scenario.state, scenario.now) == schedule(scenario.state, scenario.now)
    assert scenario.state.attempts == {}


# What fits


@pytest.mark.parametrize(
    ("need", "reason"),
    [
        ({"cpu": 3}, "3 cpu needed, 2 free"),
        ({"memory": 10 * GB}, "10 GB memory needed, 8 GB free"),
        ({"gpu": 2}, "2 gpu needed, 1 free"),
        ({"cpu": 2.5, "gpu": 2}, "2.5 cpu needed, 2 free, 2 gpu needed, 1 free"),
    ],
)
def test_a_job_waits_for_whatever_is_short_and_is_told_the_numbers(
    scenario: Scenario, need: dict[str, float], reason: str
) -> None:
    scenario.worker("w", cpu=4, memory=16 * GB, gpu=2, gpu_variant="a100")
    scenario.launch("a", cpu=2, memory=8 * GB, gpu=1)
    scenario.run("a")
    scenario.launch("b", **need)  # type: ignore[arg-type]

    assert waiting(scenario, "b") == Waiting(reason, True, 1)


def test_a_worker_runs_only_so_many_tasks_at_once(scenario: Scenario) -> None:
    scenario.worker("w", slots=1)
    scenario.launch("a")
    scenario.launch("b")

    assert where(scenario, "b") == [""]
    assert scenario.reason("b") == "a place for one more task needed, 0 free"


def test_the_free_room_named_is_that_of_the_nearest_worker(scenario: Scenario) -> None:
    scenario.worker("w0", cpu=4)
    scenario.worker("w1", cpu=4)
    scenario.launch("a", cpu=3)
    scenario.launch("b", cpu=1)
    scenario.launch("c", cpu=2)
    assert where(scenario, "c") == ["w1"]
    scenario.launch("d", cpu=4)

    assert waiting(scenario, "d").reason == "4 cpu needed, 2 free"


def test_the_free_room_named_is_that_of_a_worker_that_could_hold_the_task(scenario: Scenario) -> None:
    scenario.worker("small", cpu=2)
    scenario.worker("large", cpu=4)
    scenario.launch("a", cpu=3)
    scenario.run("a")
    scenario.launch("b", cpu=4)

    assert waiting(scenario, "b") == Waiting("4 cpu needed, 1 free", True, 1)


def test_a_demand_no_machine_can_meet_says_what_the_largest_has(scenario: Scenario) -> None:
    scenario.worker("w0", cpu=4)
    scenario.worker("w1", cpu=8, memory=4 * GB)
    scenario.launch("a", cpu=16)

    assert waiting(scenario, "a") == Waiting(
        "no worker can hold one task: 16 cpu needed, 8 on the largest worker", False, 1
    )


def test_a_gang_too_large_for_all_workers_together_says_how_many_would_fit(scenario: Scenario) -> None:
    scenario.worker("w0", cpu=4)
    scenario.worker("w1", cpu=2)
    scenario.launch("g", tasks=5, cpu=2, memory=2 * GB)

    assert waiting(scenario, "g") == Waiting(
        "5 tasks of 2 cpu, 2 GB memory at once needed, room for 3 on all workers together", False, 1
    )


def test_a_gang_that_waits_says_how_many_of_it_would_fit_now(scenario: Scenario) -> None:
    scenario.worker("w", cpu=4)
    scenario.launch("a")
    scenario.run("a")
    scenario.launch("g", tasks=4)

    assert waiting(scenario, "g") == Waiting("4 tasks of 1 cpu, 1 GB memory at once needed, room for 3 now", True, 1)


def test_a_job_behind_another_says_behind_whom_and_its_place_in_the_queue(scenario: Scenario) -> None:
    scenario.worker("w", cpu=4)
    scenario.launch("a", cpu=2)
    scenario.run("a")
    scenario.launch("b", cpu=4)
    scenario.now += 1
    scenario.launch("c", cpu=3)
    scenario.now += 1
    scenario.launch("d", cpu=1)

    assert waiting(scenario, "b") == Waiting("4 cpu needed, 2 free", True, 1)
    assert waiting(scenario, "c") == Waiting("3 cpu needed, 2 free; behind b (b)", True, 2)
    assert waiting(scenario, "d") == Waiting(
        "1 cpu, 1 GB memory needed and there, but held back; behind b (b)", True, 3
    )


def test_a_gang_whose_room_is_held_back_says_so(scenario: Scenario) -> None:
    scenario.worker("w", cpu=4)
    scenario.launch("a", cpu=2)
    scenario.run("a")
    scenario.launch("b", cpu=4)
    scenario.now += 1
    scenario.launch("g", tasks=2)

    assert waiting(scenario, "g").reason == (
        "2 tasks of 1 cpu, 1 GB memory at once needed, room for 2 now, but held back; behind b (b)"
    )


def test_a_job_that_can_never_run_here_is_behind_nobody(scenario: Scenario) -> None:
    scenario.worker("w", cpu=2)
    scenario.launch("a", cpu=2)
    scenario.run("a")
    scenario.launch("b", cpu=2)
    scenario.launch("huge", cpu=64)

    assert waiting(scenario, "huge").reason == "no worker can hold one task: 64 cpu needed, 2 on the largest worker"


def test_without_workers_the_reason_says_so(scenario: Scenario) -> None:
    scenario.launch("a")
    assert waiting(scenario, "a") == Waiting("no worker has joined this cluster", False, 1)


def test_while_machines_start_the_reason_says_so(scenario: Scenario) -> None:
    scenario.apply(AllocationWanted(AllocationId("m"), "cloud", Resources(1)))
    scenario.apply(AllocationWanted(AllocationId("n"), "cloud", Resources(1)))
    scenario.apply(AllocationObserved(AllocationId("n"), AllocationStatus.READY))
    scenario.launch("a")
    assert waiting(scenario, "a").reason == "no worker is ready yet: 2 starting"

    scenario.worker("w", allocation="n")
    scenario.apply(AllocationUnwanted(AllocationId("n"), "test"))
    assert waiting(scenario, "a").reason == "no worker is ready yet: 1 starting"


def test_numbers_are_those_that_the_turn_leaves_behind(scenario: Scenario) -> None:
    scenario.worker("w", cpu=4)
    scenario.launch("huge", cpu=64)
    scenario.launch("a", cpu=3)
    scenario.launch("b", cpu=2)

    assert waiting(scenario, "b").reason == "2 cpu needed, 1 free"


# Devices


def test_a_gpu_job_goes_to_a_worker_with_that_gpu(scenario: Scenario) -> None:
    scenario.worker("w0", cpu=8, gpu=4, gpu_variant="A100")
    scenario.worker("w1", cpu=8, gpu=4, gpu_variant="H100")
    scenario.launch("a", gpu=1, gpu_variant="h100")
    scenario.launch("b", gpu=1, gpu_variant="auto")

    assert (where(scenario, "a"), where(scenario, "b")) == (["w1"], ["w0"])


def test_a_gpu_of_another_model_will_not_do(scenario: Scenario) -> None:
    scenario.worker("w0", gpu=4, gpu_variant="A100")
    scenario.worker("w1")
    scenario.launch("a", gpu=1, gpu_variant="H100")

    assert waiting(scenario, "a").reason == "no worker can hold one task: gpu H100 needed, A100 on the largest worker"


def test_gpus_are_counted(scenario: Scenario) -> None:
    scenario.worker("w", cpu=8, gpu=4, gpu_variant="A100")
    for name in "abc":
        scenario.launch(name, gpu=2, gpu_variant="A100")

    assert where(scenario, "b") == ["w"]
    assert waiting(scenario, "c").reason == "2 gpu needed, 0 free"


V = "v5litepod-16"


def tpu_job(scenario: Scenario, name: str, *, slices: int = 1) -> None:
    scenario.launch(name, tasks=4 * slices, tpu_variant=V, slice_hosts=4)


def test_a_tpu_gang_gets_whole_slices_one_task_on_each_host(scenario: Scenario) -> None:
    scenario.machine("s0", *(f"s0h{i}" for i in range(4)), tpu_variant=V)
    scenario.machine("s1", *(f"s1h{i}" for i in range(4)), tpu_variant=V)
    tpu_job(scenario, "a", slices=2)

    assert where(scenario, "a") == [f"s{s}h{h}" for s in range(2) for h in range(4)]


def test_a_slice_is_not_shared(scenario: Scenario) -> None:
    scenario.machine("s0", *(f"s0h{i}" for i in range(4)), cpu=100, tpu_variant=V)
    tpu_job(scenario, "a")
    tpu_job(scenario, "b")

    assert len(set(where(scenario, "a"))) == 4
    assert where(scenario, "b") == [""] * 4
    assert waiting(scenario, "b") == Waiting(f"1 whole slice of {V} (4 hosts each) needed, 0 free", True, 1)


def test_a_slice_is_free_again_when_its_gang_has_ended(scenario: Scenario) -> None:
    scenario.machine("s0", *(f"s0h{i}" for i in range(4)), tpu_variant=V)
    tpu_job(scenario, "a")
    tpu_job(scenario, "b")
    scenario.run("a")
    for task in range(4):
        scenario.exit("a", task)

    assert "" not in where(scenario, "b")


def test_a_slice_of_which_a_host_is_missing_is_none(scenario: Scenario) -> None:
    scenario.machine("s0", *(f"s0h{i}" for i in range(3)), tpu_variant=V)
    scenario.machine("s1", "s1h0", tpu_variant=V)
    tpu_job(scenario, "a")

    assert where(scenario, "a") == [""] * 4
    assert waiting(scenario, "a") == Waiting(
        f"1 whole slice of {V} (4 hosts each) needed, 0 on all workers together", False, 1
    )


def test_more_slices_than_there_are_say_how_many_there_are(scenario: Scenario) -> None:
    scenario.machine("s0", *(f"s0h{i}" for i in range(4)), tpu_variant=V)
    tpu_job(scenario, "a", slices=2)

    assert waiting(scenario, "a") == Waiting(
        f"2 whole slices of {V} (4 hosts each) needed, 1 on all workers together", False, 1
    )


def test_a_slice_of_one_host_may_have_been_started_by_hand(scenario: Scenario) -> None:
    scenario.worker("w", tpu_variant="v5litepod-8")
    scenario.launch("a", tpu_variant="v5litepod-8", slice_hosts=1)

    assert where(scenario, "a") == ["w"]


def test_a_slice_of_another_kind_will_not_do(scenario: Scenario) -> None:
    scenario.machine("s0", "h0", tpu_variant="v4-8")
    scenario.launch("a", tpu_variant="v5litepod-8", slice_hosts=1)

    assert waiting(scenario, "a").reason == (
        "no worker can hold one task: tpu v5litepod-8 needed, v4-8 on the largest worker"
    )


def test_a_task_alone_gets_no_part_of_a_slice_that_is_taken(scenario: Scenario) -> None:
    scenario.machine("s0", *(f"s0h{i}" for i in range(4)), tpu_variant=V)
    scenario.launch("a", tasks=2, gang=False, tpu_variant=V, slice_hosts=4)

    assert where(scenario, "a") == ["s0h0", ""]
