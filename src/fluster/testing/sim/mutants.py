"""Fences broken on purpose: what the simulation must turn red on, or its green means nothing.

A mutant patches the product's functions while a simulation runs; no switch of the product knows of it. Each names the
faults under which its fence is needed most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any
from unittest.mock import patch

from fluster.cluster.controller import sync as real_sync
from fluster.cluster.controller import turns
from fluster.cluster.controller.core import attempts, demand, gangs, placing, reconcile, silence, workers
from fluster.cluster.controller.core.capacity import Room
from fluster.cluster.controller.core.events import AllocationWanted, Exit, WorkerSynced
from fluster.cluster.controller.core.fold import Fold
from fluster.cluster.controller.core.rows import (
    ENDED_STATES,
    AttemptRow,
    Changes,
    Charge,
    JobRow,
    RequestRow,
    Resources,
    Retry,
    Row,
    TaskRow,
)
from fluster.cluster.controller.core.shares import Shares
from fluster.cluster.controller.core.state import Settings, State, has_process
from fluster.cluster.ids import AllocationId, WorkerId
from fluster.cluster.worker import decide
from fluster.testing.sim import loading
from fluster.testing.sim.config import CALM, Config, Faults, Work
from fluster.testing.sim.effects import Effects
from fluster.testing.sim.messages import SyncRequest
from fluster.testing.sim.network import Call
from fluster.testing.sim.simulation import Simulation
from fluster.testing.sim.store import MemoryStore
from fluster.testing.sim.worker_rpcs import WorkerRpcs

Patch = tuple[object, str, Any]

_DAEMONS = replace(CALM, cuts=40, cut_s=90, daemon_kills=120, machine_reboots=20, pause_s=5.0)
_CUTS = replace(CALM, cuts=200, cut_s=90)
_KILLS = replace(CALM, controller_kills=60, controller_away_s=2.0)
_NEVER_BOOTS = replace(CALM, never_boots=0.3)
_ON_DEMAND = Config(seconds=600.0, workers=8, only_on_demand=True, lease_s=30.0, faults=CALM, work=Work(jobs=60))
_BUSY = Work(jobs=600, run_s=60)
_STEADY = Work(jobs=300, bursts=0, run_s=60)
_LASTING = Work(jobs=300, bursts=0, run_s=200, terminations=0)
_FAILING = Work(jobs=600, run_s=10, failures=0.5)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fence that is not there.

    Attributes:
        what: What is broken.
        patches: Makes them: owner, name, and what takes the place of the function.
        config: Where it hurts.
    """

    what: str
    patches: Callable[[], list[Patch]]
    config: Config

    @contextmanager
    def active(self) -> Iterator[None]:
        """While this is open the fence is broken."""
        with ExitStack() as stack:
            for owner, name, new in self.patches():
                stack.enter_context(patch.object(owner, name, new))
            yield


def _hurting(
    faults: Faults, work: Work | None = None, *, lease_s: float = 30.0, workers: int = 10, seconds: float = 600.0
) -> Config:
    return Config(seconds=seconds, workers=workers, lease_s=lease_s, faults=faults, work=work or Work(), calm_s=1_500.0)


# The worker's side


def _no_epoch_check() -> list[Patch]:
    return [(decide, "may_command", lambda *_: True), (WorkerRpcs, "fence", lambda *_: None)]


def _epochs_are_numbers() -> list[Patch]:
    real = WorkerRpcs.fence

    def may_command(session: decide.Session, epoch: int, _: str) -> bool:
        return epoch >= session.epoch

    def fence(self: WorkerRpcs, request: SyncRequest) -> object:
        return real(self, replace(request, known_controller=self.incarnation))

    return [(decide, "may_command", may_command), (WorkerRpcs, "fence", fence)]


def _lease_from_the_answer() -> list[Patch]:
    real = decide.on_answer

    def on_answer(session: decide.Session, answer: decide.Answer, *, now: float, **how: Any) -> Any:
        return real(session, answer, **{**how, "asked_at": now, "now": now})

    return [(decide, "on_answer", on_answer)]


def _lease_never_ends() -> list[Patch]:
    return [(decide, "lease_ended", lambda *_: False)]


def _no_seq_check() -> list[Patch]:
    real = WorkerRpcs.sync

    def sync(self: WorkerRpcs, request: SyncRequest, call: Call) -> None:
        self.newest.pop(WorkerId(request.worker_id), None)
        real(self, request, call)

    return [(WorkerRpcs, "sync", sync)]


# The controller's side: workers


def _no_incarnation_check() -> list[Patch]:
    real_core, real_handler = workers.sync, WorkerRpcs.sync

    def fold(fold: Fold, event: WorkerSynced) -> None:
        worker = fold.state.workers.get(event.worker_id)
        real_core(fold, event if worker is None else replace(event, incarnation=worker.incarnation))

    def handle(self: WorkerRpcs, request: SyncRequest, call: Call) -> None:
        worker = self.known(WorkerId(request.worker_id))
        # Of whichever daemon it is, it is taken for the newest one's.
        real_handler(self, request if worker is None else replace(request, incarnation=worker.incarnation), call)

    return [(workers, "sync", fold), (WorkerRpcs, "sync", handle)]


def _no_attempt_check() -> list[Patch]:
    real = workers.sync

    def sync(fold: Fold, event: WorkerSynced) -> None:
        real(fold, event)
        for seen in event.observed:
            known = fold.state.attempts.get(seen.uid)
            current = None if known is None else fold.state.current(known.job_id, known.task)
            if seen.exit is not None and current is not None and current.uid != seen.uid and has_process(current):
                attempts.observe(fold, current, replace(seen, uid=current.uid), current.incarnation)

    return [(workers, "sync", sync), (real_sync, "is_news", lambda *_: True)]


def _lease_not_granted_anew() -> list[Patch]:
    real = loading.load

    def load(store: MemoryStore, settings: Settings, now: float, old: State | None) -> State:
        state = real(store, settings, now, old)
        if old is None:
            state.last_seen = dict.fromkeys(state.last_seen, 0.0)
        return state

    return [(loading, "load", load)]


def _no_grace() -> list[Patch]:
    return [(workers, "lease_end", lambda settings, last_seen: last_seen + settings.worker_lease_s)]


def _silence_proves_nothing() -> list[Patch]:
    return [(workers, "expire", lambda *_: None)]


# The controller's side: commits and requests


def _answer_before_commit() -> list[Patch]:
    """The last commit before a kill was answered, and yet is lost."""
    real_write, real_begin = MemoryStore.write, MemoryStore.begin_epoch
    last: list[tuple[dict[Any, Any], Any, Any]] = []

    def write(self: MemoryStore, changes: Changes) -> None:
        last.clear()
        for row in changes.rows.values():
            for table, key in _places(self, row):
                last.append((table, key, table.get(key)))
        real_write(self, changes)

    def begin_epoch(self: MemoryStore) -> int:
        for table, key, before in reversed(last):
            if before is None:
                table.pop(key, None)
            else:
                table[key] = before
        last.clear()
        self.unfinished = {job_id: None for job_id, job in self.jobs.items() if job.outcome is None}
        return real_begin(self)

    return [(MemoryStore, "write", write), (MemoryStore, "begin_epoch", begin_epoch)]


def _places(store: MemoryStore, row: Row) -> list[tuple[dict[Any, Any], Any]]:
    match row:
        case JobRow():
            return [(store.jobs, row.job_id)]
        case TaskRow():
            return [(store.tasks[row.job_id], row.index)]
        case AttemptRow():
            return [(store.attempts[row.job_id], (row.task, row.number))]
        case RequestRow():
            return [(store.requests, (row.caller, row.request_id))]
        case _:
            return []


def _request_id_ignored() -> list[Patch]:
    return [(turns.Turns, "_known", lambda *_: None)]


def _intent_after_effect() -> list[Patch]:
    """Machines are asked for before that is committed, under names that the next controller does not find again."""
    real_init, real_intents = Simulation.__init__, reconcile.intents
    running: list[Simulation] = []
    numbers = count(100)

    def init(self: Simulation, config: Config) -> None:
        running[:] = [self]
        real_init(self, config)

    def effects_first(state: State, now: float) -> list[Any]:
        found = real_intents(state, now)
        for intent in found:
            if isinstance(intent, AllocationWanted):
                sim, name = running[0], intent.allocation_id
                sim.backend.create(name, sim.new_machine(name, intent.resources))
        return list(found)

    return [
        (Simulation, "__init__", init),
        (reconcile, "_free_name", lambda backend, _: AllocationId(f"{backend}-{next(numbers)}")),
        (turns, "intents", effects_first),
    ]


# The core: machines that come with demand


def _stockout_not_passed_on() -> list[Patch]:
    real = demand.tasks_of
    return [(demand, "tasks_of", lambda job, offer: real(job, offer) if offer.backend == "zone-a" else 0)]


def _never_given_up() -> list[Patch]:
    return [(reconcile, "_came_to_nothing", lambda *_: [])]


def _never_given_back() -> list[Patch]:
    return [(reconcile, "_idle", lambda *_: [])]


def _idle_while_it_works() -> list[Patch]:
    return [(reconcile, "_idle_s", lambda state, name, now: now - state.allocated_since.get(name, now))]


def _coming_machines_not_counted() -> list[Patch]:
    return [(demand, "coming_hosts", lambda *_: []), (demand._DryRun, "add", lambda *_: [])]


def _strays_kept() -> list[Patch]:
    async def sweep(self: Effects) -> None:
        pass

    return [(Effects, "_sweep", sweep)]


# The core: gangs, ends, charges


def _gang_in_part() -> list[Patch]:
    real = placing.Placing.place

    def place(self: placing.Placing, job: JobRow, tasks: range) -> Any:
        found = real(self, job, tasks)
        return real(self, job, tasks[:1]) if found is None and len(tasks) > 1 else found

    return [(placing.Placing, "place", place)]


def _retry_before_the_gang_is_gone() -> list[Patch]:
    return [(gangs, "_one_alive", lambda *_: None)]


def _terminal_state_overwritten() -> list[Patch]:
    real = workers.sync

    def sync(fold: Fold, event: WorkerSynced) -> None:
        real(fold, event)
        for seen in event.observed:
            known = fold.state.attempts.get(seen.uid)
            if known is not None and seen.exit is not None and known.state in ENDED_STATES:
                attempts.end(fold, known, seen.exit)

    return [(workers, "sync", sync), (real_sync, "is_news", lambda *_: True)]


def _preemption_charged_as_failure() -> list[Patch]:
    return [(attempts, "_charge", lambda *_: Charge.FAILURE)]


def _failures_are_free() -> list[Patch]:
    return [(gangs, "_spent", lambda *_: False)]


def _endpoint_kept() -> list[Patch]:
    return [(Fold, "drop_endpoint", lambda *_: None)]


def _journal_left_out() -> list[Patch]:
    real = Fold.journal

    def journal(self: Fold, kind: str, *args: Any, **kwargs: Any) -> None:
        if kind != "TaskStarted":
            real(self, kind, *args, **kwargs)

    return [(Fold, "journal", journal)]


def _overcommitted() -> list[Patch]:
    def take(self: Room, need: Resources) -> None:
        self.slots -= need.slots

    return [(Room, "take", take)]


def _children_forgotten() -> list[Patch]:
    return [(State, "descendants", lambda *_: iter(()))]


def _success_of_one_is_success_of_all() -> list[Patch]:
    real = attempts._classify

    def classify(retry: Retry, attempt: AttemptRow, how: Exit) -> AttemptRow:
        code = how.exit_code
        failed = code is not None and 0 < code < 128
        return real(retry, attempt, replace(how, exit_code=0, cause=None) if failed else how)

    return [(attempts, "_classify", classify)]


def _quota_ignored() -> list[Patch]:
    return [(Shares, "exceeds", lambda *_: False)]


MUTANTS: dict[str, Mutant] = {
    "no-epoch-check": Mutant(
        "workers obey a controller that was replaced",
        _no_epoch_check,
        _hurting(replace(_KILLS, stale_controllers=1.0), _BUSY),
    ),
    "epochs-are-numbers": Mutant(
        "workers obey a controller on a copy that was started equally often",
        _epochs_are_numbers,
        _hurting(replace(_KILLS, copied_controllers=1.0), _BUSY),
    ),
    "no-attempt-check": Mutant(
        "the end of one attempt is taken for the end of the next",
        _no_attempt_check,
        _hurting(replace(_CUTS, cuts=400, cut_s=50), _STEADY),
    ),
    "no-incarnation-check": Mutant(
        "what a daemon said before it died is believed",
        _no_incarnation_check,
        _hurting(replace(CALM, daemon_kills=900, slow=0.3, slow_s=4.0, pause_s=1.0), _STEADY),
    ),
    "no-seq-check": Mutant(
        "what a worker said earlier is believed when it arrives later",
        _no_seq_check,
        _hurting(replace(CALM, slow=0.3, slow_s=2.0, duplicates=0.1), _BUSY),
    ),
    "lease-from-the-answer": Mutant(
        "a lease is counted from its answer",
        _lease_from_the_answer,
        _hurting(replace(_CUTS, cuts=300), _LASTING, lease_s=60.0, seconds=400),
    ),
    "lease-never-ends": Mutant("a worker goes on without a lease", _lease_never_ends, _hurting(_CUTS, _BUSY)),
    "lease-not-granted-anew": Mutant(
        "a restarted controller grants no lease",
        _lease_not_granted_anew,
        _hurting(replace(_KILLS, cuts=60, cut_s=30), _BUSY),
    ),
    "no-grace": Mutant("attempts are given away while they are being stopped", _no_grace, _hurting(_CUTS, _BUSY)),
    "silence-proves-nothing": Mutant(
        "a dead worker is never given up", _silence_proves_nothing, _hurting(replace(CALM, machine_deaths=120))
    ),
    "all-silence-proves-death": Mutant(
        "machines are given back when the controller hears none of them",
        lambda: [(silence, "listen", lambda _: None)],
        _hurting(replace(CALM, blackouts=30, blackout_s=250), _STEADY, lease_s=300.0, workers=16),
    ),
    "answer-before-commit": Mutant(
        "what is answered may be lost",
        _answer_before_commit,
        _hurting(replace(_KILLS, controller_kills=300), _BUSY, seconds=300),
    ),
    "request-id-ignored": Mutant(
        "the same request makes two jobs", _request_id_ignored, _hurting(replace(CALM, loss=0.1, duplicates=0.1))
    ),
    "intent-after-effect": Mutant(
        "machines are asked for before that is committed",
        _intent_after_effect,
        _hurting(replace(CALM, reclaims=120, commit_kills=0.2, controller_away_s=1.0), Work(jobs=60, bursts=0)),
    ),
    "stockout-not-passed-on": Mutant(
        "a zone that has no machines is asked for ever",
        _stockout_not_passed_on,
        replace(_ON_DEMAND, seconds=120.0, calm_s=600.0, dry_zones=("zone-a",)),
    ),
    "never-given-up": Mutant(
        "a machine that never starts is waited for", _never_given_up, replace(_ON_DEMAND, faults=_NEVER_BOOTS)
    ),
    "never-given-back": Mutant("machines that nobody needs are kept", _never_given_back, _ON_DEMAND),
    "idle-while-it-works": Mutant("a machine with work is given back as idle", _idle_while_it_works, _ON_DEMAND),
    "coming-machines-not-counted": Mutant(
        "machines are asked for again while they start", _coming_machines_not_counted, _ON_DEMAND
    ),
    "strays-kept": Mutant(
        "machines that no row knows are kept",
        _strays_kept,
        replace(_ON_DEMAND, calm_s=1_500.0, faults=replace(CALM, late_machines=0.5, stockouts=0.5)),
    ),
    "gang-in-part": Mutant(
        "a gang is placed in part", _gang_in_part, _hurting(CALM, Work(bursts=20, burst=30, run_s=20))
    ),
    "retry-before-the-gang-is-gone": Mutant(
        "a gang is tried again while members run", _retry_before_the_gang_is_gone, _hurting(CALM, _FAILING)
    ),
    "terminal-state-overwritten": Mutant(
        "a late report alters an end", _terminal_state_overwritten, _hurting(replace(_CUTS, loss=0.1), _BUSY)
    ),
    "preemption-charged-as-failure": Mutant(
        "a lost machine costs a failure", _preemption_charged_as_failure, _hurting(_DAEMONS, _BUSY)
    ),
    "failures-are-free": Mutant("budgets do not end", _failures_are_free, _hurting(CALM, _FAILING)),
    "endpoint-kept": Mutant("endpoints outlive their attempt", _endpoint_kept, _hurting(CALM)),
    "journal-left-out": Mutant("a transition is not written down", _journal_left_out, _hurting(CALM)),
    "overcommitted": Mutant("room is given twice", _overcommitted, _hurting(CALM, Work(bursts=20, burst=30, run_s=20))),
    "quota-ignored": Mutant(
        "a user gets more than its quota", _quota_ignored, _hurting(CALM, Work(bursts=20, burst=30, run_s=60))
    ),
    "children-forgotten": Mutant(
        "children of a job that is stopped go on",
        _children_forgotten,
        _hurting(CALM, Work(jobs=120, bursts=0, children=0.5, terminations=200, run_s=20)),
    ),
    "failure-counts-as-success": Mutant(
        "an exit with 1 counts as 0", _success_of_one_is_success_of_all, _hurting(CALM, _FAILING)
    ),
}
"""By name."""
