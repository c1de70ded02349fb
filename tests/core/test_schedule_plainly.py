"""The scheduler decides what one would who looks at every worker for every gang: its shortcuts change nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from tests.core.scenario import GB, Scenario

from fluster.cluster.controller.core.blocks import Blocks
from fluster.cluster.controller.core.capacity import Slot, Use, fits, room, slice_of, times
from fluster.cluster.controller.core.events import GangPlaced, Member
from fluster.cluster.controller.core.hold import Hold, choose
from fluster.cluster.controller.core.outline import Outline
from fluster.cluster.controller.core.reasons import reason
from fluster.cluster.controller.core.rows import JobRow, Resources, Retry, WorkerRow
from fluster.cluster.controller.core.schedule import schedule
from fluster.cluster.controller.core.shares import use_of
from fluster.cluster.controller.core.state import State
from fluster.cluster.controller.core.waits import Waiting
from fluster.cluster.ids import AllocationId, JobId, WorkerId
from fluster.cluster.states import TaskState


@dataclass
class Plain:
    """What `schedule` places, holds and says."""

    placed: list[GangPlaced] = field(default_factory=list)
    hold: Hold | None = None
    waiting: dict[JobId, Waiting] = field(default_factory=dict)


def plainly(state: State, now: float) -> Plain:
    slots = {}
    for worker in state.ready_workers().workers:
        left = state.room(worker)
        slots[worker.worker_id] = Slot(worker, left, left)
    uses = {job.user: use_of(state, job.user) for job in state.jobs.values()}
    plain, holder, refused = Plain(), 0, list[tuple[JobRow, int]]()
    waiting = list(gangs(state))
    held = state.hold if isinstance(state.hold, Hold) else None
    while waiting:
        job, tasks = gang = min(waiting, key=lambda gang: order(gang, waiting, uses, slots, held))
        waiting.remove(gang)
        if (seconds := state.tasks[job.job_id][tasks[0]].not_before - now) > 0:
            plain.waiting.setdefault(job.job_id, Waiting(tried_again(seconds), would_fit=True, position=None))
            continue
        if exceeds(state, job, len(tasks), uses[job.user]):
            plain.waiting.setdefault(job.job_id, over_quota(state, job, len(tasks)))
            continue
        found = whole_slices(list(slots.values()), job) if job.slice_hosts else one_by_one(slots, job, len(tasks))
        if len(found) == len(tasks):
            for slot in found:
                slot.take(job.resources)
            uses[job.user].add(job.resources, len(tasks))
            members = (Member(task, slot.worker.worker_id) for task, slot in zip(tasks, found, strict=True))
            plain.placed.append(GangPlaced(job.job_id, tuple(members)))
            continue
        refused.append((job, len(tasks)))
        if plain.hold is None:
            plain.hold = choose(state, slots, job, tasks, now)
            for worker_id in plain.hold.places if plain.hold else ():
                slots[worker_id].hold_back(job.resources)
            holder = len(refused)
    outline = Everybody(list(slots.values()))
    for position, (job, count) in enumerate(refused, 1):
        why = reason(outline, job, count)
        behind = f"; behind {plain.hold.job_id} ({plain.hold.job_id})" if plain.hold and position > holder else ""
        text = why.text + (behind if why.would_fit else "")
        plain.waiting.setdefault(job.job_id, Waiting(text, why.would_fit, position))
    return plain


class Everybody(Outline):
    """Each worker is looked at for each word."""

    @property
    def best(self) -> list[Slot]:
        return self.workers

    def in_all(self, need: Resources) -> int:
        return sum(times(need, slot.worker.resources) for slot in self.workers)


def tried_again(seconds: float) -> str:
    return f"tried again in {seconds:.1f} s after its last attempt ended"


def over_quota(state: State, job: JobRow, count: int) -> Waiting:
    quota, need = state.quota(job.user), job.resources
    pairs = (quota.cpu_milli, need.cpu_milli), (quota.memory_bytes, need.memory_bytes), (quota.gpu, need.gpu)
    would_fit = all(limit is None or count * each <= limit for limit, each in pairs)
    return Waiting(f"the quota of user {job.user}", would_fit, position=None)


def gangs(state: State) -> Iterator[tuple[JobRow, range]]:
    for job in state.jobs.values():
        for head in state.gang_heads(job):
            task = state.tasks[job.job_id][head]
            if job.stop_at is None and task.state is TaskState.PENDING:
                yield job, state.gang_tasks(job, head)


def order(
    gang: tuple[JobRow, range],
    waiting: list[tuple[JobRow, range]],
    uses: dict[str, Use],
    slots: dict[WorkerId, Slot],
    held: Hold | None,
) -> tuple[int, float, float, str, int]:
    """Priority, then who uses least, but first whose gang room is held for, then age."""
    job, tasks = gang
    holders = {
        j.user for j, t in waiting if held and (j.job_id, t[0], j.priority) == (held.job_id, held.head, job.priority)
    }
    share = -1.0 if job.user in holders else share_of(uses[job.user], slots)
    return -job.priority, share, job.submitted_at, job.job_id, tasks[0]


def share_of(use: Use, slots: dict[WorkerId, Slot]) -> float:
    have = [slot.worker.resources for slot in slots.values()]
    cpu, memory, gpu = (
        sum(each.cpu_milli for each in have),
        sum(each.memory_bytes for each in have),
        sum(each.gpu for each in have),
    )
    return max(use.cpu_milli * (1 / (cpu or 1)), use.memory_bytes * (1 / (memory or 1)), use.gpu * (1 / (gpu or 1)))


def exceeds(state: State, job: JobRow, count: int, use: Use) -> bool:
    quota, need = state.quota(job.user), job.resources
    pairs = (
        (quota.cpu_milli, use.cpu_milli + count * need.cpu_milli),
        (quota.memory_bytes, use.memory_bytes + count * need.memory_bytes),
        (quota.gpu, use.gpu + count * need.gpu),
    )
    return any(limit is not None and there > limit for limit, there in pairs)


def one_by_one(slots: dict[WorkerId, Slot], job: JobRow, count: int) -> list[Slot]:
    """The first workers that have room for one task more, each as often as it has."""
    found: list[Slot] = []
    for slot in slots.values():
        free = slot.free.copy()
        while len(found) < count and fits(job.resources, free):
            free.take(job.resources)
            found.append(slot)
    return found


def whole_slices(slots: list[Slot], job: JobRow) -> list[Slot]:
    found: list[Slot] = []
    for name in dict.fromkeys(slice_of(slot.worker) for slot in slots):
        hosts = [slot for slot in slots if slice_of(slot.worker) == name and fits(job.resources, slot.free)]
        if len(hosts) == job.slice_hosts and len(found) < job.num_tasks:
            found += hosts
    return found


def somewhere(scenario: Scenario, chance: random.Random) -> None:
    """Workers of several kinds."""
    for index in range(chance.randint(1, 8)):
        gpu = chance.choice([0, 0, 2])
        scenario.worker(
            f"w{index}",
            cpu=chance.randint(1, 6),
            memory=chance.randint(2, 12) * GB,
            gpu=gpu,
            gpu_variant=chance.choice(["A100", "H100"]) if gpu else "",
            slots=chance.choice([2, 10]),
        )
    for index in range(chance.randint(0, 2)):
        scenario.machine(f"s{index}", f"t{index}a", f"t{index}b", tpu_variant="v5litepod-8")


def something(scenario: Scenario, chance: random.Random, name: str, *, several: bool) -> None:
    """A job of any shape."""
    if chance.random() < 0.15:
        slices = chance.randint(1, 2)
        scenario.launch(name, tasks=2 * slices, tpu_variant="v5litepod-8", slice_hosts=2)
        return
    scenario.launch(
        name,
        tasks=chance.choice([1, 1, 1, 2, 3, 5]),
        gang=chance.random() < 0.8,
        cpu=chance.choice([0.5, 1, 2, 4, 7]),
        memory=chance.randint(1, 8) * GB,
        gpu=chance.choice([0, 0, 0, 1, 2]),
        gpu_variant=chance.choice(["auto", "A100", "h100"]),
        priority=chance.randrange(3),
        retry=Retry(max_failures=1, backoff_s=chance.choice([0, 5, 30])),
        user=chance.choice(["", "alice", "bob"]) if several else "",
    )


@pytest.mark.parametrize("seed", range(40))
def test_shortcuts_change_nothing(seed: int) -> None:
    chance = random.Random(seed)
    scenario = Scenario()
    somewhere(scenario, chance)
    several = seed % 2 == 1
    if several:
        scenario.user("alice", cpu_milli=chance.choice([None, 6000]), memory_bytes=chance.choice([None, 12 * GB]))
        scenario.user("bob", gpu=chance.choice([None, 0, 1]))
    for round_ in range(6):
        for index in range(chance.randint(1, 12)):
            something(scenario, chance, f"j{round_}-{index}", several=several)
            scenario.now += chance.choice([0, 1])
        decision = schedule(scenario.state, scenario.now)
        plain = plainly(scenario.state, scenario.now)
        assert (decision.placed, decision.hold) == (plain.placed, plain.hold)
        scenario.turn()  # what is told afterwards is told of the pass
        assert {job_id: shortened(waiting) for job_id, waiting in decision.waiting.items()} == plain.waiting
        running = [attempt for attempt in scenario.state.attempts.values() if attempt.state == "assigned"]
        for attempt in chance.sample(running, k=len(running) // 2):
            if attempt.job_id in scenario.state.jobs:
                scenario.exit(attempt.job_id, attempt.task, code=chance.choice([0, 0, 1]))
        scenario.now += chance.choice([1, 20, 40])


def shortened(waiting: Waiting) -> Waiting:
    """Without the numbers of quotas, which are the users' of that moment."""
    quota = waiting.position is None and waiting.reason.startswith("the quota")
    return replace(waiting, reason=waiting.reason.partition(" is ")[0]) if quota else waiting


WORKER = WorkerRow(
    worker_id=WorkerId("w"),
    credential_sha256="",
    incarnation="",
    address="",
    advertise_host="",
    host_id="",
    allocation_id=AllocationId(""),
    resources=Resources(),
    cgroup="",
    joined_by="",
    registered_at=0.0,
)


def any_resources(chance: random.Random) -> Resources:
    gpu = chance.choice([0, 0, 1, 2])
    return Resources(
        chance.randint(1, 4),
        chance.randint(0, 3),
        chance.randint(0, 2),
        gpu,
        chance.randint(1, 2),
        chance.choice(["", "auto", "A100", "H100"]) if gpu else "",
        chance.choice(["", "", "v4-8", "v5p-8"]),
    )


@pytest.mark.parametrize("seed", range(20))
def test_blocks_find_the_first_worker_with_room_wherever_one_begins(seed: int) -> None:
    chance = random.Random(seed)
    rooms = [room(any_resources(chance)) for _ in range(chance.choice([0, 1, 5, 64, 65, 300]))]
    slots = [Slot(WORKER, left, left) for left in rooms]
    blocks = Blocks(slots)
    found = 0
    for _ in range(500):
        need = any_resources(chance)
        able = [index for index, slot in enumerate(slots) if fits(need, slot.free)]
        assert blocks.may_hold(need) or not able
        start = chance.choice([0, chance.randrange(len(slots) + 1)])
        first = next((index for index in able if index >= start), len(slots))
        assert blocks.first(need, start) == first
        if first < len(slots) and chance.random() < 0.7:
            slots[first].take(need)
            found += 1
    assert found > 10 or len(slots) < 64


def test_a_need_that_fits_nowhere_is_known_by_one_look_once_another_was_looked_for() -> None:
    slots = [Slot(WORKER, left, left) for left in (room(Resources(500 + index % 7, 4)) for index in range(1000))]
    blocks = Blocks(slots)
    assert blocks.may_hold(Resources(600, 4))
    assert blocks.first(Resources(600, 4), 0) == 1000
    assert not blocks.may_hold(Resources(507, 1))
    assert blocks.may_hold(Resources(506, 4))
