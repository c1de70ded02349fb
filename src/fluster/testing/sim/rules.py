"""Rules that hold after every commit, looked at where something changed; and one that looks at everything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from fluster.cluster.controller.core import silence
from fluster.cluster.controller.core.capacity import Use, whole
from fluster.cluster.controller.core.rows import (
    ENDED_STATES,
    AllocationRow,
    AllocationStatus,
    AttemptRow,
    AttemptState,
    Changes,
    Charge,
    EndpointRow,
    JobRow,
    JournalRow,
    TaskRow,
    UserRow,
    WorkerRow,
)
from fluster.cluster.controller.core.state import State, has_process
from fluster.cluster.controller.core.workers import lease_end
from fluster.cluster.ids import AllocationId, AttemptUid, EndpointId, JobId, WorkerId
from fluster.cluster.states import Cause, JobStatus, TaskState, WorkerStatus
from fluster.testing.sim import loading
from fluster.testing.sim.store import MemoryStore
from fluster.testing.sim.story import InvariantBroken

if TYPE_CHECKING:
    from fluster.testing.sim.simulation import Simulation

_FROM_ROWS = (
    *("jobs", "tasks", "history", "attempts", "workers", "allocations", "endpoints", "tokens", "users"),
    *("held", "children", "parents", "jobs_by_user", "pending", "endpoints_by_name", "endpoints_by_attempt"),
)
_ALIVE = {
    TaskState.ASSIGNED: AttemptState.ASSIGNED,
    TaskState.BUILDING: AttemptState.BUILDING,
    TaskState.RUNNING: AttemptState.RUNNING,
}
_TASK_TOLD_BY = {
    TaskState.ASSIGNED: ("TaskPlaced",),
    TaskState.BUILDING: ("TaskAccepted",),
    TaskState.RUNNING: ("TaskStarted",),
    TaskState.PENDING: ("TaskRetried", "GangRetried", "JobLaunched"),
}
_ATTEMPT_TOLD_BY = {
    AttemptState.EXITED: "TaskExited",
    AttemptState.SUCCEEDED: "TaskSucceeded",
    AttemptState.FAILED: "TaskFailed",
    AttemptState.STOPPED: "TaskStopped",
}
_NEVER_RAN = ("JobStopRequested",)


_LATE_S = 60.0
"""A controller that stood still, or has no room to commit, looks at the time later."""


_DARK_S = 35.0
"""After so long of a blackout everybody has been silent for longer than anybody who is heard."""
_BACK_S = 30.0
"""So soon after a blackout nobody has to have been heard yet: requests on broken connections run out first."""


class Rules:
    """Looks at each commit, beside the rows that were there before.

    Attributes:
        commits: How many were looked at.
    """

    def __init__(self, sim: Simulation, store: MemoryStore) -> None:
        self.commits = 0
        self._sim = sim
        self._store = store
        self._names: dict[str, JobId] = {}
        self._children: defaultdict[JobId, list[JobId]] = defaultdict(list)
        self._held: defaultdict[WorkerId, dict[AttemptUid, None]] = defaultdict(dict)
        self._placed_at: dict[AttemptUid, float] = {}
        self._uses: defaultdict[str, Use] = defaultdict(Use)
        self._reserving: dict[AttemptUid, JobRow] = {}
        self._unfinished: defaultdict[str, set[JobId]] = defaultdict(set)
        self._endpoints: defaultdict[AttemptUid, dict[EndpointId, None]] = defaultdict(dict)
        self._offered: defaultdict[str, dict[AllocationId, None]] = defaultdict(dict)

    def before(self, changes: Changes) -> None:
        """What a commit may not write."""
        told: defaultdict[str, list[JournalRow]] = defaultdict(list)
        for line in changes.journal:
            told[line.job_id].append(line)
        for row in changes.rows.values():
            if isinstance(row, AttemptRow):
                old = self._store.attempts[row.job_id].get((row.task, row.number))
                self._attempt(old, row, told[row.job_id])
            elif isinstance(row, TaskRow):
                self._task(self._store.tasks[row.job_id].get(row.index), row, told[row.job_id])
            elif isinstance(row, JobRow):
                self._job(self._store.jobs.get(row.job_id), row, told[row.job_id])
            elif isinstance(row, WorkerRow):
                self._worker(row, told[""])
            elif isinstance(row, AllocationRow):
                self._allocation(row, told[""])
            elif isinstance(row, EndpointRow) and row.attempt_uid is not None:
                self._endpoints[row.attempt_uid][row.endpoint_id] = None
        for endpoint_id in changes.deleted_endpoints:
            endpoint = self._store.kept.get((EndpointRow, endpoint_id))
            if isinstance(endpoint, EndpointRow) and endpoint.attempt_uid is not None:
                self._endpoints[endpoint.attempt_uid].pop(endpoint_id, None)

    def after(self, changes: Changes) -> None:
        """What the rows may not be once it is written."""
        self.commits += 1
        touched: dict[JobId, None] = {}
        users: dict[str, None] = {}
        for row in changes.rows.values():
            if isinstance(row, AttemptRow):
                touched[row.job_id] = users[self._count_attempt(row)] = None
                self._no_endpoint_is_left(row)
            elif isinstance(row, TaskRow):
                touched[row.job_id] = None
            elif isinstance(row, JobRow):
                touched[row.job_id] = users[self._count_job(row)] = None
                self._descendants(row)
            elif isinstance(row, UserRow):
                users[row.name] = None
        for job_id in touched:
            self._whole_job(self._store.jobs[job_id])
        for worker_id in changes.touched_workers:
            self._room(worker_id)
        for user in users:
            self._quota(user)

    def _count_attempt(self, row: AttemptRow) -> str:
        """Notes what its user has; who that is."""
        job = self._store.jobs[row.job_id]
        if row.state in ENDED_STATES:
            if self._reserving.pop(row.uid, None) is not None:
                self._uses[job.user].add(job.resources, -1)
        elif row.uid not in self._reserving:
            self._reserving[row.uid] = job
            self._uses[job.user].add(job.resources)
        return job.user

    def _count_job(self, row: JobRow) -> str:
        """Notes what its user has; who that is."""
        if row.outcome is None:
            self._unfinished[row.user].add(row.job_id)
        else:
            self._unfinished[row.user].discard(row.job_id)
        return row.user

    # Single rows

    def _attempt(self, old: AttemptRow | None, row: AttemptRow, told: list[JournalRow]) -> None:
        held = self._held[row.worker_id]
        if row.state in ENDED_STATES:
            held.pop(row.uid, None)
            self._is_true(old, row)
        else:
            held[row.uid] = None
            self._placed_at[row.uid] = row.placed_at
        if old is not None and old.state in ENDED_STATES and row != replace(old, charge=row.charge):
            raise InvariantBroken(
                "terminal states are final", f"{old} became {row}", job=row.job_id, worker=row.worker_id
            )

        kind = _ATTEMPT_TOLD_BY.get(row.state)
        ended = kind is not None and (old is None or old.state is not row.state)
        if ended and not any((line.kind, line.task, line.attempt) == (kind, row.task, row.number) for line in told):
            self._broken("the journal explains every transition", f"{old} became {row}", row)

    def _is_true(self, old: AttemptRow | None, row: AttemptRow) -> None:
        """What the row says of the end is what happened."""
        truth = self._sim.truth
        if row.state is AttemptState.SUCCEEDED and row.uid not in truth.ended_well:
            self._broken("a success is one", f"{row.uid} did not end with 0", row)
        if row.charge is Charge.FAILURE and not (row.uid in truth.failed or row.cause == "time_limit"):
            self._broken("only the work's own failures are charged as such", f"{row.uid}: {row}", row)
        if row.charge is Charge.PREEMPTION and row.uid in truth.failed and row.cause in ("exit", "signal"):
            self._broken("failures are charged as failures", f"{row.uid}: {row}", row)

    def _broken(self, rule: str, text: str, row: AttemptRow) -> None:
        raise InvariantBroken(rule, text, job=row.job_id, worker=row.worker_id)

    def _task(self, old: TaskRow | None, row: TaskRow, told: list[JournalRow]) -> None:
        if old is not None and old.state.finished() and row != old:
            raise InvariantBroken("terminal states are final", f"{old} became {row}", job=row.job_id)
        if old is None or old.state is not row.state:
            kinds = _TASK_TOLD_BY.get(row.state, _NEVER_RAN)
            explained = any(line.kind in kinds and line.task in (-1, row.index) for line in told)
            # The end of one that ran is told by its attempt.
            if not explained and not (row.state.finished() and row.attempt):
                raise InvariantBroken("the journal explains every transition", f"{old} became {row}", job=row.job_id)

    def _job(self, old: JobRow | None, row: JobRow, told: list[JournalRow]) -> None:
        if old is not None and old.outcome is not None and row != old:
            raise InvariantBroken("terminal states are final", f"{old} became {row}", job=row.job_id)
        kinds = {line.kind for line in told}
        if row.outcome is not None and f"Job{row.outcome.capitalize()}" not in kinds:
            raise InvariantBroken("the journal explains every transition", f"{old} became {row}", job=row.job_id)
        if self._names.setdefault(row.name, row.job_id) != row.job_id:
            raise InvariantBroken("one request makes one job", f"{row.name}: {row.job_id}", job=row.job_id)
        if old is None and row.parent is not None:
            self._children[row.parent].append(row.job_id)

    def _worker(self, row: WorkerRow, told: list[JournalRow]) -> None:
        old = self._store.kept.get((WorkerRow, row.worker_id))
        before = old.status if isinstance(old, WorkerRow) else None
        if before is not row.status and not any(line.worker_id == row.worker_id for line in told):
            raise InvariantBroken("the journal explains every transition", f"{old} became {row}", worker=row.worker_id)

    def _allocation(self, row: AllocationRow, told: list[JournalRow]) -> None:
        old = self._store.kept.get((AllocationRow, row.allocation_id))
        before = old.status if isinstance(old, AllocationRow) else None
        name = str(row.allocation_id)
        if before is not row.status and not any(line.message.split(":")[0] == name for line in told):
            raise InvariantBroken("the journal explains every transition", f"{old} became {row}", worker=name)
        held = self._held[WorkerId(name)]
        if held and before is not row.status and any(f"{name}: idle" in line.message for line in told):
            raise InvariantBroken("machines with work are not idle", f"{name} has {[*held]}", worker=name)
        self._offers_hold(row)
        lost = any((line.kind, line.worker_id) == ("WorkerLost", name) for line in told)
        if not lost and any(line.message.startswith(f"{name}: silent") for line in told):
            self._is_no_blackout(row)

    def remembers(self, acknowledged: Mapping[str, JobId]) -> None:
        """What an earlier controller answered is on the disk that a later one finds."""
        for name, job_id in acknowledged.items():
            job = self._store.jobs.get(job_id)
            if job is None or job.name != name:
                raise InvariantBroken("an acknowledged launch is never lost", f"{name}: {job}", job=job_id)

    def asks_for(self, allocation_id: AllocationId) -> None:
        """Whoever has a machine made has noted it before: the next controller must know what to give back."""
        if (AllocationRow, allocation_id) not in self._store.kept:
            text = f"{allocation_id} is asked for, and that is not committed"
            raise InvariantBroken("no machine without its record", text, worker=allocation_id)

    def _offers_hold(self, row: AllocationRow) -> None:
        there = self._offered[row.backend]
        if row.status is AllocationStatus.GONE:
            there.pop(row.allocation_id, None)
        else:
            there[row.allocation_id] = None
        for offer in self._sim.settings.offers:
            if offer.backend == row.backend and len(there) > offer.at_most:
                raise InvariantBroken("no more machines than an offer has", f"{[*there]}", worker=row.allocation_id)

    def _is_no_blackout(self, row: AllocationRow) -> None:
        """Nobody is given back for silence that is the controller's own."""
        network, now, name = self._sim.network, self._sim.clock.now, str(row.allocation_id)
        dark = now - network.dark_since >= _DARK_S and now < network.dark_until + _BACK_S
        machine = self._sim.machines.get(name)
        if not dark or machine is None or self._heard_of(row.backend) <= silence.FEW:
            return
        own_trouble_at = max(machine.well_since, network.lost_at.get(name, 0.0))
        if not machine.is_well or now - own_trouble_at < self._sim.settings.silent_release_s:
            return  # its silence may be its own
        worker = self._store.kept.get((WorkerRow, name))
        if isinstance(worker, WorkerRow) and worker.status is WorkerStatus.READY:
            raise InvariantBroken("silence of all proves nothing", f"{name} is given back", worker=name)

    def _heard_of(self, backend: str) -> int:
        """Machines of a backend whose workers have been heard once."""
        rows = (row for row in self._store.kept.values() if isinstance(row, AllocationRow) and row.backend == backend)
        ready = {row.allocation_id for row in rows if row.status is AllocationStatus.READY}
        return sum(1 for name in ready if (WorkerRow, name) in self._store.kept)

    # Together

    def _whole_job(self, job: JobRow) -> None:
        tasks = self._store.tasks[job.job_id]
        attempts = self._store.attempts[job.job_id]
        states = [tasks[index].state for index in range(job.num_tasks)]
        rounds: defaultdict[tuple[int, int], list[AttemptRow]] = defaultdict(list)
        for (task, number), attempt in attempts.items():
            rounds[0 if job.gang else task, number].append(attempt)
            if number < tasks[task].attempt and attempt.state not in ENDED_STATES:
                self._broken("a task has one attempt at a time", f"{attempt}, and {tasks[task]}", attempt)
        self._gangs(job, tasks.values(), rounds)
        self._budgets(job, rounds)
        for task, state in enumerate(states):
            self._task_says_what_its_attempt_is(tasks[task], attempts.get((task, tasks[task].attempt)), state)
        if (job.outcome is None) is all(state.finished() for state in states):
            raise InvariantBroken("a job ends with its last task", f"{job.outcome}: {states}", job=job.job_id)
        if job.outcome is JobStatus.SUCCEEDED and not all(state is TaskState.SUCCEEDED for state in states):
            raise InvariantBroken("status follows from the tasks", f"{job.outcome}: {states}", job=job.job_id)
        if job.stop_at is not None and TaskState.PENDING in states:
            raise InvariantBroken("a job that is to stop starts nothing", f"{states}", job=job.job_id)

    def _gangs(self, job: JobRow, tasks: Iterable[TaskRow], rounds: dict[tuple[int, int], list[AttemptRow]]) -> None:
        if not job.gang:
            return
        whole = (
            len({task.attempt for task in tasks}) == 1
            and len({task.state is TaskState.PENDING for task in tasks}) == 1
            and all(len(members) == job.num_tasks for members in rounds.values())
        )
        if not whole and job.stop_at is None:
            raise InvariantBroken("gangs are placed whole", f"{[str(task) for task in tasks]}", job=job.job_id)

    def _budgets(self, job: JobRow, rounds: dict[tuple[int, int], list[AttemptRow]]) -> None:
        spent: defaultdict[int, list[Charge]] = defaultdict(list)
        for (head, _), members in rounds.items():
            charged = [member.charge for member in members if member.charge is not Charge.NONE]
            if charged and all(member.state in ENDED_STATES for member in members):
                if len(charged) > 1:
                    raise InvariantBroken("a round is charged once", f"{members}", job=job.job_id)
                spent[head] += charged
        for charges in spent.values():
            failures, preemptions = charges.count(Charge.FAILURE), charges.count(Charge.PREEMPTION)
            if failures > job.retry.max_failures + 1 or preemptions > job.retry.max_preemptions + 1:
                raise InvariantBroken("budgets hold", f"{charges} of {job.retry}", job=job.job_id)

    def _task_says_what_its_attempt_is(self, task: TaskRow, attempt: AttemptRow | None, state: TaskState) -> None:
        ok = task.attempt == (0 if attempt is None else attempt.number)
        if state in _ALIVE:
            ok &= attempt is not None and (attempt.state is _ALIVE[state] or not has_process(attempt))
        elif attempt is not None:
            ok &= attempt.state in ENDED_STATES
        if not ok:
            raise InvariantBroken("a task says what its attempt is", f"{task}, {attempt}", job=task.job_id)

    def _descendants(self, job: JobRow) -> None:
        """Whoever stops a job, or lets it end without success, stops all below it."""
        if job.stop_cause is not Cause.TERMINATED and job.outcome in (None, JobStatus.SUCCEEDED):
            return
        below = list(self._children[job.job_id])
        while below:
            child = self._store.jobs[below.pop()]
            below += self._children[child.job_id]
            if child.outcome is None and child.stop_at is None:
                raise InvariantBroken("descendants stop with their ancestor", f"{child}, {job}", job=child.job_id)

    def _no_endpoint_is_left(self, row: AttemptRow) -> None:
        if not has_process(row) and self._endpoints.get(row.uid):
            self._broken("endpoints are of live attempts", f"{row.uid} left {[*self._endpoints[row.uid]]}", row)

    def _room(self, worker_id: WorkerId) -> None:
        worker = self._store.kept.get((WorkerRow, worker_id))
        if not isinstance(worker, WorkerRow):
            return
        # What was placed before is of an earlier machine of that name: it is gone, and its gang is not yet.
        held = [uid for uid in self._held[worker_id] if self._placed_at[uid] >= worker.registered_at]
        cpu = memory = 0
        for uid in held:
            need = self._reserving[uid].resources
            cpu, memory = cpu + need.cpu_milli, memory + need.memory_bytes
        have = worker.resources
        if cpu > have.cpu_milli or memory > have.memory_bytes or len(held) > have.slots:
            raise InvariantBroken("no worker holds more than it has", f"{[*held]} on {worker_id}", worker=worker_id)

    def _quota(self, user: str) -> None:
        """No user has more than it may."""
        row = self._store.kept.get((UserRow, user))
        if isinstance(row, UserRow):
            use, quota = self._uses[user], row.quota
            has = (use.cpu_milli, use.memory_bytes, use.gpu, len(self._unfinished[user]))
            may = (quota.cpu_milli, quota.memory_bytes, quota.gpu, quota.jobs)
            if any(limit is not None and there > limit for there, limit in zip(has, may, strict=True)):
                raise InvariantBroken("no user is over quota", f"{user} has {has} of {may}")

    def _is_counted_right(self) -> None:
        """What was counted commit by commit is what there is."""
        assert self._reserving.keys() == {uid for held in self._held.values() for uid in held}
        for user, use in self._uses.items():
            assert use == whole(job.resources for job in self._reserving.values() if job.user == user)

    # Everything

    def all(self, state: State) -> None:
        """What memory holds is what the rows say."""
        self._is_counted_right()
        limit_s = lease_end(state.settings, 0.0) + _LATE_S
        frozen = self._sim.controller is not None and self._sim.controller.frozen
        for worker in () if frozen else state.workers.values():
            silent_s = self._sim.clock.now - state.last_seen[worker.worker_id]
            if worker.status is WorkerStatus.READY and silent_s > limit_s:
                text = f"silent for {silent_s:.0f} s"
                raise InvariantBroken("silent workers are given up", text, worker=worker.worker_id)
        fresh = loading.load(self._store, self._sim.settings, self._sim.clock.now, None)
        for name in _FROM_ROWS:
            if getattr(state, name) != getattr(fresh, name):
                raise InvariantBroken("memory is what the rows say", name)
        for worker in state.workers.values():
            if state.room(worker) != fresh.room(worker):
                raise InvariantBroken("memory is what the rows say", "room", worker=worker.worker_id)
        if state.ready_workers() != fresh.ready_workers():
            raise InvariantBroken("memory is what the rows say", "ready workers")
        if state.machines() != fresh.machines():
            raise InvariantBroken("memory is what the rows say", "machines")
        for worker_id, held in state.held.items():
            if held.keys() != self._held[worker_id].keys():
                raise InvariantBroken("memory is what the rows say", "held", worker=worker_id)
        for endpoint in state.endpoints.values():
            if endpoint.attempt_uid is not None and not has_process(state.attempts[endpoint.attempt_uid]):
                raise InvariantBroken("endpoints are of live attempts", f"{endpoint}", job=endpoint.job_id or "")


def check_quiet(sim: Simulation) -> None:
    """What holds once faults have stopped and all has ended."""
    state = sim.controller.state if sim.controller is not None else None
    if state is None:
        raise InvariantBroken("a controller is there", "none is")
    if state.held or state.attempts or state.waiting:
        raise InvariantBroken("everything idle is released", f"{[*state.held]} {[*state.waiting]}")
    if state.children or state.parents or state.endpoints_by_attempt:
        raise InvariantBroken("everything idle is released", f"{state.children} {state.endpoints_by_attempt}")
    for process in sim.truth.running():
        raise InvariantBroken(
            "nothing runs that nobody wants", process.uid, job=process.job_id, worker=process.machine.name
        )
    for row in state.allocations.values():
        if row.status is not AllocationStatus.READY or row.allocation_id not in sim.backend.vms:
            raise InvariantBroken("no record without its machine", f"{row}", worker=row.allocation_id)
        if state.offer_of(row) is not None:
            raise InvariantBroken("machines that nobody needs are given back", f"{row}", worker=row.allocation_id)
    for allocation_id in sim.backend.vms:
        if allocation_id not in state.allocations:
            raise InvariantBroken("no machine without its record", allocation_id, worker=allocation_id)
    sim.rules.remembers(sim.clients.acknowledged)
    for job_id in sim.clients.acknowledged.values():
        if sim.store.jobs[job_id].outcome is None:
            raise InvariantBroken("everything ends once faults have stopped", f"{job_id} has not", job=job_id)
    for worker in state.workers.values():
        if worker.status is not WorkerStatus.READY:
            raise InvariantBroken("workers return", f"{worker}", worker=worker.worker_id)
