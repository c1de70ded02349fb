"""Machines: what runs on them, what their disks keep, and how they stand still, restart and go away."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from fluster.cluster.controller.core.rows import Resources
from fluster.cluster.ids import AllocationId, AttemptUid, JobId
from fluster.cluster.worker.lifecycle import GRACE_S
from fluster.cluster.worker.runtime import ExitRecord
from fluster.testing.sim.clock import Timer
from fluster.testing.sim.programs import Behaviour

if TYPE_CHECKING:
    from fluster.testing.sim.attempts import Held
    from fluster.testing.sim.daemon import Daemon
    from fluster.testing.sim.simulation import Simulation

_DAEMON_FIRST_S = 0.5
"""Shims act so long after the lease's end, as in `fluster.cluster.attempt.watch`."""

_WAKE_S = 0.05
"""What a machine that goes on does within so long, overdue kills for one, has happened before anything else runs."""


@dataclass(slots=True)
class Disk:
    """What a worker's state directory keeps.

    Attributes:
        credential: Hash of the worker's secret.
        registered: A controller has accepted it.
        epoch, controller, lease_s, lease_until, boot: Of the last answer obeyed.
        shim_lease_until: In the file that shims read.
        attempts: Directories, by uid.
    """

    credential: str
    registered: bool = False
    epoch: int = 0
    controller: str = ""
    lease_s: float = 0.0
    lease_until: float = 0.0
    boot: int = 0
    shim_lease_until: float = math.inf
    attempts: dict[str, Held] = field(default_factory=dict)


class Process:
    """An attempt's process with its shim. It goes on when the daemon does not."""

    __slots__ = (
        "_kill_at", "_kills", "behaviour", "job_id", "lease_ended", "machine", "record", "resources", "started_at",
        "stop_requested", "task", "timed_out", "uid",
    )  # fmt: skip

    def __init__(
        self, machine: Machine, uid: str, job_id: JobId, task: int, resources: Resources, behaviour: Behaviour
    ) -> None:
        self.machine = machine
        self.uid = AttemptUid(uid)
        self.job_id = job_id
        self.task = task
        self.resources = resources
        self.behaviour = behaviour
        self.started_at = machine.wall()
        self.record: ExitRecord | None = None
        self.stop_requested = self.lease_ended = self.timed_out = False
        self._kill_at = math.inf
        self._kills: Timer | None = None

    def start(self, timeout_s: float | None) -> None:
        """It runs."""
        machine, does = self.machine, self.behaviour
        machine.sim.story.tell("ProcessStarted", self.job_id, machine.name, self.uid)
        machine.sim.truth.begins(self)
        machine.later(does.run_s, lambda: self._end(does.exit_code, does.signal, out_of_memory=does.out_of_memory))
        if timeout_s is not None and timeout_s < does.run_s:
            machine.later(timeout_s, self._time_out)

    def stop(self, grace_s: float, *, lease_ended: bool = False) -> None:
        """SIGTERM now, SIGKILL after the grace; repeating may only shorten it."""
        if self.record is not None:
            return
        self.lease_ended |= lease_ended and not self.stop_requested
        self.stop_requested = True
        self._end_within(grace_s)

    def _time_out(self) -> None:
        if self.record is None:
            self.timed_out = True
            self._end_within(GRACE_S)

    def _end_within(self, grace_s: float) -> None:
        first, kill_at = self._kill_at == math.inf, self.machine.sim.clock.now + grace_s
        if first and self.behaviour.stop_s is not None and self.behaviour.stop_s < grace_s:
            self.machine.later(self.behaviour.stop_s, lambda: self._end(143, None))
        if kill_at < self._kill_at:
            self._kill_at = kill_at
            self.machine.later(grace_s, lambda: self._end(None, 9))

    def _end(self, exit_code: int | None, signal: int | None, *, out_of_memory: bool = False) -> None:
        if self.record is not None:
            return
        if not self.stop_requested:
            truth = self.machine.sim.truth
            (truth.ended_well if exit_code == 0 and not self.timed_out else truth.failed).add(self.uid)
        self.record = ExitRecord(
            exit_code=exit_code,
            signal=signal,
            out_of_memory=out_of_memory,
            timed_out=self.timed_out,
            stop_requested=self.stop_requested,
            start_error=None,
            fluster_fault=False,
            peak_memory_bytes=0,
            started_at=self.started_at,
            finished_at=self.machine.wall(),
            lease_ended=self.lease_ended,
        )
        machine = self.machine
        machine.sim.truth.ends(self)
        machine.sim.story.tell("ProcessEnded", self.job_id, machine.name, f"{self.uid} {exit_code} {signal}")
        if machine.daemon is not None:
            machine.daemon.attempts.process_ended(self.uid)


class Machine:
    """One machine: while it is up it has a worker daemon, now and then a dead one.

    Attributes:
        allocation_id: Empty when it was started by hand.
        boot: Counts its starts.
        frozen: It stands still, with all that runs on it.
        gone: Its backend has it back; it never starts again.
        skew_s: Of its wall clock, which leases do not look at.
        well_since: When the last thing that was wrong with it alone was over.
    """

    def __init__(self, sim: Simulation, name: str, allocation_id: str, resources: Resources, skew_s: float) -> None:
        self.sim = sim
        self.name = name
        self.allocation_id = AllocationId(allocation_id)
        self.resources = resources
        self.skew_s = skew_s
        self.boot = 0
        self.up = False
        self.frozen = False
        self.gone = False
        self.well_since = sim.clock.now
        self.daemon: Daemon | None = None
        self.disk = Disk(credential=sim.new_id("credential"))
        self.processes: dict[str, Process] = {}
        self._deferred: list[Callable[[], None]] = []

    def wall(self) -> float:
        """What its wall clock says."""
        return self.sim.clock.now + self.skew_s

    @property
    def is_well(self) -> bool:
        """Whether its daemon runs and nothing is wrong with its network."""
        network = self.sim.network
        cut = self.name in network.cut_up or self.name in network.cut_down
        return self.up and not self.frozen and not cut and self.daemon is not None and not self.daemon.frozen

    def later(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Lets something happen here in so many seconds: not while it stands still, never after a restart."""
        return self.sim.clock.after(seconds, partial(self._do, self.boot, action))

    def _do(self, boot: int, action: Callable[[], None]) -> None:
        if self.boot == boot and self.up:
            if self.frozen:
                self._deferred.append(partial(self._do, boot, action))
            else:
                action()

    def defer(self, action: Callable[[], None]) -> None:
        """Lets something happen once it goes on; never after a restart."""
        self._deferred.append(action)

    def start(self) -> None:
        """It boots, and its daemon starts."""
        if self.up or self.gone:
            return
        self.up, self.frozen = True, False
        self.boot += 1
        self._deferred.clear()
        self.sim.story.tell("MachineStarted", worker=self.name, text=str(self.boot))
        self.start_daemon()

    def start_daemon(self) -> None:
        """Whoever keeps the daemon running starts it, unless it runs."""
        if self.daemon is None:
            self.well_since = self.sim.clock.now
            self.daemon = self.sim.new_daemon(self)
            self.daemon.start()

    def kill_daemon(self, back_in_s: float | None) -> None:
        """The daemon dies; what it started goes on. `None`: whoever keeps it running does not start it again."""
        if self.daemon is not None:
            self.sim.story.tell("DaemonKilled", worker=self.name)
            self.daemon.alive = False
            self.daemon = None
            self.watch_lease()
        if back_in_s is not None:
            self.later(back_in_s, self.start_daemon)

    def watch_lease(self) -> None:
        """The shims see to the end of the lease when the daemon does not."""
        if self.processes:
            wait_s = self.disk.shim_lease_until + _DAEMON_FIRST_S - self.sim.clock.now
            if wait_s < math.inf:
                self.later(max(0.0, wait_s), self._shims_look)

    def _shims_look(self) -> None:
        if self.daemon is not None and self.daemon.watches_lease:
            return
        left_s = self.disk.shim_lease_until + _DAEMON_FIRST_S - self.sim.clock.now
        if left_s > 0:
            self.watch_lease()
            return
        for process in list(self.processes.values()):
            if process.record is None:
                process.stop(max(0.0, GRACE_S + left_s), lease_ended=True)

    def freeze(self, seconds: float) -> None:
        """It stands still for a while."""
        if self.frozen or not self.up:
            return
        self.frozen = True
        boot = self.boot
        self.sim.story.tell("MachineStoodStill", worker=self.name, text=f"{seconds:.1f} s")
        for process in self._alive():
            self.sim.truth.stands_still(process)
        self.sim.clock.after(seconds, lambda: self.thaw() if self.boot == boot else None)

    def thaw(self) -> None:
        """It goes on: first all that was due meanwhile, as fast as it can."""
        if not self.frozen:
            return
        self.frozen = False
        self.well_since = self.sim.clock.now
        self.sim.story.tell("MachineWentOn", worker=self.name)
        deferred, self._deferred = self._deferred, []
        for action in deferred:
            action()
        self.later(_WAKE_S, self._processes_go_on)

    def _processes_go_on(self) -> None:
        for process in self._alive():
            self.sim.truth.runs(process)

    def lose_power(self) -> None:
        """All that runs is gone; the disk is not."""
        if not self.up:
            return
        self.up = self.frozen = False
        self._deferred.clear()
        if self.daemon is not None:
            self.daemon.alive = False
            self.daemon = None
        for process in self._alive():
            self.sim.truth.ends(process)
            self.sim.truth.lost += 1
        self.processes.clear()
        self.sim.story.tell("MachineLostPower", worker=self.name)

    def _alive(self) -> list[Process]:
        return [process for process in self.processes.values() if process.record is None]
