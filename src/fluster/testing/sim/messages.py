"""What workers and controller tell each other, as values: the messages of `controller.proto` that matter here.

Nobody alters them. They are not frozen because making a frozen value takes three times as long, and they are made by
the hundred thousand.
"""

from __future__ import annotations

from dataclasses import dataclass

from fluster.cluster.controller.core.events import Observed
from fluster.cluster.controller.core.rows import Resources
from fluster.cluster.ids import AllocationId, JobId
from fluster.cluster.worker.decide import Answer
from fluster.testing.sim.programs import Program


@dataclass(slots=True)
class RegisterRequest:
    """RegisterWorker."""

    worker_id: str
    incarnation: str
    allocation_id: AllocationId
    resources: Resources
    credential: str


@dataclass(slots=True)
class RegisterAnswer:
    """What comes back."""

    epoch: int
    controller: str
    lease_s: float


@dataclass(slots=True)
class SyncRequest:
    """SyncWorker."""

    worker_id: str
    credential: str
    incarnation: str
    seq: int
    known_epoch: int
    known_controller: str
    observed: tuple[Observed, ...]
    wait_s: float
    desired_version: int


@dataclass(slots=True)
class AttemptSpec:
    """What a worker is told of an attempt. `chooses_port`: the others of its gang wait for its port."""

    job_id: JobId
    task: int
    number: int
    program: Program
    chooses_port: bool


@dataclass(slots=True)
class DesiredAttempt:
    """One attempt of the desired set; `spec` only where the worker did not name it."""

    uid: str
    stop: bool
    spec: AttemptSpec | None


@dataclass(slots=True)
class SyncAnswer:
    """What comes back."""

    head: Answer
    desired: tuple[DesiredAttempt, ...] = ()
