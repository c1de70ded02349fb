"""Faults and work, each kind in its own rhythm, until it is calm."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from fluster.cluster.ids import AllocationId
from fluster.testing.sim.controller import Beside
from fluster.testing.sim.machines import Machine

if TYPE_CHECKING:
    from fluster.testing.sim.simulation import Simulation

T = TypeVar("T")


class Chaos:
    """Lets things go wrong.

    Attributes:
        over: Nothing more goes wrong, and nobody asks for more.
        faults: How many there were.
    """

    def __init__(self, sim: Simulation, chance: random.Random) -> None:
        self.over = False
        self.faults = 0
        self._sim = sim
        self._chance = chance
        faults, work = sim.config.faults, sim.config.work
        self._often(work.jobs, self._launch)
        self._often(work.bursts, self._burst)
        self._often(work.terminations, sim.clients.terminate)
        for rate, fault in (
            (faults.cuts, self._cut),
            (faults.blackouts, self._darken),
            (faults.controller_kills, self._kill_controller),
            (faults.controller_pauses, self._pause_controller),
            (faults.disk_full, self._fill_disk),
            (faults.machine_deaths, self._kill_machine),
            (faults.machine_reboots, self._reboot_machine),
            (faults.machine_pauses, self._pause_machine),
            (faults.reclaims, self._reclaim_machine),
            (faults.daemon_kills, self._kill_daemon),
            (faults.daemon_pauses, self._pause_daemon),
        ):
            self._often(rate, self._counted(fault))

    def _often(self, an_hour: float, action: Callable[[], None]) -> None:
        if an_hour <= 0:
            return

        def happen() -> None:
            if not self.over:
                action()
                again()

        def again() -> None:
            self._sim.clock.after(self._chance.expovariate(an_hour / 3600), happen)

        again()

    def _counted(self, fault: Callable[[], None]) -> Callable[[], None]:
        def happen() -> None:
            self.faults += 1
            fault()

        return happen

    def _about(self, mean_s: float) -> float:
        return self._chance.expovariate(1 / mean_s)

    # Work

    def _launch(self) -> None:
        self._sim.clients.launch()

    def _burst(self) -> None:
        for _ in range(self._sim.config.work.burst):
            self._sim.clients.launch()

    # Network

    def _cut(self) -> None:
        network, machine = self._sim.network, self._machine()
        which = self._chance.choice(("both", "up", "down"))
        self._sim.story.tell("NetworkCut", worker=machine.name, text=which)
        name, network_cuts = machine.name, []
        if which != "down":
            network.cut_up.add(name)
            network_cuts.append(network.cut_up)
        if which != "up":
            network.cut_down.add(name)
            network_cuts.append(network.cut_down)

        def heal() -> None:
            self._sim.story.tell("NetworkHealed", worker=name)
            machine.well_since = self._sim.clock.now
            for cut in network_cuts:
                cut.discard(name)

        self._sim.clock.after(self._about(self._sim.config.faults.cut_s), heal)

    def _darken(self) -> None:
        network = self._sim.network
        if not network.is_dark:
            self._sim.story.tell("NetworkDark")
            network.dark_since, network.dark_until = self._sim.clock.now, math.inf
            self._sim.clock.after(self._about(self._sim.config.faults.blackout_s), self._lighten)

    def _lighten(self) -> None:
        if self._sim.network.is_dark:
            self._sim.story.tell("NetworkLight")
            self._sim.network.dark_until = self._sim.clock.now

    # The controller

    def _kill_controller(self) -> None:
        if (controller := self._sim.controller) is not None:
            faults, draw = self._sim.config.faults, self._chance.random()
            if draw < faults.stale_controllers:
                beside = Beside.REPLACED
            else:
                copied = draw < faults.stale_controllers + faults.copied_controllers
                beside = Beside.COPY if copied else Beside.NOBODY
            self._sim.kill_controller(controller, beside=beside)

    def _pause_controller(self) -> None:
        if self._sim.controller is not None:
            self._sim.controller.freeze(self._about(self._sim.config.faults.pause_s))

    def _fill_disk(self) -> None:
        store = self._sim.store
        store.full = True
        self._sim.story.tell("DiskFull")

        def room() -> None:
            store.full = False
            self._sim.story.tell("DiskHasRoom")

        self._sim.clock.after(self._about(5.0), room)

    # Machines

    def _machine(self) -> Machine:
        there = [self._sim.machines[name] for name in sorted(self._sim.machines)]
        return self._chance.choice([machine for machine in there if not machine.gone])

    def _kill_machine(self) -> None:
        """For good, or until somebody presses the button."""
        machine = self._machine()
        machine.lose_power()
        if not machine.allocation_id:
            self._sim.clock.after(30 + self._about(120), machine.start)

    def _reboot_machine(self) -> None:
        machine = self._machine()
        if machine.up:
            machine.lose_power()
            self._sim.clock.after(5 + self._about(20), machine.start)

    def _pause_machine(self) -> None:
        self._machine().freeze(self._about(self._sim.config.faults.pause_s))

    def _reclaim_machine(self) -> None:
        vms = sorted(self._sim.backend.vms)
        if vms:
            self._sim.story.tell("VmReclaimed")
            self._sim.backend.remove(AllocationId(self._chance.choice(vms)))

    def _kill_daemon(self) -> None:
        back_in_s = self._chance.choice((0.1, 1.0, self._about(self._sim.config.faults.pause_s)))
        self._machine().kill_daemon(back_in_s)

    def _pause_daemon(self) -> None:
        daemon = self._machine().daemon
        if daemon is not None:
            daemon.freeze(self._about(self._sim.config.faults.pause_s))

    def heal(self) -> None:
        """Faults stop, and what they left is put right."""
        self.over = True
        sim = self._sim
        sim.calm()
        sim.network.cut_up.clear()
        sim.network.cut_down.clear()
        self._lighten()
        sim.store.full = False
        if sim.controller is not None:
            sim.controller.thaw()
        for name in sorted(sim.machines):
            machine = sim.machines[name]
            machine.thaw()
            if machine.daemon is not None:
                machine.daemon.thaw()
            elif machine.up:
                machine.start_daemon()
            elif not machine.allocation_id:
                machine.start()  # one of the backend's is silent, and therefore replaced
