"""What the jobs of a simulation do: each attempt's behaviour follows from the seed and its name alone."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from fluster.cluster.controller.core.rows import Quota, Resources, Retry
from fluster.testing.sim.config import Work

GB = 10**9
USERS = {
    "alice": Quota(cpu_milli=24_000, memory_bytes=48 * GB),  # what the largest gang takes: everything ends
    "bob": Quota(jobs=12),
    "carol": Quota(),
}
"""Beside the administrator: what each may have."""
_LONGEST_S = 900.0


@dataclass(frozen=True, slots=True)
class Program:
    """A job as its user wrote it. `seed` makes what its attempts do."""

    name: str
    seed: int
    work: Work
    tasks: int
    gang: bool
    priority: int
    resources: Resources
    retry: Retry
    run_s: float
    timeout_s: float | None = None
    scheduling_timeout_s: float | None = None
    generation: int = 0
    user: str = ""

    def behaviour(self, task: int, number: int) -> Behaviour:
        """What the attempt with this number does."""
        chance = random.Random(f"{self.seed}:{self.name}:{task}:{number}")
        draw = chance.random
        end = Behaviour(
            build_s=0.002 + 0.1 * draw() if draw() < 0.9 else 20 * draw(),
            run_s=min(_LONGEST_S, self.run_s * (0.5 + draw()) * (10 if draw() < 0.02 else 1)),
            stop_s=None if draw() < self.work.stubborn else 0.05 + 4 * draw() ** 3,
            child_at=0.5 * self.run_s * draw() if self.generation < 2 and draw() < self.work.children else None,
            endpoints=1 + (draw() < 0.3) if draw() < self.work.endpoints else 0,
        )
        if draw() >= self.work.failures:
            return end
        kind = draw()
        if kind < 0.05:
            return replace(end, build_fault="user")
        if kind < 0.15:
            return replace(end, build_fault="fluster")
        if kind < 0.35:
            return replace(end, exit_code=None, signal=11)
        if kind < 0.5:
            return replace(end, exit_code=None, signal=9, out_of_memory=True)
        return replace(end, exit_code=1)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One attempt.

    Attributes:
        build_s: Until its process starts.
        run_s: Until its process ends by itself.
        stop_s: Until its process ends once it got SIGTERM; `None`: it does not heed it.
        build_fault: "user" or "fluster": it never starts.
        child_at: When it launches a job of its own.
        endpoints: How many it registers when it starts.
    """

    build_s: float
    run_s: float
    stop_s: float | None
    child_at: float | None
    endpoints: int
    build_fault: str = ""
    exit_code: int | None = 0
    signal: int | None = None
    out_of_memory: bool = False

    def succeeds(self) -> bool:
        """Whether it would, left alone."""
        return self.exit_code == 0 and not self.build_fault


def draw_program(chance: random.Random, name: str, seed: int, work: Work, generation: int = 0) -> Program:
    """Some job."""
    draw = chance.random
    gang = draw() < 0.6
    tasks = 1 if draw() < 0.4 else chance.randint(2, 6)
    return Program(
        name=name,
        seed=seed,
        work=work,
        tasks=tasks,
        gang=gang,
        priority=chance.choice((0, 1, 1, 1, 2)),
        resources=Resources(
            chance.choice((250, 500, 1000, 1000, 2000, 4000)), chance.choice((GB, 2 * GB, 8 * GB)), slots=1
        ),
        retry=Retry(
            max_failures=chance.choice((0, 0, 1, 2)),
            max_preemptions=chance.choice((0, 1, 3, 100)),
            backoff_s=1.0,
            max_backoff_s=chance.choice((4.0, 30.0)),
        ),
        run_s=chance.expovariate(1 / work.run_s),
        timeout_s=chance.uniform(5, 200) if draw() < 0.1 else None,
        scheduling_timeout_s=chance.uniform(20, 300) if draw() < 0.15 else None,
        generation=generation,
        user=("", *USERS)[random.Random(f"{seed}:{name}:user").randrange(1 + len(USERS))],
    )
