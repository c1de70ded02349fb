"""What is really so, whoever knows of it: processes that run, how they ended, and what nobody may ever see."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from fluster.cluster.controller.core.rows import Resources
from fluster.cluster.ids import AttemptUid, JobId
from fluster.testing.sim.story import InvariantBroken, Story

if TYPE_CHECKING:
    from fluster.testing.sim.machines import Machine, Process

Task = tuple[JobId, int]


class Truth:
    """Told of each process that begins, ends, stands still or goes on.

    Attributes:
        overlaps_checked: How often a process began to run beside what ran then.
        lost: Processes that were gone with their machine.
        ended_well: Attempts whose process ended by itself with 0.
        failed: Attempts that failed by their own doing.
        started: Attempts of which a process ever ran.
    """

    def __init__(self, story: Story) -> None:
        self.overlaps_checked = 0
        self.lost = 0
        self.ended_well: set[AttemptUid] = set()
        self.failed: set[AttemptUid] = set()
        self.started: set[AttemptUid] = set()
        self._story = story
        self._running: defaultdict[Task, dict[Process, None]] = defaultdict(dict)
        self._used: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])

    def begins(self, process: Process) -> None:
        """A process starts."""
        self.started.add(process.uid)
        self._take(process.machine, process.resources, 1)
        self.runs(process)

    def runs(self, process: Process) -> None:
        """A process runs from now on, or again."""
        running = self._running[process.job_id, process.task]
        running[process] = None
        self.overlaps_checked += 1
        if len(running) > 1:
            places = ", ".join(f"{each.uid} on {each.machine.name}" for each in running)
            raise InvariantBroken(
                "at most one attempt of a task runs", places, job=process.job_id, worker=process.machine.name
            )

    def stands_still(self, process: Process) -> None:
        """A process does not run any more, or not for now."""
        key = process.job_id, process.task
        running = self._running.get(key)
        if running is not None:
            running.pop(process, None)
            if not running:
                del self._running[key]

    def ends(self, process: Process) -> None:
        """Nothing of it is left."""
        self.stands_still(process)
        self._take(process.machine, process.resources, -1)

    def running(self) -> list[Process]:
        """All that runs."""
        return [process for running in self._running.values() for process in running]

    def _take(self, machine: Machine, need: Resources, sign: int) -> None:
        used, have = self._used[machine.name], machine.resources
        used[0] += sign * need.cpu_milli
        used[1] += sign * need.memory_bytes
        used[2] += sign * need.slots
        if used[0] > have.cpu_milli or used[1] > have.memory_bytes or used[2] > have.slots:
            raise InvariantBroken("no machine is given more than it has", f"{used} of {have}", worker=machine.name)
