"""What the controller's pure core costs: decision turns, events, and the pass of time. Prints a table; asserts nothing.

python benchmarks/core.py [--repeat 5]
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from fluster.cluster.controller.core.events import (
    AllocationObserved,
    AllocationWanted,
    Exit,
    JobsSubmitted,
    NewJob,
    Observed,
    TimePassed,
    WorkerRegistered,
    WorkerSynced,
)
from fluster.cluster.controller.core.index import drop_finished
from fluster.cluster.controller.core.reconcile import intents
from fluster.cluster.controller.core.rows import (
    AllocationStatus,
    AttemptState,
    Changes,
    JobRow,
    Quota,
    RequestRow,
    Resources,
    Retry,
    UserRow,
)
from fluster.cluster.controller.core.schedule import Decision, schedule
from fluster.cluster.controller.core.state import State
from fluster.cluster.controller.core.transitions import apply
from fluster.cluster.ids import AllocationId, JobId, Namespace, WorkerId

GB = 10**9
ONE_CPU = Resources(1000, 2 * GB)


def cluster(workers: int, *, allocations: bool = False) -> State:
    """Workers of 8 cpu, each on an allocation of its own if asked for."""
    state = State()
    for index in range(workers):
        allocation = AllocationId(f"a{index}" if allocations else "")
        if allocations:
            apply(state, AllocationWanted(allocation, "cloud", Resources(8000)), 0.0)
            apply(state, AllocationObserved(allocation, AllocationStatus.READY), 0.0)
        worker = WorkerRegistered(
            worker_id=WorkerId(f"w{index:05d}"),
            credential_sha256="",
            incarnation="i",
            address="",
            advertise_host="",
            host_id="",
            allocation_id=allocation,
            resources=Resources(8000, 64 * GB, 1000 * GB, slots=64),
            cgroup="v2",
            joined_by="",
        )
        apply(state, worker, 0.0)
    return state


def job(index: int, *, tasks: int = 1, gang: bool = True, resources: Resources = ONE_CPU, user: str = "") -> NewJob:
    """One that was submitted the later the higher its index."""
    row = JobRow(
        job_id=JobId(f"j{index:06d}"),
        name="bench",
        namespace=Namespace("default"),
        owner="admin",
        parent=None,
        depth=0,
        priority=1,
        num_tasks=tasks,
        gang=gang,
        resources=resources,
        slice_hosts=0,
        retry=Retry(),
        timeout_s=None,
        scheduling_timeout_s=None,
        ports=(),
        submitted_at=index / 1000,
        user=user,
    )
    return NewJob(row, b"")


def submit(state: State, jobs: list[NewJob]) -> None:
    apply(state, JobsSubmitted(tuple(jobs), RequestRow("admin", "r", "LaunchJobs", "", "", 0.0)), 0.0)


def mixed(tasks: int, *, users: int = 1) -> list[NewJob]:
    """Single tasks, and in twenty jobs a gang of eight; of several users in turn."""
    jobs: list[NewJob] = []
    left = tasks
    while left:
        user = f"u{len(jobs) % users}" if users > 1 else ""
        jobs.append(job(len(jobs), tasks=min(left, 8 if len(jobs) % 20 == 0 else 1), user=user))
        left -= jobs[-1].row.num_tasks
    return jobs


def place(state: State, now: float) -> Decision:
    """A whole turn: decide, then fold the decision in."""
    decision = schedule(state, now)
    for placed in decision.placed:
        apply(state, placed, now)
    state.hold = decision.hold
    return decision


def observed(state: State, worker: str, *, how: Exit | None = None) -> WorkerSynced:
    """All that a worker holds, running or just ended."""
    held = state.held.get(WorkerId(worker), {}).values()
    seen = tuple(Observed(attempt.uid, AttemptState.RUNNING, 1.0, how, master_port=1) for attempt in held)
    return WorkerSynced(WorkerId(worker), "i", seen)


# What is measured: each gives a function that is timed, or several in a row


@dataclass(frozen=True)
class Timed:
    """One figure. `inner`: runs timed together, for what takes microseconds. `once`: it alters the state."""

    what: str
    run: Callable[[], object]
    inner: int = 1
    once: bool = False


def full(users: int = 0) -> State:
    """All workers full, of one user or of several."""
    state = cluster(1000)
    names = [f"u{number}" for number in range(users)] or [""]
    submit(state, [job(900_000 + i, tasks=8000 // len(names), gang=False, user=u) for i, u in enumerate(names)])
    place(state, 1.0)
    return state


def singles(*, users: int = 0, sizes: str = "one", priorities: int = 1) -> list[NewJob]:
    """Ten thousand jobs of one task, each with a row of what it needs of its own, as jobs that were launched have."""
    chance = random.Random(1)
    needs: dict[str, Callable[[int], Resources]] = {
        "one": lambda _: Resources(800, 2 * GB),
        "rising": lambda i: Resources(800, 2 * GB + i),
        "falling": lambda i: Resources(800, 4 * GB - 100 * i),
        "any": lambda _: Resources(chance.randint(100, 1400), chance.randint(GB // 10, 8 * GB)),
    }
    jobs = [job(i, resources=needs[sizes](i), user=f"u{i % users}" if users else "") for i in range(10_000)]
    return [replace(each, row=replace(each.row, priority=i * 7 % priorities)) for i, each in enumerate(jobs)]


def room_and_none(what: str, jobs: Callable[[], list[NewJob]], users: int = 0) -> Iterator[Timed]:
    """The same tasks on workers that are free, and on full ones."""
    for state, where in ((cluster(1000), "free"), (full(users), "full")):
        submit(state, jobs())
        state.hold = schedule(state, 19.0).hold
        yield Timed(f"schedule: {what}, workers {where}", partial(schedule, state, 20.0))


def decisions() -> Iterator[Timed]:
    """Decision turns with 10,000 tasks on 1,000 workers in many shapes."""
    yield from room_and_none("10,000 jobs of one task", singles)
    yield from room_and_none("the same of 100 users", lambda: singles(users=100), 100)
    yield from room_and_none("the same of 3 priorities", lambda: singles(priorities=3))
    for sizes in ("rising", "falling", "any"):
        yield from room_and_none(f"the same of 10,000 sizes ({sizes})", partial(singles, sizes=sizes))
    small = Resources(800, 2 * GB)
    yield from room_and_none("one job of 10,000", lambda: [job(0, tasks=10_000, gang=False, resources=small)])
    yield from room_and_none("1,250 gangs of 8", lambda: [job(i, tasks=8, resources=small) for i in range(1250)])
    yield from room_and_none("5,000 gangs of 2", lambda: [job(i, tasks=2, resources=small) for i in range(5000)])
    yield from room_and_none("gangs of 8 and single tasks", lambda: mixed(10_000))
    yield from room_and_none("the same of 100 users", lambda: mixed(10_000, users=100), 100)

    started = cluster(1000)
    submit(started, singles())
    yield Timed("schedule and apply: 10,000 tasks placed in one turn", lambda: place(started, 20.0), once=True)

    bounded = cluster(1000)
    for number in range(100):
        bounded.users[f"u{number}"] = UserRow(f"u{number}", Quota(cpu_milli=40_000), 0.0)
    submit(bounded, mixed(10_000, users=100))
    place(bounded, 20.0)
    yield Timed("schedule: 4,000 of 100 users run, 6,000 wait for quotas", lambda: schedule(bounded, 21.0))

    huge = cluster(1000)
    submit(huge, [job(i, tasks=2, resources=Resources(9000 + i)) for i in range(5_000)])
    yield Timed("schedule: 5,000 gangs of 5,000 sizes that fit nowhere", lambda: schedule(huge, 20.0))


def quiet() -> Iterator[Timed]:
    """What nothing new costs."""
    state = cluster(5000, allocations=True)
    submit(state, [job(index) for index in range(10_000)])
    place(state, 20.0)
    workers = sorted(state.workers)
    for worker in workers:
        apply(state, observed(state, worker), 21.0)
    syncs = [observed(state, worker) for worker in workers]
    yield Timed("a worker of 8 tasks tells nothing new", lambda: apply(state, syncs[0], 22.0), inner=1000)
    yield Timed("a worker without tasks tells nothing new", lambda: apply(state, syncs[-1], 22.0), inner=1000)
    yield Timed("time passes: 5,000 workers, 10,000 jobs", lambda: apply(state, TimePassed(), 22.0))
    yield Timed("what is to be decided about 5,000 machines", lambda: intents(state, 22.0))
    yield Timed("schedule: nothing waits", lambda: schedule(state, 22.0))


def lives() -> Iterator[Timed]:
    """Whole lives of jobs, folded only."""
    state = cluster(100)
    done = Exit(0, None, "", 2.0)

    def trivial() -> None:
        for index in range(800):
            submit(state, [job(index)])
        place(state, 1.0)
        for worker in sorted(state.held):
            changes = Changes()
            apply(state, observed(state, worker, how=done), 2.0, changes)
            drop_finished(state, changes.touched_jobs)

    yield Timed("800 trivial jobs: launched, placed, run, ended", trivial)

    def wide(gang: bool) -> Callable[[], None]:
        def run() -> None:
            state = cluster(250)
            submit(state, [job(0, tasks=2000, gang=gang)])
            place(state, 1.0)
            for worker in sorted(state.held):
                apply(state, observed(state, worker, how=done), 2.0)

        return run

    yield Timed("a gang of 2,000 tasks: placed, run, ended", wide(True))
    yield Timed("2,000 independent tasks: placed, run, ended", wide(False))


def measure(timed: Timed, repeat: int) -> tuple[float, float]:
    """Seconds of processor time of one run: median and best. Nothing here waits, and others may use the machine."""
    taken = []
    for _ in range(1 if timed.once else repeat):
        gc.collect()
        start = time.process_time()
        for _ in range(timed.inner):
            timed.run()
        taken.append((time.process_time() - start) / timed.inner)
    return statistics.median(taken), min(taken)


def main() -> None:
    """Prints what each costs in processor time."""
    parser = argparse.ArgumentParser(description="Times the controller's pure core.")
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    gc.set_threshold(10_000)  # as the daemon has it
    print(f"{'processor time':66}{'median':>10}{'best':>10}")
    for group in (decisions, quiet, lives):
        for timed in group():
            unit, scale = ("us", 1e6) if timed.inner > 1 else ("ms", 1e3)
            median, best = measure(timed, repeat)
            print(f"{timed.what:66}{median * scale:10.2f}{best * scale:10.2f} {unit}")


if __name__ == "__main__":
    main()
