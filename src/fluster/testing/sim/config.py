"""What a simulation is made of: how large, for how long, which faults, what work. One seed decides the rest."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong. Rates are times an hour in the whole cluster, chances are of each single case.

    Attributes:
        loss, duplicates, slow: Chances of a message, one way.
        slow_s: Mean delay of a slow message.
        cuts: A machine's network is cut: both ways, or one of them.
        cut_s: Mean length of a cut.
        blackouts: The controller's own network is cut: nobody reaches it, and it reaches nobody.
        blackout_s: Mean length of one.
        controller_kills, controller_pauses: The process is killed, or stands still.
        commit_kills: Chance that the controller is killed in a commit, before or after it is durable.
        stale_controllers: Chance that a controller that was replaced goes on on a copy of its state.
        copied_controllers: Chance that a copy of a killed controller's state is started as often as the original.
        disk_full: The controller's disk is full for a while.
        machine_deaths, machine_reboots, machine_pauses, reclaims: Of machines; a reclaimed one is its backend's again.
        daemon_kills, daemon_pauses: Of worker daemons, whose attempts go on.
        stockouts, backend_errors: Chances of a call to the backend; an error comes before or after the effect.
        slow_boots, never_boots: Chances of an allocation.
        late_machines: Chance of a call to the backend that fails, and yet gives a machine a while later.
        pause_s: Mean of pauses and of how long killed daemons stay away.
        controller_away_s: Mean of how long a killed controller stays away.
    """

    loss: float = 0.002
    duplicates: float = 0.002
    slow: float = 0.01
    slow_s: float = 2.0
    cuts: float = 20.0
    cut_s: float = 40.0
    blackouts: float = 1.0
    blackout_s: float = 60.0
    controller_kills: float = 6.0
    controller_pauses: float = 3.0
    commit_kills: float = 0.0005
    stale_controllers: float = 0.3
    copied_controllers: float = 0.2
    disk_full: float = 2.0
    machine_deaths: float = 4.0
    machine_reboots: float = 6.0
    machine_pauses: float = 10.0
    reclaims: float = 4.0
    daemon_kills: float = 20.0
    daemon_pauses: float = 6.0
    stockouts: float = 0.1
    backend_errors: float = 0.1
    slow_boots: float = 0.1
    never_boots: float = 0.02
    late_machines: float = 0.02
    pause_s: float = 15.0
    controller_away_s: float = 5.0


CALM = Faults(**{name: 0.0 for name in Faults.__slots__ if not name.endswith("_s")})
"""Nothing goes wrong."""


@dataclass(frozen=True, slots=True)
class Work:
    """What users ask for.

    Attributes:
        jobs: Launches an hour, in the mean.
        bursts: Of `burst` launches at once, an hour.
        run_s: Mean time of one task; a few run ten times as long.
        failures: Chance that an attempt fails by itself.
        terminations: An hour.
        stubborn: Chance that an attempt does not heed SIGTERM.
        children, endpoints: Chance of an attempt.
    """

    jobs: float = 240.0
    bursts: float = 4.0
    burst: int = 20
    run_s: float = 40.0
    failures: float = 0.12
    terminations: float = 15.0
    stubborn: float = 0.2
    children: float = 0.06
    endpoints: float = 0.2


@dataclass(frozen=True, slots=True)
class Config:
    """One simulation.

    Attributes:
        seed: Decides everything that is left to chance.
        seconds: Of simulated time with faults; then faults stop, and everything has to end.
        workers: Half of them are held by the backend, the others were started by hand.
            Each of two zones gives a quarter as many when there is demand.
        only_on_demand: There is nothing but those, half as many from each zone as `workers` says.
        dry_zones: Those that never have a machine to give.
        lease_s: Of workers; `None`: the seed chooses.
        calm_s: Within so much simulated time after the faults everything has ended.
    """

    seed: int = 0
    seconds: float = 600.0
    workers: int = 10
    only_on_demand: bool = False
    dry_zones: tuple[str, ...] = ()
    lease_s: float | None = None
    faults: Faults = field(default_factory=Faults)
    work: Work = field(default_factory=Work)
    calm_s: float = 7_200.0
