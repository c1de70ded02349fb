"""Owns the attempts of one worker, whoever asks for them: a controller's desired set, or callers of its own API."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from fluster.cluster.worker.attempts import Attempts
from fluster.cluster.worker.build import Site
from fluster.cluster.worker.cache import DEFAULT_CAP_BYTES, default_cache_dir
from fluster.cluster.worker.delivery import Delivery, StaysHere
from fluster.cluster.worker.ending import StopReason
from fluster.cluster.worker.folder import Folders, Notes, lean
from fluster.cluster.worker.gpu import GpuInventory, Gpus
from fluster.cluster.worker.jobusers import JobUsers, UserRange
from fluster.cluster.worker.lifecycle import GRACE_S, Attempt, Phase
from fluster.cluster.worker.ports import Ports
from fluster.cluster.worker.provision import Provision
from fluster.cluster.worker.runtime import Runtime
from fluster.cluster.worker.standalone import JobState, LogPiece, follow_files, job_spec, job_state
from fluster.cluster.worker.turns import Turns
from fluster.cluster.worker.variables import Surroundings
from fluster.errors import AlreadyExists, JobNotFound
from fluster.rpc.gen.fluster.cluster.v1.controller_pb import DesiredAttempt, ObservedAttempt
from fluster.rpc.gen.fluster.cluster.v1.types_pb import EntrypointSpec, EnvironmentSpec, ResourceSpec

# Ended standalone jobs that can still be asked about; the oldest beyond that are deleted.
_ENDED_JOBS_KEPT = 1000


class JobManager:
    """The attempts of one worker. All methods are called on one event loop.

    Args:
        runtime: What runs them; closed with the manager.
        max_concurrent_jobs: How many of `submit_job` run at a time, the rest waits; under a controller the worker
            reports it and the controller keeps to it.
        state_dir: Where attempts are kept; those found there are adopted. `None`: a temporary directory, removed by
            `close` with everything that runs in it.
        surroundings: What attempts are told; default: a standalone worker's.
        gpus: To be handed out.
        python: The runtime's interpreter, if not this one.
        delivery: Where logs and results go; default: they stay here.
        on_change: Called with `urgent` when `observed` differs.
        may_start: Whether a process may be started now; what may not is reported as lost. Default: always.
        cache_dir: Of environments and workspaces; default: this user's on this machine, shared by its workers.
        cache_cap_bytes: What environments may take there.
        users: Whose processes attempts are to be, for a process that is root's; default: its own user's.
    """

    def __init__(
        self,
        runtime: Runtime,
        max_concurrent_jobs: int = 10,
        *,
        state_dir: Path | str | None = None,
        surroundings: Surroundings | None = None,
        gpus: GpuInventory | None = None,
        python: str | None = None,
        delivery: Delivery | None = None,
        on_change: Callable[[bool], None] | None = None,
        may_start: Callable[[], bool] = lambda: True,
        cache_dir: Path | None = None,
        cache_cap_bytes: int = DEFAULT_CAP_BYTES,
        users: UserRange | None = None,
    ) -> None:
        if max_concurrent_jobs < 1:
            raise ValueError(f"max_concurrent_jobs must be at least 1, got {max_concurrent_jobs}")
        self.max_concurrent_jobs = max_concurrent_jobs
        self._state_dir = None if state_dir is None else Path(state_dir)
        self._temporary: str | None = None
        gpus = gpus or GpuInventory()
        around = surroundings or Surroundings(worker_id="standalone", base=dict(os.environ), has_gpus=gpus.count > 0)
        delivery = delivery or StaysHere()
        # A name that nobody can have made before: this directory is shared with other users.
        elsewhere = Path(tempfile.gettempdir(), f"fluster-cache-{secrets.token_hex(8)}")
        cache = cache_dir or default_cache_dir(self._state_dir or elsewhere)
        job_users = JobUsers(users)
        provision = Provision(delivery, around.base, directory=cache, cap_bytes=cache_cap_bytes, users=job_users)
        self._site = Site(runtime, delivery, Ports(), Gpus(gpus), around, provision, job_users, python, may_start)
        self._on_change = on_change or (lambda _urgent: None)
        self._turns = Turns(max_concurrent_jobs)
        self._opening: asyncio.Task[Attempts] | None = None

    async def open(self) -> Attempts:
        """Adopts what an earlier daemon left. The other methods do it at need; repeating it is harmless."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    async def close(self) -> None:
        """Lets go of the attempts, which go on unless their directory is a temporary one."""
        if self._opening is not None:
            attempts = await self.open()
            if self._temporary is not None:
                await self.end_all(StopReason.LEAVING, grace_s=0.0)
            await attempts.close()
        await self._site.runtime.close()
        if self._temporary is not None:
            await asyncio.to_thread(shutil.rmtree, self._temporary, ignore_errors=True)

    async def failed(self) -> None:
        """Raises what no part of the worker expected, if that ever comes. The daemon is then to be started again."""
        await (await self.open()).failed()

    # Under a controller.

    async def reconcile(self, desired: Sequence[DesiredAttempt]) -> None:
        """Starts, stops and drops what brings the attempts here to the desired set; returns before that is done."""
        await (await self.open()).reconcile(desired)

    async def observed(self) -> list[ObservedAttempt]:
        """Every attempt as its controller is to see it."""
        return (await self.open()).observed()

    async def running(self) -> int:
        """How many attempts run, or wait to."""
        return sum(1 for attempt in (await self.open()).all() if not attempt.over)

    async def end_all(self, reason: StopReason, *, grace_s: float = GRACE_S) -> None:
        """Stops every attempt and returns once nothing of any runs; their ends are reported."""
        attempts = await self.open()
        await attempts.stop_all(reason, grace_s=grace_s)
        await attempts.wait_over()

    # Standalone.

    async def submit_job(
        self,
        job_id: str,
        entrypoint: bytes | Sequence[str] | EntrypointSpec,
        env: Mapping[str, str] | None = None,
        *,
        environment: EnvironmentSpec | None = None,
        resources: ResourceSpec | None = None,
        timeout_s: float | None = None,
    ) -> JobState:
        """Accepts a job, which starts when fewer than `max_concurrent_jobs` run. The same id again is the same job.

        Args:
            job_id: Made by the caller; names a directory.
            entrypoint: Bytes of a pickled `(fn, args, kwargs)`, a command line, or either as a message.
            env: Variables, added to those of `environment`.
            environment: What its process finds around it.
            resources: Its limits.
            timeout_s: Bounds it from its start.

        Raises:
            ValueError: The id, a variable or the entrypoint breaks its rule.
            AlreadyExists: Another job has this id.
        """
        attempts = await self.open()
        spec = job_spec(job_id, entrypoint, env or {}, environment, resources, timeout_s)
        known = attempts.get(job_id)
        if known is None:
            _forget_old(attempts)
            known = attempts.accept(job_id, spec, Notes(standalone=True, accepted_at=time.time()))
        elif known.spec != lean(spec):
            raise AlreadyExists(f"there is another job {job_id!r}: an id names one job")
        return job_state(known)

    async def get_status(self, job_id: str) -> JobState:
        """How the job stands.

        Raises:
            JobNotFound: There is none of this id.
        """
        return job_state(await self._job(job_id))

    async def wait_job(self, job_id: str) -> JobState:
        """How the job ended, once it has.

        Raises:
            JobNotFound: There is none of this id.
        """
        attempt = await self._job(job_id)
        await attempt.wait_ended()
        return job_state(attempt)

    async def stream_logs(
        self, job_id: str, *, follow: bool = True, stdout_offset: int = 0, stderr_offset: int = 0
    ) -> AsyncIterator[LogPiece]:
        """What the job prints, from the offsets on; with `follow` until it has ended.

        Raises:
            JobNotFound: There is none of this id.
        """
        attempt = await self._job(job_id)
        async for piece in follow_files(attempt, (stdout_offset, stderr_offset), follow=follow):
            yield piece

    async def kill_job(self, job_id: str, force: bool = False) -> None:
        """Ends the job's process tree: SIGTERM and after 10 s SIGKILL, or SIGKILL at once. Repeating it is harmless.

        Raises:
            JobNotFound: There is none of this id.
        """
        attempt = await self._job(job_id)
        await attempt.stop(StopReason.REQUESTED, grace_s=0.0 if force else GRACE_S)

    async def _open(self) -> Attempts:
        if self._state_dir is None:
            self._temporary = tempfile.mkdtemp(prefix="fluster-worker-")
        folders = Folders(Path(self._temporary) if self._temporary else self._state_dir or Path())
        if self._site.users.there:
            folders.open_ways()
        attempts = Attempts(folders, self._site, changed=self._on_change, turns=self._turns)
        await attempts.open()
        return attempts

    async def _job(self, job_id: str) -> Attempt:
        attempt = (await self.open()).get(job_id)
        if attempt is None:
            raise JobNotFound(job_id, f"no job {job_id!r} on this worker")
        return attempt


def _forget_old(attempts: Attempts) -> None:
    ended = [each for each in attempts.all() if each.notes.standalone and each.phase is Phase.ENDED]
    for attempt in sorted(ended, key=lambda each: each.notes.accepted_at)[:-_ENDED_JOBS_KEPT]:
        attempts.drop(attempt)
