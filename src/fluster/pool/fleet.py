"""The jobs of a pool's workers: launched, watched, replaced and ended by one thread."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fluster.actor.types import ActorEndpoint
from fluster.cluster.observed import JobInfo
from fluster.cluster.states import Cause
from fluster.cluster.types import JobRequest
from fluster.cluster.waiting import job_failed
from fluster.errors import FlusterError, JobFailed, JobNotFound
from fluster.pool.dispatch import Dispatcher
from fluster.pool.tasks import Task
from fluster.pool.worker import Worker

if TYPE_CHECKING:
    from fluster.cluster.client import Cluster
    from fluster.cluster.ids import JobId

_log = logging.getLogger(__name__)

MAX_START_FAILURES: Final = 5
"""After so many workers in a row that ended before they were there, with none there, the pool gives up."""
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.1, 30.0
HOPELESS: Final = frozenset({Cause.BUILD_FAILED, Cause.UNSCHEDULABLE})
"""Starting again would end the same way."""
SETTLE_S: Final = 2.0
"""So long the job of a worker that does not answer any more may take to end by itself."""
VERDICT_S: Final = 30.0
"""So long the cause of a worker's death is waited for."""
SAY_ALIVE_S: Final = 5.0
_LOOK_UP_S, _LOOK_UP_LATER_S, _EARLY_S = 0.02, 0.2, 2.0
_POLL_STARTING_S = 0.25
_POLL_RUNNING_S = 5.0
_POLLS_AT_ONCE = 16
_JOIN_S = 5.0
_END_S = 30.0
"""So long the end of jobs is waited for: one whose machine is lost ends much later."""
_RELIEF_S = 0.005
_MAX_GROUP = 1_000


@dataclass(slots=True, eq=False)
class Member:
    """One worker's job.

    Attributes:
        job_id: The job.
        index: In the pool; a replacement has that of the one it replaces.
        launched_at: Monotonic, as all times here.
        worker: The connection, once it is there.
        joined: It has taken its place.
        polled_at: When its job was last looked at.
    """

    job_id: JobId
    index: int
    launched_at: float
    worker: Worker | None = None
    joined: bool = False
    polled_at: float = 0.0


@dataclass(slots=True, eq=False)
class Casualty:
    """A worker that is gone, until its job has ended.

    Attributes:
        job_id: The job.
        since: When it was lost.
        task: What it dies of, if that is the end of the task.
        terminated: Its job was told to end.
        polled_at: When it was last looked at.
    """

    job_id: JobId
    since: float
    task: Task | None
    terminated: bool = False
    polled_at: float = 0.0


class Fleet:
    """Keeps as many workers as there should be.

    Args:
        cluster: Where.
        name: What workers register.
        request: Makes the request of the worker with an index.
        size: How many.
        max_retries: How many deaths of workers a task survives.
    """

    def __init__(
        self, cluster: Cluster, name: str, request: Callable[[int], JobRequest], size: int, max_retries: int
    ) -> None:
        self.dispatcher = Dispatcher(max_retries, self._on_lost)
        self._cluster = cluster
        self._name = name
        self._request = request
        self._target = size
        self._members: list[Member] = []
        self._leaving: list[Member] = []
        self._lost: deque[tuple[Worker, Task | None]] = deque()
        self._casualties: list[Casualty] = []
        self._start_failures = 0
        self._launch_at = 0.0
        self._failure: FlusterError | None = None
        self._closing = self._aborted = False
        self._wake = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="fluster-pool-fleet", daemon=True),
            threading.Thread(target=self._attend, name="fluster-pool-attend", daemon=True),
        ]
        self._over = threading.Event()

    @property
    def target(self) -> int:
        """How many workers there should be."""
        return self._target

    @property
    def failure(self) -> FlusterError | None:
        """Why no worker can be started."""
        return self._failure

    @property
    def over(self) -> bool:
        """Whether all is ended."""
        return self._over.is_set()

    def start(self) -> None:
        """Launches the workers; from then on they are kept."""
        for begin in range(0, self._target, _MAX_GROUP):
            indices = range(begin, min(begin + _MAX_GROUP, self._target))
            job_ids = self._cluster.launch_group([self._request(index) for index in indices])
            now = time.monotonic()
            self._members += [Member(job_id, index, now) for job_id, index in zip(job_ids, indices, strict=True)]
        for thread in self._threads:
            thread.start()

    def scale_to(self, size: int) -> None:
        """Has so many workers, in a while."""
        self._target = size
        self._start_failures = 0
        self._wake.set()

    def close(self) -> None:
        """Ends the workers once no task is without an end."""
        self._closing = True
        self._wake.set()

    def abort(self) -> None:
        """Ends at once; tasks fail."""
        self._closing = self._aborted = True
        self._wake.set()

    def join(self) -> None:
        """Waits until all is ended."""
        for thread in self._threads:
            thread.join()

    def why_not(self) -> str:
        """What the first worker that is not there waits for."""
        for member in tuple(self._members):
            if member.joined:
                continue
            try:
                return f"job {member.job_id}: {self._cluster.why(member.job_id)}"
            except (FlusterError, TimeoutError, RuntimeError) as error:
                return f"job {member.job_id}: {error}"
        return ""

    def _on_lost(self, worker: Worker, task: Task | None) -> None:
        self._lost.append((worker, task))
        self._wake.set()

    # The thread

    def _run(self) -> None:
        try:
            while not self._closing or not (self._aborted or self.dispatcher.is_idle):
                pause = self._step()
                self._wake.wait(pause)
                self._wake.clear()
        except BaseException as error:
            closed = isinstance(error, RuntimeError) and self._cluster._rpc.closed
            self._give_up(FlusterError("the pool's cluster was closed" if closed else f"the pool failed: {error!r}"))
            if not closed:
                raise
        finally:
            self._finish()

    def _step(self) -> float:
        """Brings what is nearer to what should be; gives how long to wait until the next time."""
        try:
            self._heed_lost()
            self._heed_casualties()
            self._find_workers()
            self._poll_members()
            self._adjust()
        except (FlusterError, TimeoutError) as error:
            _log.warning("the pool %s goes on as soon as its cluster answers: %s", self._name, error)
            return 1.0
        now = time.monotonic()
        if any(not member.joined for member in self._members):
            newest = max(member.launched_at for member in self._members if not member.joined)
            return _LOOK_UP_S if now - newest < _EARLY_S else _LOOK_UP_LATER_S
        if len(self._members) < self._target and self._failure is None:
            return max(_LOOK_UP_S, self._launch_at - now)
        if self._casualties or self._leaving or self._closing:
            return _LOOK_UP_S
        return 1.0

    def _heed_lost(self) -> None:
        while self._lost:
            worker, task = self._lost.popleft()
            now = time.monotonic()
            member = next((each for each in self._members if each.worker is worker), None)
            if member is not None:
                self._members.remove(member)
                _log.info("worker %s of pool %s is lost and replaced", worker.job_id, self._name)
                if worker.served:
                    self._start_failures = 0
                elif not worker.pid or now - member.launched_at < _EARLY_S:
                    self._started_in_vain(self._poll(member.job_id), worker)
            self._leaving = [each for each in self._leaving if each.worker is not worker]
            self._casualties.append(Casualty(worker.job_id, now, task))

    def _heed_casualties(self) -> None:
        """Jobs of workers that are gone: what they died of, and that they are gone altogether."""
        now = time.monotonic()
        for casualty in tuple(self._casualties):
            if now - casualty.polled_at < _POLL_STARTING_S / 5:
                continue
            casualty.polled_at = now
            info = self._poll(casualty.job_id)
            late = now - casualty.since > VERDICT_S
            if info is not None and not info.status.finished() and not late:
                if now - casualty.since > SETTLE_S and not casualty.terminated:
                    casualty.terminated = True
                    self._terminate(casualty.job_id)
                continue
            self._casualties.remove(casualty)
            if casualty.task is not None:
                self._condemn(casualty.task, casualty.job_id, info)

    def _condemn(self, task: Task, job_id: JobId, info: JobInfo | None) -> None:
        text = f"the task killed {task.deaths} workers; the last one, job {job_id}, ended"
        if info is None:
            error = JobFailed(job_id, message=f"{text} in an unknown way")
        else:
            end = job_failed(info)
            facts = [str(end.cause)] if end.cause else []
            facts += [f"exit code {end.exit_code}"] if end.exit_code is not None else []
            text = f"{text} ({', '.join(facts)}): {end.remote_message}" if facts else text
            error = JobFailed(
                job_id,
                cause=end.cause,
                exit_code=end.exit_code,
                remote_message=end.remote_message,
                last_lines=end.last_lines,
                info=info,
                message=text,
            )
        self.dispatcher.condemned(task, error)

    def _find_workers(self) -> None:
        missing = {member.job_id: member for member in self._members if member.worker is None}
        if not missing:
            return
        for endpoint in self._cluster.lookup_endpoints(self._name):
            member = missing.pop(endpoint.job_id, None)
            if member is not None and endpoint.access_key:
                member.worker = Worker(ActorEndpoint.of(endpoint), self.dispatcher)
                member.worker.start()

    def _poll_members(self) -> None:
        """Looks at jobs whose end no connection tells of."""
        now = time.monotonic()
        for member in self._members:
            member.joined = member.joined or member.worker in self.dispatcher.workers
        due = [m for m in self._members if now - m.polled_at > (_POLL_RUNNING_S if m.joined else _POLL_STARTING_S)]
        for member in sorted(due, key=lambda each: each.polled_at)[:_POLLS_AT_ONCE]:
            member.polled_at = now
            info = self._poll(member.job_id)
            if info is not None and not info.status.finished():
                continue
            if member.worker is not None:
                member.worker.close()  # it is lost, and that is heeded
                continue
            self._members.remove(member)
            self._started_in_vain(info)

    def _started_in_vain(self, info: JobInfo | None, worker: Worker | None = None) -> None:
        """A worker ended before it could do anything."""
        self._start_failures += 1
        pause = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (self._start_failures - 1))
        self._launch_at = time.monotonic() + pause
        was_there = worker is not None and worker.pid != 0
        text = (info.error_message if info is not None else None) or str(worker.error if worker else "its job is gone")
        _log.warning("a worker of pool %s ended as soon as it was started: %s", self._name, text)
        hopeless = info is not None and info.cause in HOPELESS
        if (hopeless or self._start_failures >= MAX_START_FAILURES) and not was_there and not self.dispatcher.workers:
            self._give_up(self._cannot_start(info, text))

    def _cannot_start(self, info: JobInfo | None, text: str) -> FlusterError:
        message = f"no worker of the pool could be started; the last of {self._start_failures} that ended: {text}"
        if info is None or not info.status.finished():
            return FlusterError(message)
        end = job_failed(info)
        return JobFailed(
            info.job_id,
            cause=end.cause,
            exit_code=end.exit_code,
            remote_message=end.remote_message,
            last_lines=end.last_lines,
            info=info,
            message=message,
        )

    def _give_up(self, failure: FlusterError) -> None:
        self._failure = failure
        self.dispatcher.fail_all(failure)

    def _adjust(self) -> None:
        """Launches what lacks, and lets go what is too much."""
        while len(self._members) > self._target:
            member = self._superfluous()
            self._members.remove(member)
            if member.worker is None:
                self._terminate(member.job_id)
            else:
                self.dispatcher.leave(member.worker)
                self._leaving.append(member)
        for member in tuple(self._leaving):
            assert member.worker is not None
            if not member.worker.frames:
                self._leaving.remove(member)
                self._terminate(member.job_id)
                member.worker.close()
        if self._failure is None:
            while len(self._members) < self._target and time.monotonic() >= self._launch_at:
                taken = {member.index for member in self._members}
                index = next(number for number in range(self._target) if number not in taken)
                job_id = self._cluster.launch(self._request(index))
                self._members.append(Member(job_id, index, time.monotonic()))

    def _superfluous(self) -> Member:
        """Those that are not there yet first, then idle ones."""
        for member in reversed(self._members):
            if member.worker is None:
                return member
        ranks = {id(worker): rank for rank, worker in enumerate(self.dispatcher.least_busy())}
        return min(self._members, key=lambda member: ranks.get(id(member.worker), -1))

    def _poll(self, job_id: JobId) -> JobInfo | None:
        try:
            return self._cluster.poll(job_id)
        except JobNotFound:
            return None

    def _terminate(self, job_id: JobId) -> None:
        try:
            self._cluster.terminate(job_id)
        except JobNotFound:
            pass

    def _finish(self) -> None:
        """Ends all jobs and connections."""
        try:
            self.dispatcher.fail_all(self._failure or FlusterError("the pool was shut down"))
            members = self._members + self._leaving
            ended = [member.job_id for member in members] + [each.job_id for each in self._casualties]
            workers = {member.worker for member in members if member.worker is not None}
            for worker in workers | set(self.dispatcher.workers):
                worker.leaving = True
            if not self._cluster._rpc.closed:
                self._end_jobs(ended)
            for worker in workers:
                worker.close()
            for worker in workers:
                worker.join(_JOIN_S)
            for casualty in self._casualties:
                if casualty.task is not None:
                    casualty.task.fail(FlusterError("the pool was shut down"))
        finally:
            self._over.set()
            self.dispatcher.stuck.set()
            self.dispatcher.news.set()

    def _end_jobs(self, job_ids: list[JobId]) -> None:
        try:
            for job_id in job_ids:
                self._terminate(job_id)
            if job_ids:
                self._cluster.wait(job_ids, timeout=_END_S)
        except (FlusterError, TimeoutError, RuntimeError) as error:
            _log.warning("workers of pool %s may not have ended: %s", self._name, error)

    def _attend(self) -> None:
        """Has workers that are stuck give back tasks, as long as others are idle, and lets all know of their pool.

        In a thread of its own, since the other one may have to wait for the cluster.
        """
        stuck, said_at = self.dispatcher.stuck, 0.0
        while not self._over.is_set():
            if stuck.wait(SAY_ALIVE_S):
                stuck.clear()
                while not self._over.is_set() and self.dispatcher.relieve():
                    time.sleep(_RELIEF_S)
            if time.monotonic() - said_at >= SAY_ALIVE_S:
                said_at = time.monotonic()
                for worker in tuple(self.dispatcher.workers):
                    worker.say_alive()
