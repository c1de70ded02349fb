"""A controller's state, a store and a clock in plain values, and the events that tests tell them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tests.core.invariants import check, check_turn, check_waiting, rebuild

from fluster.cluster.controller.core.desired import desired
from fluster.cluster.controller.core.events import (
    AllocationObserved,
    AllocationWanted,
    EndpointRegistered,
    Event,
    Exit,
    JobsSubmitted,
    MachinesForgotten,
    NewJob,
    Observed,
    TerminationRequested,
    TimePassed,
    TokenCreated,
    WorkerRegistered,
    WorkerSynced,
)
from fluster.cluster.controller.core.index import drop_finished
from fluster.cluster.controller.core.jobs import job_status
from fluster.cluster.controller.core.reconcile import intents
from fluster.cluster.controller.core.rows import (
    AllocationStatus,
    AttemptRow,
    AttemptState,
    Changes,
    EndpointRow,
    JobRow,
    JournalRow,
    RequestRow,
    Resources,
    Retry,
    Row,
    TaskRow,
    TokenRow,
)
from fluster.cluster.controller.core.schedule import Decision, schedule
from fluster.cluster.controller.core.state import Settings, State
from fluster.cluster.controller.core.transitions import apply
from fluster.cluster.ids import AllocationId, AttemptUid, EndpointId, JobId, Namespace, WorkerId
from fluster.cluster.states import Cause, JobStatus, TaskState

GB = 10**9
START = 1_000.0
PORT = 29_500


@dataclass
class Store:
    """What commits leave behind."""

    rows: dict[tuple[type, object], Row] = field(default_factory=dict)
    journal: list[JournalRow] = field(default_factory=list)

    def commit(self, changes: Changes) -> None:
        self.rows.update(changes.rows)
        for endpoint_id in changes.deleted_endpoints:
            self.rows.pop((EndpointRow, endpoint_id), None)
        for token_id in changes.deleted_tokens:
            self.rows.pop((TokenRow, token_id), None)
        self.journal += changes.journal


class Scenario:
    """Events in, rows out. Each event is a turn of its own; rules that always hold are checked after each."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.state = State(settings=settings or Settings())
        self.store = Store()
        self.decision = Decision()
        self.now = START
        self.seen: dict[str, dict[AttemptUid, Observed]] = {}
        self._names = 0

    def apply(self, event: Event) -> Changes:
        before = dict(self.store.rows)
        changes = apply(self.state, event, self.now)
        self.store.commit(changes)
        check_turn(before, changes)
        drop_finished(self.state, [row.job_id for row in changes.rows.values() if isinstance(row, JobRow)])
        check(self.state, self.store.rows)
        return changes

    def turn(self) -> Decision:
        """What the loop does after events: places what fits, decides about machines."""
        before, stood = self.decision, self.decision.stands(self.state, self.now)
        self.decision = schedule(self.state, self.now)
        if stood:  # the loop would have made no pass
            assert (self.decision.placed, self.decision.hold) == ([], before.hold)
            assert self._told(self.decision) == self._told(before)
        for placed in self.decision.placed:
            self.apply(placed)
        for intent in intents(self.state, self.now):
            self.apply(intent)
        self.state.waiting = self.decision.waiting
        self.state.hold = self.decision.hold
        check_waiting(self.state, self.decision.waiting)
        return self.decision

    def _told(self, decision: Decision) -> dict[JobId, object]:
        """What is said of those that wait; without the words where they tell seconds, which go by."""
        told = decision.waiting.items()
        timeless = decision.told_until == math.inf
        return {job_id: waiting if timeless else (waiting.would_fit, waiting.position) for job_id, waiting in told}

    def wait(self, seconds: float) -> Decision:
        """Time passes, then a turn."""
        self.now += seconds
        self.apply(TimePassed())
        return self.turn()

    def restart(self) -> None:
        """The controller is killed and comes back with what is stored."""
        state = rebuild(self.store.rows)
        state.settings = self.state.settings
        state.last_seen = dict.fromkeys(state.workers, self.now)
        state.endpoint_seen = dict.fromkeys(state.endpoint_seen, self.now)
        self.state = state
        self.decision = Decision()

    # Workers

    def worker(
        self,
        name: str,
        *,
        cpu: float = 4,
        memory: int = 16 * GB,
        disk: int = 100 * GB,
        gpu: int = 0,
        slots: int = 10,
        gpu_variant: str = "",
        tpu_variant: str = "",
        allocation: str = "",
        incarnation: str = "",
        joined_by: str = "",
        credential: str = "c" * 64,
    ) -> WorkerId:
        """A worker's daemon starts; what an earlier one of it reported is forgotten."""
        worker_id = WorkerId(name)
        self._names += 1
        self.apply(
            WorkerRegistered(
                worker_id=worker_id,
                credential_sha256=credential,
                incarnation=incarnation or f"{name}#{self._names}",
                address="127.0.0.1:7000",
                advertise_host=f"{name}.host",
                host_id=name,
                allocation_id=AllocationId(allocation),
                resources=Resources(int(cpu * 1000), memory, disk, gpu, slots, gpu_variant, tpu_variant),
                cgroup="v2",
                joined_by=joined_by,
            )
        )
        self.seen[name] = {}
        return worker_id

    def machine(self, allocation: str, *hosts: str, cpu: float = 4, tpu_variant: str = "") -> None:
        """An allocation whose workers, one on each host, have joined."""
        self.allocate(allocation, *hosts, cpu=cpu)
        for host in hosts:
            self.worker(host, cpu=cpu, tpu_variant=tpu_variant, allocation=allocation)

    def allocate(self, allocation: str, *hosts: str, cpu: float = 4) -> None:
        """Machines that were asked for are there."""
        wanted = AllocationWanted(AllocationId(allocation), "cloud", Resources(int(cpu * 1000)))
        self.apply(wanted)
        self.apply(AllocationObserved(wanted.allocation_id, AllocationStatus.READY, hosts))

    def gone(self, allocation: str) -> None:
        """The backend says that the machines are gone."""
        self.apply(AllocationObserved(AllocationId(allocation), AllocationStatus.GONE))

    def forget_machines(self) -> None:
        """The whole cluster was shut down and is started again."""
        self.apply(MachinesForgotten())

    def sync(self, name: str, *observed: Observed) -> Changes:
        """The worker tells its whole observed set; no arguments: what it told last."""
        if observed:
            self.seen[name] |= {each.uid: each for each in observed}
        worker = self.state.workers[WorkerId(name)]
        changes = self.apply(WorkerSynced(worker.worker_id, worker.incarnation, tuple(self.seen[name].values())))
        wanted = {each.attempt.uid for each in desired(self.state, worker.worker_id)}
        self.seen[name] = {uid: each for uid, each in self.seen[name].items() if uid in wanted}
        return changes

    # Jobs

    def launch(
        self,
        name: str,
        *,
        tasks: int = 1,
        gang: bool = True,
        cpu: float = 1,
        memory: int = GB,
        gpu: int = 0,
        gpu_variant: str = "",
        tpu_variant: str = "",
        slice_hosts: int = 0,
        priority: int = 1,
        retry: Retry | None = None,
        parent: str | None = None,
        user: str = "",
        scheduling_timeout_s: float | None = None,
    ) -> JobId:
        """A job whose id is its name."""
        return self.submit(
            JobRow(
                job_id=JobId(name),
                name=name,
                namespace=Namespace("default"),
                owner=f"user:{user}" if user else "admin",
                user=user,
                parent=None if parent is None else JobId(parent),
                depth=0 if parent is None else self.job(parent).depth + 1,
                priority=priority,
                num_tasks=tasks,
                gang=gang,
                resources=Resources(int(cpu * 1000), memory, gpu=gpu, gpu_variant=gpu_variant, tpu_variant=tpu_variant),
                slice_hosts=slice_hosts,
                retry=retry or Retry(),
                timeout_s=None,
                scheduling_timeout_s=scheduling_timeout_s,
                ports=(),
                submitted_at=self.now,
            )
        )[0]

    def user(self, name: str, **quota: int | None) -> None:
        """A token is made for the user; what is not named of the quota stays as it was."""
        self._names += 1
        token = TokenRow(f"t{self._names}", "0" * 64, 0, math.inf, self.now, user=name, namespace=Namespace("default"))
        request = RequestRow("admin", f"request-{self._names}", "CreateToken", "0" * 64, token.token_id, self.now)
        self.apply(TokenCreated(token, request, "admin", tuple(quota.items())))

    def submit(self, *jobs: JobRow) -> list[JobId]:
        self._names += 1
        request = RequestRow("admin", f"request-{self._names}", "LaunchJobs", "0" * 64, "", self.now)
        self.apply(JobsSubmitted(tuple(NewJob(job, b"spec") for job in jobs), request))
        return [job.job_id for job in jobs]

    def terminate(self, name: str) -> Changes:
        return self.apply(TerminationRequested(JobId(name), "admin"))

    def run(self, name: str, *, tasks: Iterable[int] | None = None) -> None:
        """A turn places the job, and its workers report its tasks running, rank 0 first."""
        self.turn()
        for task in range(self.job(name).num_tasks) if tasks is None else tasks:
            self.start(name, task)

    def start(self, name: str, task: int = 0, *, port: int = PORT) -> Changes:
        """The worker reports the task's process running."""
        attempt = self.attempt(name, task)
        return self.sync(attempt.worker_id, Observed(attempt.uid, AttemptState.RUNNING, self.now, master_port=port))

    def accept(self, name: str, task: int = 0, *, state: AttemptState = AttemptState.ASSIGNED) -> Changes:
        """The worker reports that it has the task, without a process yet."""
        attempt = self.attempt(name, task)
        return self.sync(attempt.worker_id, Observed(attempt.uid, state, None))

    def exit(
        self,
        name: str,
        task: int = 0,
        *,
        code: int | None = 0,
        cause: Cause | None = None,
        message: str = "",
        stopped: bool = False,
        fluster_fault: bool = False,
        user_fault: bool = False,
        finished_at: float | None = None,
        started: bool = True,
    ) -> Changes:
        """The worker reports the task's end."""
        attempt = self.attempt(name, task)
        if code not in (0, None) and cause is None:
            cause = Cause.TERMINATED if stopped else Cause.EXIT
        how = Exit(
            exit_code=code,
            cause=cause,
            error_message=message,
            finished_at=self.now if finished_at is None else finished_at,
            stop_requested=stopped,
            fluster_fault=fluster_fault,
            user_fault=user_fault,
        )
        started_at = attempt.started_at if attempt.started_at is not None else self.now
        seen = Observed(attempt.uid, AttemptState.RUNNING, started_at, how)
        if not started:
            seen = replace(seen, state=attempt.state, started_at=None)
        return self.sync(attempt.worker_id, seen)

    def register(self, name: str, endpoint: str, *, job: str | None = None, task: int = 0) -> EndpointRow:
        """An endpoint: of a job's task, or kept by a client's lease."""
        self._names += 1
        attempt = None if job is None else self.attempt(job, task)
        row = EndpointRow(
            endpoint_id=EndpointId(endpoint),
            name=name,
            namespace=Namespace("default"),
            address="127.0.0.1:1234",
            owner="admin" if job is None else f"job:{job}",
            job_id=None if attempt is None else attempt.job_id,
            attempt_uid=None if attempt is None else attempt.uid,
            registered_at=self.now,
        )
        self.apply(EndpointRegistered(row, None))
        return row

    # What a client could see

    def job(self, name: str) -> JobRow:
        row = self.store.rows[JobRow, JobId(name)]
        assert isinstance(row, JobRow)
        return row

    def status(self, name: str) -> JobStatus:
        return job_status(self.job(name), [task.state for task in self.tasks(name)])

    def tasks(self, name: str) -> list[TaskRow]:
        return sorted(
            (row for row in self.store.rows.values() if isinstance(row, TaskRow) and row.job_id == name),
            key=lambda row: row.index,
        )

    def states(self, name: str) -> list[TaskState]:
        return [task.state for task in self.tasks(name)]

    def attempts(self, name: str, task: int = 0) -> list[AttemptRow]:
        """All of the task, oldest first."""
        rows = (row for row in self.store.rows.values() if isinstance(row, AttemptRow))
        return sorted((row for row in rows if (row.job_id, row.task) == (name, task)), key=lambda row: row.number)

    def attempt(self, name: str, task: int = 0) -> AttemptRow:
        """The latest of the task."""
        return self.attempts(name, task)[-1]

    def all_attempts(self, name: str) -> list[AttemptRow]:
        """The latest of each task."""
        return [self.attempt(name, task) for task in range(self.job(name).num_tasks)]

    def reason(self, name: str) -> str:
        return self.state.waiting[JobId(name)].reason

    def kinds(self, name: str) -> list[str]:
        """What the journal tells of the job."""
        return [line.kind for line in self.store.journal if line.job_id == name]
