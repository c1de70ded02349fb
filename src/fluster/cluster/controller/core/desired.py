"""What each worker should run: derived from the attempts it holds."""

from __future__ import annotations

from dataclasses import dataclass

from fluster.cluster.controller.core.rows import AttemptRow, JobRow
from fluster.cluster.controller.core.state import State, has_process
from fluster.cluster.ids import WorkerId


@dataclass(frozen=True, slots=True)
class World:
    """Where an attempt stands in its gang, as distributed training libraries count.

    Attributes:
        size: Tasks of the gang.
        local_rank, local_size: Among the gang's tasks on this worker.
        node_rank: Of this worker among the gang's workers, in order of their first task.
        master_host: Rank 0's worker; empty when it is this one.
        master_port: 0: this worker chooses, and says so.
        avoid_port: The previous attempt's; 0 none.
    """

    size: int
    local_rank: int
    local_size: int
    node_rank: int
    master_host: str
    master_port: int
    avoid_port: int


@dataclass(frozen=True, slots=True)
class Desired:
    """An attempt its worker should hold: to run, or to stop."""

    attempt: AttemptRow
    stop: bool


def desired(state: State, worker_id: WorkerId) -> list[Desired]:
    """The whole set of attempts this worker should know of, in order of placement."""
    found = []
    for attempt in state.held.get(worker_id, {}).values():
        if not has_process(attempt):
            continue
        stop = attempt.stop_cause is not None
        if stop or attempt.observed or _may_start(state, attempt):
            found.append(Desired(attempt, stop))
    return found


def _may_start(state: State, attempt: AttemptRow) -> bool:
    """The members of a gang start once rank 0's worker has chosen the port they meet at, or rank 0 is over."""
    job = state.jobs[attempt.job_id]
    if attempt.task == _head(job, attempt):
        return True
    head = state.current(attempt.job_id, _head(job, attempt))
    return head is None or head.master_port != 0 or not has_process(head)


def _head(job: JobRow, attempt: AttemptRow) -> int:
    return 0 if job.gang else attempt.task


def world_of(state: State, attempt: AttemptRow) -> World:
    """Where the attempt stands in its gang."""
    job = state.jobs[attempt.job_id]
    if not job.gang or job.num_tasks == 1:
        return World(1, 0, 1, 0, "", attempt.master_port, _avoid(state, attempt))
    members = [m for m in (state.current(job.job_id, i) for i in range(job.num_tasks)) if m is not None]
    nodes = list(dict.fromkeys(m.worker_id for m in members))
    here = [m.task for m in members if m.worker_id == attempt.worker_id]
    head = members[0]
    elsewhere = head.worker_id != attempt.worker_id
    host = state.workers[head.worker_id].advertise_host if elsewhere and head.worker_id in state.workers else ""
    return World(
        size=job.num_tasks,
        local_rank=here.index(attempt.task),
        local_size=len(here),
        node_rank=nodes.index(attempt.worker_id),
        master_host=host,
        master_port=head.master_port,
        avoid_port=_avoid(state, head),
    )


def _avoid(state: State, head: AttemptRow) -> int:
    history = state.history[head.job_id, head.task]
    return history[-2].master_port if len(history) > 1 else 0
