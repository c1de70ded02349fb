"""Rules that hold after every event, whatever happened before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TypeVar

from fluster.cluster.controller.core.index import (
    index_allocation,
    index_attempt,
    index_endpoint,
    index_job,
    index_parent,
    index_task,
    index_user,
    index_worker,
)
from fluster.cluster.controller.core.rows import (
    ENDED_STATES,
    PROCESS_STATES,
    AllocationRow,
    AttemptRow,
    AttemptState,
    Changes,
    Charge,
    EndpointRow,
    JobRow,
    Row,
    TaskRow,
    TokenRow,
    UserRow,
    WorkerRow,
)
from fluster.cluster.controller.core.state import State, has_process
from fluster.cluster.ids import JobId
from fluster.cluster.states import TaskState

Rows = Mapping[tuple[type, object], Row]
R = TypeVar("R", bound=Row)


def of_kind(rows: Rows, kind: type[R]) -> list[R]:
    return [row for row in rows.values() if isinstance(row, kind)]


def rebuild(rows: Rows) -> State:
    """The state a restarted controller makes of what is stored."""
    state = State()
    jobs = {row.job_id: row for row in of_kind(rows, JobRow)}
    for token in of_kind(rows, TokenRow):
        state.tokens[token.token_id] = token
    for user in of_kind(rows, UserRow):
        index_user(state, user)
    for job in jobs.values():
        if job.outcome is None:
            index_job(state, job)
            above = job.parent
            while above is not None and (parent := jobs[above].parent) is not None:
                index_parent(state, above, parent)
                above = parent
    for task in sorted(of_kind(rows, TaskRow), key=lambda task: task.index):
        if task.job_id in state.jobs:
            index_task(state, task)
    for attempt in sorted(of_kind(rows, AttemptRow), key=lambda attempt: attempt.number):
        if attempt.job_id in state.jobs:
            index_attempt(state, attempt)
    for worker in of_kind(rows, WorkerRow):
        index_worker(state, worker)
    for allocation in of_kind(rows, AllocationRow):
        index_allocation(state, allocation, 0.0)
    for endpoint in of_kind(rows, EndpointRow):
        index_endpoint(state, endpoint, 0.0)
    return state


def check(state: State, rows: Rows, *, shrunk: Collection[str] = ()) -> None:
    """Checks the state after an event.

    Args:
        state: With finished jobs dropped.
        rows: All that was ever written.
        shrunk: Workers that came to offer less than they hold.
    """
    _what_is_in_memory_is_what_the_rows_say(state, rows)
    _a_task_has_at_most_one_process(state)
    _no_worker_holds_more_than_it_has(state, shrunk)
    _gangs_are_whole(state)
    _a_round_is_charged_once_and_budgets_hold(state)
    _endpoints_are_of_live_attempts(state)
    _tasks_tell_what_their_attempts_are(state)
    _a_job_that_is_to_stop_starts_nothing(state)


_FROM_ROWS = (
    *("jobs", "tasks", "history", "attempts", "workers", "allocations", "endpoints", "tokens", "users"),
    *("held", "children", "parents", "jobs_by_user", "pending", "endpoints_by_name", "endpoints_by_attempt"),
)


def _what_is_in_memory_is_what_the_rows_say(state: State, rows: Rows) -> None:
    fresh = rebuild(rows)
    fresh.settings = state.settings
    for name in _FROM_ROWS:
        assert getattr(state, name) == getattr(fresh, name), name
    for worker in state.workers.values():
        assert state.room(worker) == fresh.room(worker)
    assert state.ready_workers() == fresh.ready_workers()
    assert state.machines() == fresh.machines()
    for token in state.tokens.values():
        assert state.token_uses_left(token) == fresh.token_uses_left(token)
    assert state.endpoint_seen.keys() == fresh.endpoint_seen.keys()
    assert state.last_seen.keys() == state.workers.keys()
    # Not known of what was told before a restart.
    assert state.stopping_since.keys() <= {
        uid for uid, attempt in state.attempts.items() if attempt.stop_cause is not None and has_process(attempt)
    }
    assert state.last_words.keys() <= state.workers.keys()


def _a_task_has_at_most_one_process(state: State) -> None:
    for attempts in state.history.values():
        assert [a.number for a in attempts] == list(range(1, len(attempts) + 1))
        assert all(a.state in ENDED_STATES for a in attempts[:-1])


def _no_worker_holds_more_than_it_has(state: State, shrunk: Collection[str]) -> None:
    for worker in state.workers.values():
        held = [a for a in state.attempts.values() if a.worker_id == worker.worker_id and a.state not in ENDED_STATES]
        assert {attempt.uid for attempt in held} == state.held.get(worker.worker_id, {}).keys()
        if worker.worker_id in shrunk:
            continue
        here = [attempt for attempt in held if attempt.placed_at >= worker.registered_at]
        needs = [state.jobs[attempt.job_id].resources for attempt in here]
        assert sum(need.cpu_milli for need in needs) <= worker.resources.cpu_milli
        assert sum(need.memory_bytes for need in needs) <= worker.resources.memory_bytes
        assert sum(need.gpu for need in needs) <= worker.resources.gpu
        assert len(needs) <= worker.resources.slots
        assert state.free(worker).cpu_milli == worker.resources.cpu_milli - sum(need.cpu_milli for need in needs)


def _gangs_are_whole(state: State) -> None:
    for job in state.jobs.values():
        tasks = state.tasks[job.job_id]
        assert [task.index for task in tasks] == list(range(job.num_tasks))
        if job.gang:
            assert len({task.attempt for task in tasks}) == 1
            assert len({task.state is TaskState.PENDING for task in tasks}) == 1
            assert not any(task.state.finished() for task in tasks)


def _rounds(state: State, job: JobRow, head: int) -> list[list[AttemptRow]]:
    """The gang's attempts by number."""
    rounds: defaultdict[int, list[AttemptRow]] = defaultdict(list)
    for task in state.gang_tasks(job, head):
        for attempt in state.history.get((job.job_id, task), ()):
            rounds[attempt.number].append(attempt)
    return [rounds[number] for number in sorted(rounds)]


def _a_round_is_charged_once_and_budgets_hold(state: State) -> None:
    for job in state.jobs.values():
        for head in state.gang_heads(job):
            rounds = _rounds(state, job, head)
            closed = [each for each in rounds if all(a.state in ENDED_STATES for a in each)]
            assert len(closed) >= len(rounds) - 1
            charged = [[a.charge for a in each if a.charge is not Charge.NONE] for each in closed]
            assert all(len(each) <= 1 for each in charged), charged
            spent = [charge for each in charged for charge in each]
            assert spent.count(Charge.FAILURE) <= job.retry.max_failures + 1
            assert spent.count(Charge.PREEMPTION) <= job.retry.max_preemptions + 1


def _endpoints_are_of_live_attempts(state: State) -> None:
    for endpoint in state.endpoints.values():
        if endpoint.attempt_uid is not None:
            assert has_process(state.attempts[endpoint.attempt_uid])


_ALIVE = {
    TaskState.ASSIGNED: AttemptState.ASSIGNED,
    TaskState.BUILDING: AttemptState.BUILDING,
    TaskState.RUNNING: AttemptState.RUNNING,
}


def _tasks_tell_what_their_attempts_are(state: State) -> None:
    for job_id, tasks in state.tasks.items():
        for task in tasks:
            attempt = state.current(job_id, task.index)
            assert task.attempt == (0 if attempt is None else attempt.number)
            if task.state in _ALIVE:
                assert attempt is not None
                # One that has ended shows its last state until its whole gang has.
                assert attempt.state is _ALIVE[task.state] or attempt.state not in PROCESS_STATES
            elif attempt is not None:
                assert attempt.state in ENDED_STATES
            if task.state in (TaskState.SUCCEEDED, TaskState.FAILED):
                assert attempt is not None
                assert attempt.state.value == task.state.value


def _a_job_that_is_to_stop_starts_nothing(state: State) -> None:
    for job_id, job in state.jobs.items():
        states = [task.state for task in state.tasks[job_id]]
        assert not all(each.finished() for each in states), "a job whose tasks have all ended has ended"
        if job.stop_at is not None:
            assert TaskState.PENDING not in states
            for task in range(job.num_tasks):
                attempt = state.current(job_id, task)
                assert attempt is None or not has_process(attempt) or attempt.stop_cause is not None


def check_turn(before: Rows, changes: Changes) -> None:
    """Checks what one event wrote."""
    told = {line.job_id for line in changes.journal}
    for key, row in changes.rows.items():
        old = before.get(key)
        if isinstance(old, JobRow):
            assert old.outcome is None or row == old, "a finished job never changes"
        if isinstance(old, TaskRow) and isinstance(row, TaskRow):
            assert not old.state.finished() or row == old, "a finished task never changes"
        if isinstance(old, AttemptRow) and isinstance(row, AttemptRow) and old.state in ENDED_STATES:
            # Its round decides who is charged.
            assert row == replace(old, charge=row.charge), "an ended attempt never changes"
        if _tells(old, row):
            assert isinstance(row, JobRow | TaskRow)
            assert row.job_id in told, f"no line of history for {row}"


def _tells(old: Row | None, row: Row) -> bool:
    if isinstance(row, JobRow):
        return not isinstance(old, JobRow) or (old.stop_at, old.outcome) != (row.stop_at, row.outcome)
    return isinstance(row, TaskRow) and (not isinstance(old, TaskRow) or old.state is not row.state)


def check_waiting(state: State, reasons: Mapping[JobId, object]) -> None:
    """Every job that waits is told why."""
    for job_id, job in state.jobs.items():
        waits = job.stop_at is None and any(task.state is TaskState.PENDING for task in state.tasks[job_id])
        assert waits == (job_id in reasons), job_id
