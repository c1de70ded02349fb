"""Runs attempts as process trees of this machine. What outlives a worker is found again by what its shim wrote."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from fluster.cluster.attempt import files, proc
from fluster.cluster.attempt.cgroup import Bounds
from fluster.cluster.attempt.request import StartRequest
from fluster.cluster.attempt.user import hand_over
from fluster.cluster.worker.cgroup import WorkerCgroups, find_cgroups
from fluster.cluster.worker.followed import Followed, FollowedAttempts, NotStarted
from fluster.cluster.worker.pidfd import end_of_process
from fluster.cluster.worker.remains import RunningRecord, end_remains, find_shim, read_exit, write_fault
from fluster.cluster.worker.runtime import TIME_LIMIT_GRACE_S, AttemptStart, ExitRecord, Gone, LogFiles, Observation
from fluster.cluster.worker.zygote import Zygote, ZygoteDied, environment_of_zygotes
from fluster.cluster.worker.zygotes import NoZygote, Zygotes

_log = logging.getLogger(__name__)

_START_TRIES = 3
_UID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{proc.MARKER_ROOM - 1}}}")
# Read by the interpreter, the loader or the allocator when they start: in a fork it is too late to set them.
_READ_AT_START = ("PYTHON", "LD_", "GLIBC_", "MALLOC_")


class ProcessRuntime:
    """The runtime that needs nothing but Linux.

    Args:
        name: Tells this worker's control groups from another's; a restarted worker has the same.
        python: Interpreter of the zygote and of callables that ask for no other; `None`: this process's.
        cgroups: Where attempts get control groups; `None`: the best this machine has.
        cpu_quota: Attempts get no more than their cpu, even when cores are idle.
        lifeline_fd: Once it reads end of file, attempts, shims and zygotes end at once.
        time_limit_grace_s: Between SIGTERM and SIGKILL when an attempt's time is over.
        lease: File that says until when attempts may run; `None`: for as long as they like.
        subreaper: Makes this process the parent of what its zygotes leave behind when they die.
    """

    def __init__(
        self,
        name: str = "worker",
        *,
        python: str | None = None,
        cgroups: WorkerCgroups | None = None,
        cpu_quota: bool = False,
        lifeline_fd: int | None = None,
        time_limit_grace_s: float = TIME_LIMIT_GRACE_S,
        lease: Path | None = None,
        subreaper: bool = True,
    ) -> None:
        self._python = python or sys.executable
        self._cgroups = find_cgroups(name) if cgroups is None else cgroups
        self._cpu_quota = cpu_quota
        self._time_limit_grace_s = time_limit_grace_s
        self._lease = lease
        self._zygotes = Zygotes(self._python, self._cgroups, lifeline_fd)
        self._requests = 0
        self._attempts = FollowedAttempts()
        if subreaper:
            proc.become_subreaper()

    @property
    def name(self) -> str:
        """`process`."""
        return "process"

    @property
    def images(self) -> None:
        """It has no containers."""

    @property
    def enforcement(self) -> str:
        """What holds memory limits here: `v2`, `v1` or `none` (sampled)."""
        return self._cgroups.enforcement

    async def prepare(self) -> None:
        """Starts the zygote, and removes control groups that attempts of an earlier worker left.

        Raises:
            ZygoteDied: The interpreter cannot run the job runtime.
        """
        if self._zygotes.own is None:
            self._cgroups.remove_leftovers()
        await self._zygotes.get()

    async def start(self, attempt: AttemptStart) -> Observation:
        """Starts the attempt, or gives the process that this uid already has, and its end if it has ended.

        `Gone`: it had begun, or was about to, when its shim was killed.

        Raises:
            ValueError: The uid would not fit into a file name or an environment.
        """
        if not _UID.fullmatch(attempt.uid):
            raise ValueError(f"attempt uid {attempt.uid!r} must match {_UID.pattern}")
        followed = self._attempts.follow(attempt.uid, attempt.directory, lambda each: self._live(each, attempt))
        observed = await followed.observed()
        if isinstance(observed, Gone) and not (attempt.directory / files.RUNNING).exists():
            message = "the attempt was given up earlier and must not be started again"
            return write_fault(attempt.directory, message, now=time.time())
        return observed

    async def adopt(self, uid: str, directory: Path) -> Observation:
        """Finds an attempt by what its shim wrote; whatever is left of one without a shim is ended first."""
        return await self._attempts.follow(uid, directory, lambda each: self._live(each, None)).observed()

    async def observe(self, uid: str) -> Observation:
        """The present state; of an attempt that is being started, the state it starts with."""
        return await self._attempts.known(uid).observed()

    async def wait(self, uid: str) -> ExitRecord | Gone:
        """Returns within milliseconds of the attempt's end; any number of callers."""
        return await self._attempts.wait(uid)

    async def stop(self, uid: str, grace_s: float = 10.0) -> None:
        """SIGTERM to the tree now, SIGKILL after `grace_s`; returns at once; repeating may only shorten the grace."""
        await self._attempts.stop(uid, grace_s)

    def logs(self, uid: str) -> LogFiles:
        """Where the attempt's output goes; the files exist once it runs."""
        return self._attempts.logs(uid)

    async def forget(self, uid: str) -> None:
        """Drops what is kept of an ended attempt (not its directory); one that has not ended is kept."""
        self._attempts.forget(uid)

    async def close(self) -> None:
        """Ends the zygote and lets go of the attempts, which go on; who waits for one of them is cancelled."""
        await self._attempts.close()
        await self._zygotes.close()
        self._cgroups.remove_leftovers()

    async def _live(self, attempt: Followed, start: AttemptStart | None) -> ExitRecord | Gone:
        """One attempt from its start, or from being found, to its end."""
        record = await (self._find(attempt) if start is None else self._start(attempt, start))
        if record is not None:
            attempt.begin(record.running())
            await end_of_process(record.shim, record.shim_started)
            proc.reap(record.shim)
        return read_exit(attempt.directory) or await end_remains(attempt.uid, attempt.directory)

    async def _find(self, attempt: Followed) -> RunningRecord | None:
        """The live shim, if it has one."""
        if not attempt.directory.is_dir() or (attempt.directory / files.EXIT).exists():
            return None
        return await find_shim(attempt.directory)

    async def _start(self, attempt: Followed, start: AttemptStart) -> RunningRecord | None:
        """The shim that now runs it; `None` if it has ended already."""
        if start.command is None and not (start.directory / files.ENTRYPOINT).is_file():
            raise NotStarted(f"there is no entrypoint in {start.directory}")
        if start.user is not None and not (start.directory / files.RUNNING).exists():
            await asyncio.to_thread(hand_over, start.directory, start.user)
        problem = ""
        for _ in range(_START_TRIES):
            try:
                zygote, argv = await self._parent(start)
                reply = await zygote.launch(self._request(start, argv))
            except ZygoteDied as death:
                # The request may have been carried out: a second one then meets the first one's lock.
                problem = str(death)
                continue
            if "reaped" in reply and not (start.directory / files.RUNNING).exists():
                raise NotStarted("the attempt's shim was killed before it began")
            if "known" in reply or "ended" in reply or "reaped" in reply:
                return await self._find(attempt)
            if "fault" in reply:
                raise NotStarted(reply["fault"])
            return RunningRecord.from_fields(reply)
        raise NotStarted(problem)

    async def _parent(self, start: AttemptStart) -> tuple[Zygote, tuple[str, ...] | None]:
        """The zygote that forks the attempt, and what the fork executes; nothing where it calls the entrypoint itself.

        Raises:
            ZygoteDied: There is none.
        """
        if start.command is not None:
            return await self._zygotes.get(), start.command
        python = start.python or self._python
        venv = Path(python).parents[1] if start.is_shared else None
        inherited = os.environ if venv is None else environment_of_zygotes(venv)
        # Packages and interpreters of a job's choice may run code as soon as they start: its own user starts them.
        has_zygote = start.user is None or (python == self._python and venv is None)
        if has_zygote and _read_at_start(start.environment) == _read_at_start(inherited):
            try:
                return await self._zygotes.get(python, venv), None
            except (ZygoteDied, NoZygote, OSError) as problem:
                # Whatever is wrong with the interpreter is then seen by the attempt, and told in its own words.
                _log.info("attempt %s starts fresh: %s", start.uid, problem)
        # -P: a file of the working directory must not stand in for a module of the job runtime.
        own = start.directory if start.user is None else start.directory / files.BOX
        arguments = (str(own), json.dumps(start.import_path))
        return await self._zygotes.get(), (python, "-P", "-m", "fluster.cluster.attempt.main", *arguments)

    def _request(self, start: AttemptStart, argv: tuple[str, ...] | None) -> StartRequest:
        self._requests += 1
        limits = start.limits
        return StartRequest(
            number=self._requests,
            uid=start.uid,
            directory=start.directory,
            argv=argv,
            interpreter=argv is not None and start.command is None,
            environment={**start.environment, proc.MARKER: start.uid},
            working_directory=start.working_directory,
            import_path=start.import_path,
            bounds=Bounds(limits.cpu, self._cpu_quota, limits.memory_bytes, limits.pids),
            time_s=limits.time_s,
            grace_s=self._time_limit_grace_s,
            lease=self._lease,
            user=start.user,
            groups=start.groups,
        )


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_AT_START)}
