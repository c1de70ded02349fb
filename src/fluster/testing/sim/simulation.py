"""One simulation: its parts put together, faults for a while, then calm until everything has ended."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass

from fluster.cluster.controller.core.events import TokenCreated, WorkerSynced
from fluster.cluster.controller.core.rows import Changes, Offer, RequestRow, Resources, TokenRow
from fluster.cluster.controller.core.state import Settings, State
from fluster.cluster.controller.core.transitions import apply
from fluster.cluster.ids import AllocationId, Namespace, WorkerId
from fluster.testing.sim.backend import Backend
from fluster.testing.sim.chaos import Chaos
from fluster.testing.sim.clients import Clients
from fluster.testing.sim.clock import START, Clock
from fluster.testing.sim.config import CALM, Config
from fluster.testing.sim.controller import Beside, Controller
from fluster.testing.sim.daemon import Daemon
from fluster.testing.sim.effects import Effects
from fluster.testing.sim.machines import Machine
from fluster.testing.sim.messages import RegisterRequest, SyncRequest
from fluster.testing.sim.network import Call, Network, refused
from fluster.testing.sim.programs import GB, USERS, Program
from fluster.testing.sim.rules import Rules, check_quiet
from fluster.testing.sim.store import Killed, MemoryStore
from fluster.testing.sim.story import UNEXPECTED, Happening, InvariantBroken, Story
from fluster.testing.sim.truth import Truth

_FAR = 1e9
_SLICE_S = 10.0
_LOOK_S = 60.0
"""Between two looks at everything."""
_OLD_NEWS = 0.0005
"""Of reports taken to say nothing new, so many are folded into a copy of the state to see whether that is so."""
_STALE_S = 40.0
_STALE_SHARE = 0.3
_LEASES_S = (30.0, 60.0, 300.0)
ZONES = ("zone-a", "zone-b")


@dataclass(frozen=True, slots=True)
class Result:
    """What one seed came to.

    Attributes:
        simulated_s: With the calm at the end.
        wall_s, cpu_s: What it took.
        events: Everything that happened on the virtual clock.
        digest: Of the story: the same for the same run.
        lost: Processes gone with their machines.
        broken: The rule that does not hold; `None` when all do.
        story: When one is broken, the last happenings around it.
    """

    seed: int
    simulated_s: float
    wall_s: float
    cpu_s: float
    events: int
    messages: int
    commits: int
    faults: int
    jobs: int
    attempts: int
    lost: int
    digest: str
    broken: InvariantBroken | None = None
    story: tuple[Happening, ...] = ()


class Simulation:
    """A cluster under the virtual clock.

    Args:
        config: What is in it; `config.seed` decides everything that is left to chance.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.clock = Clock()
        self.story = Story(self.clock)
        self.chance = self._chance("daemons")
        lease_s = config.lease_s or self._chance("settings").choice(_LEASES_S)
        kinds = (Resources(4000, 16 * GB, slots=10), Resources(8000, 32 * GB, slots=10))
        self.settings = _settings(config, lease_s, kinds)
        self.truth = Truth(self.story)
        self.network = Network(self.clock, self._chance("network"), config.faults)
        self.backend = Backend(self.clock, self._chance("backend"), config.faults, self.story, config.dry_zones)
        self.store = MemoryStore()
        self.rules = Rules(self, self.store)
        self.store.before_commit, self.store.after_commit = self._before_commit, self._after_commit
        self.programs: dict[str, Program] = {}
        self.machines: dict[str, Machine] = {}
        self.controller: Controller | None = None
        self.clients = Clients(self, self._chance("clients"))
        self._effects: Effects | None = None
        self._stale: Controller | None = None
        self._kills = self._chance("kills")
        self._samples = self._chance("samples")
        self._ids = 0
        self._start_controller()
        self._make_token()
        for number, resources in enumerate(_by_hand(config, kinds)):
            self.new_machine(f"hand-{number}", resources).start()
        self._chaos = Chaos(self, self._chance("chaos"))
        self.clock.after(_LOOK_S, self._look_at_everything)

    def _chance(self, name: str) -> random.Random:
        return random.Random(f"{self.config.seed}:{name}")

    def new_id(self, prefix: str) -> str:
        """An id that there was not before."""
        self._ids += 1
        return f"{prefix}{self._ids:06d}"

    # Running

    def run(self) -> Result:
        """Lets it all happen."""
        wall, cpu = time.monotonic(), time.process_time()
        broken: InvariantBroken | None = None
        story: tuple[Happening, ...] = ()
        try:
            self.clock.run(START + self.config.seconds)
            self._settle()
        except InvariantBroken as error:
            broken, story = error, self._around(error)
        except Exception as error:
            broken = InvariantBroken(UNEXPECTED, f"{type(error).__name__}: {error}")
            broken.__cause__, story = error, self._around(broken)
        digest = self.story.digest
        return Result(
            seed=self.config.seed,
            simulated_s=self.clock.now - START,
            wall_s=time.monotonic() - wall,
            cpu_s=time.process_time() - cpu,
            events=self.clock.fired,
            messages=self.network.sent,
            commits=self.rules.commits,
            faults=self._chaos.faults + self.network.lost,
            jobs=len(self.store.jobs),
            attempts=len(self.truth.started),
            lost=self.truth.lost,
            digest=digest,
            broken=broken,
            story=story,
        )

    def _settle(self) -> None:
        """Faults have stopped: everything ends."""
        self.story.tell("FaultsStop")
        self._chaos.heal()
        until = self.clock.now + self.config.calm_s
        while not self._is_quiet():
            if self.clock.now >= until:
                self._explain_unrest()
            self.clock.run(self.clock.now + _SLICE_S)
        self.clock.run(self.clock.now + 2 * _SLICE_S)
        check_quiet(self)
        if self.controller is not None:
            self.rules.all(self.controller.state)

    def _is_quiet(self) -> bool:
        if self.store.unfinished or self.clients.open or self.truth.running() or self.controller is None:
            return False
        if not all(machine.daemon is not None for machine in self.machines.values() if not machine.gone):
            return False
        try:
            check_quiet(self)
        except InvariantBroken:
            return False
        return True

    def _explain_unrest(self) -> None:
        if not self.store.unfinished:
            check_quiet(self)
        job = next(iter(self.store.unfinished), "")
        waiting = self.controller.state.waiting if self.controller is not None else {}
        why = f"{len(self.store.unfinished)} jobs have not ended; waiting: {waiting}"
        raise InvariantBroken("everything ends once faults have stopped", why[:2000], job=job)

    def _around(self, error: InvariantBroken, last: int = 60) -> tuple[Happening, ...]:
        return tuple(self.story.about(error.job, error.worker, last))

    def calm(self) -> None:
        """From now on nothing goes wrong by chance."""
        self.network.faults = self.backend.faults = CALM

    # The controller

    def _start_controller(self) -> None:
        try:
            self.controller = Controller(self, self.store)
        except Killed:  # nothing is committed at the start
            raise AssertionError from None
        self.story.tell("ControllerStarted", text=f"epoch {self.controller.epoch}")
        self.rules.remembers(self.clients.acknowledged)
        self._effects = Effects(self, self.controller)
        self._effects.ring()

    def effects_ring(self, controller: Controller) -> None:
        """The rows of allocations have changed."""
        if controller is self.controller and self._effects is not None:
            self._effects.ring()

    def kill_controller(self, controller: Controller, *, beside: Beside = Beside.NOBODY) -> None:
        """It is killed, or was only replaced."""
        self.story.tell("ControllerKilled", text="" if beside is Beside.NOBODY else f"beside: {beside.name}")
        if beside is Beside.COPY or (beside is Beside.REPLACED and not controller.frozen):
            self._end_stale()
            twin = self.store.fork()
            twin.full = False
            stale = self._stale = Controller(self, twin)
            if beside is Beside.REPLACED:
                stale.epoch, stale.incarnation = controller.epoch, controller.incarnation
            self.clock.after(_STALE_S, lambda: self._end_stale() if self._stale is stale else None)
        controller.die()
        self._controller_is_gone()

    def controller_died(self, controller: Controller) -> None:
        """It was killed in the middle of a commit."""
        self.story.tell("ControllerKilled", text="in a commit")
        controller.die()
        if controller is self.controller:
            self._controller_is_gone()

    def _controller_is_gone(self) -> None:
        self.controller = None
        if self._effects is not None:
            self._effects.end()
            self._effects = None
        away = 0.5 if self._chaos.over else self._kills.expovariate(1 / self.config.faults.controller_away_s)
        self.clock.after(0.3 + away, self._start_controller)

    def _end_stale(self) -> None:
        if self._stale is not None:
            self._stale.die()
            self._stale = None

    def _before_commit(self, changes: Changes) -> None:
        self._maybe_killed()
        self.rules.before(changes)

    def _after_commit(self, changes: Changes) -> None:
        for line in changes.journal:
            about = f"task {line.task} attempt {line.attempt} {line.message}" if line.task >= 0 else line.message
            self.story.tell(line.kind, line.job_id, line.worker_id, about)
        self.rules.after(changes)
        self._maybe_killed()

    def _maybe_killed(self) -> None:
        if not self._chaos.over and self._kills.random() < self.config.faults.commit_kills / 2:
            raise Killed

    def _look_at_everything(self) -> None:
        if self.controller is not None:
            self.rules.all(self.controller.state)
        self.clock.after(_LOOK_S, self._look_at_everything)

    def watch_old_news(self, state: State, worker_id: WorkerId, request: SyncRequest) -> None:
        """Now and then: a report that is said to be no news would indeed have changed nothing."""
        if self._samples.random() < _OLD_NEWS:
            event = WorkerSynced(worker_id, request.incarnation, request.observed)
            changes = apply(deepcopy(state), event, self.clock.now)
            if changes:
                raise InvariantBroken("no news is no change", f"{changes.rows}", worker=worker_id)

    def _make_token(self) -> None:
        """What machines started by hand join with; and who the users are."""
        token = TokenRow("by-hand", "0" * 64, 1_000_000, START + _FAR, START)
        note = RequestRow("admin", "r-token", "CreateJoinToken", "", "by-hand", START)
        assert self.controller is not None
        self.controller.submit(TokenCreated(token, note, "admin"), lambda _: None)
        for user, quota in USERS.items():
            token = TokenRow(f"of-{user}", "0" * 64, 0, math.inf, START, user=user, namespace=Namespace("default"))
            note = RequestRow("admin", f"r-{user}", "CreateToken", "", token.token_id, START)
            self.controller.submit(TokenCreated(token, note, "admin", tuple(asdict(quota).items())), lambda _: None)

    # Machines and messages

    def new_machine(self, allocation_or_name: AllocationId | str, resources: Resources) -> Machine:
        """A machine, not started yet."""
        by_hand = allocation_or_name.startswith("hand-")
        if not by_hand:
            self.rules.asks_for(AllocationId(allocation_or_name))
        skew_s = self.chance.choice((0.0, 0.0, 0.5, -0.5, 90.0, -90.0))
        machine = Machine(self, allocation_or_name, "" if by_hand else allocation_or_name, resources, skew_s)
        self.machines[allocation_or_name] = machine
        return machine

    def new_daemon(self, machine: Machine) -> Daemon:
        """A daemon, not started yet."""
        return Daemon(machine, self)

    def reachable(self, host: str) -> bool:
        """Whether whoever asks again and again would get through now."""
        cut = host in self.network.cut_up or host in self.network.cut_down or self.network.is_dark
        return not cut and self.controller is not None and not self.controller.frozen

    def register(self, request: RegisterRequest, done: Callable[[object], None], deadline: float) -> None:
        """RegisterWorker, over the network."""
        self.network.call(
            request.worker_id,
            lambda call: self.route(call, lambda controller, call: controller.workers.register(request, call)),
            done,
            deadline,
        )

    def sync(self, request: SyncRequest, done: Callable[[object], None], deadline: float) -> None:
        """SyncWorker, over the network."""

        def arrives(call: Call) -> None:
            stale = self._stale
            if stale is not None and self._heeds_another(request, stale) and self._kills.random() < _STALE_SHARE:
                stale.serve(call, lambda: stale.workers.sync(request, call))
            else:
                self.route(call, lambda controller, call: controller.workers.sync(request, call))

        self.network.call(request.worker_id, arrives, done, deadline)

    def _heeds_another(self, request: SyncRequest, stale: Controller) -> bool:
        """Whether it has obeyed the newest controller: whoever has not yet may obey the stale one."""
        newest = self.controller
        if newest is None or request.known_controller != newest.incarnation:
            return request.known_epoch > stale.epoch
        return True

    def route(self, call: Call, handler: Callable[[Controller, Call], None]) -> None:
        """A request arrives where the controller listens, if one does."""
        controller = self.controller
        if controller is None:
            call.answer(refused())
        else:
            controller.serve(call, lambda: handler(controller, call))


def _settings(config: Config, lease_s: float, kinds: tuple[Resources, ...]) -> Settings:
    number = config.workers // 2
    held = () if config.only_on_demand else tuple(kinds[n % 2] for n in range(number))
    more = number if config.only_on_demand else number // 2
    return Settings(
        worker_lease_s=lease_s,
        start_timeout_s=450.0,
        idle_release_s=90.0,
        backend="vm",
        pool=held,
        offers=tuple(Offer(zone, kinds[1], at_most=more) for zone in ZONES),
    )


def _by_hand(config: Config, kinds: tuple[Resources, ...]) -> list[Resources]:
    if config.only_on_demand:
        return [Resources(cpu_milli=1)]  # too small for any job; faults need a machine that is always there
    return [kinds[n % 2] for n in range(config.workers - config.workers // 2)]


def simulate(config: Config) -> Result:
    """Runs one simulation."""
    # Nearly all it makes is either kept or freed by counting: looking for cycles would take an eighth of the time.
    collected = gc.isenabled()
    gc.disable()
    try:
        return Simulation(config).run()
    finally:
        if collected:
            gc.enable()
