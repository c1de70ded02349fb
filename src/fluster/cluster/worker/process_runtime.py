"""Runs attempts as process trees of this machine. What outlives a worker is found again by what its shim wrote."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fluster.cluster.attempt import files, proc
from fluster.cluster.attempt.cgroup import Bounds
from fluster.cluster.attempt.record import stop_order
from fluster.cluster.attempt.request import StartRequest
from fluster.cluster.worker.cgroup import WorkerCgroups, find_cgroups
from fluster.cluster.worker.pidfd import end_of_process
from fluster.cluster.worker.remains import RunningRecord, end_remains, find_shim, read_exit, write_fault
from fluster.cluster.worker.runtime import AttemptStart, ExitRecord, Gone, LogFiles, Observation, Running
from fluster.cluster.worker.zygote import ZygoteDied, environment_of_zygotes
from fluster.cluster.worker.zygotes import Zygotes

TIME_LIMIT_GRACE_S = 10.0
_START_TRIES = 3
_UID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{proc.MARKER_ROOM - 1}}}")
# Read by the interpreter, the loader or the allocator when they start: in a fork it is too late to set them.
_READ_AT_START = ("PYTHON", "LD_", "GLIBC_", "MALLOC_")


class _NotStarted(Exception):
    """Nothing ran, by no fault of the user's."""


@dataclass(slots=True, eq=False)
class _Attempt:
    """One attempt as this worker follows it.

    Attributes:
        begun: Whether it runs, or why not, is known.
        end: How it ended.
    """

    uid: str
    directory: Path
    end: asyncio.Future[ExitRecord | Gone]
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    running: Running | None = None


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
        self._attempts: dict[str, _Attempt] = {}
        self._lives: set[asyncio.Task[None]] = set()
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
        followed = self._attempts.get(attempt.uid) or self._follow(attempt.uid, attempt.directory, attempt)
        await followed.begun.wait()
        if followed.running is not None and not followed.end.done():
            return followed.running
        end = await asyncio.shield(followed.end)
        if isinstance(end, Gone) and not (attempt.directory / files.RUNNING).exists():
            message = "the attempt was given up earlier and must not be started again"
            return write_fault(attempt.directory, message, now=time.time())
        return end

    async def adopt(self, uid: str, directory: Path) -> Observation:
        """Finds an attempt by what its shim wrote; whatever is left of one without a shim is ended first."""
        if uid not in self._attempts:
            self._follow(uid, directory, None)
        return await self.observe(uid)

    async def observe(self, uid: str) -> Observation:
        """The present state; of an attempt that is being started, the state it starts with."""
        attempt = self._known(uid)
        await attempt.begun.wait()
        if attempt.running is not None and not attempt.end.done():
            return attempt.running
        return await asyncio.shield(attempt.end)

    async def wait(self, uid: str) -> ExitRecord | Gone:
        """Returns within milliseconds of the attempt's end; any number of callers."""
        return await asyncio.shield(self._known(uid).end)

    async def stop(self, uid: str, grace_s: float = 10.0) -> None:
        """SIGTERM to the tree now, SIGKILL after `grace_s`; returns at once; repeating may only shorten the grace."""
        attempt = self._known(uid)
        if not order(attempt.directory, stop_order(grace_s)):
            await attempt.begun.wait()  # too early, by milliseconds, or too late
            order(attempt.directory, stop_order(grace_s))

    def logs(self, uid: str) -> LogFiles:
        """Where the attempt's output goes; the files exist once it runs."""
        directory = self._known(uid).directory
        return LogFiles(directory / files.STDOUT, directory / files.STDERR)

    async def forget(self, uid: str) -> None:
        """Drops what is kept of an ended attempt (not its directory); one that has not ended is kept."""
        attempt = self._attempts.get(uid)
        if attempt is not None and attempt.end.done():
            del self._attempts[uid]

    async def close(self) -> None:
        """Ends the zygote and lets go of the attempts, which go on; who waits for one of them is cancelled."""
        for life in self._lives:
            life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)
        self._attempts.clear()
        await self._zygotes.close()
        self._cgroups.remove_leftovers()

    def _known(self, uid: str) -> _Attempt:
        try:
            return self._attempts[uid]
        except KeyError:
            raise LookupError(f"no attempt {uid!r} here: it was never started or adopted, or is forgotten") from None

    def _follow(self, uid: str, directory: Path, start: AttemptStart | None) -> _Attempt:
        attempt = self._attempts[uid] = _Attempt(uid, directory, asyncio.get_running_loop().create_future())
        life = asyncio.create_task(self._live(attempt, start))
        self._lives.add(life)
        life.add_done_callback(self._lives.discard)
        return attempt

    async def _live(self, attempt: _Attempt, start: AttemptStart | None) -> None:
        """One attempt from its start, or from being found, to its end."""
        try:
            record = await (self._find(attempt) if start is None else self._start(attempt, start))
            if record is not None:
                attempt.running = record.running()
                attempt.begun.set()
                await end_of_process(record.shim, record.shim_started)
                proc.reap(record.shim)
            end = read_exit(attempt.directory) or await end_remains(attempt.uid, attempt.directory)
            attempt.end.set_result(end)
        except _NotStarted as fault:
            attempt.end.set_result(write_fault(attempt.directory, str(fault), now=time.time()))
        except Exception as error:
            attempt.end.set_exception(error)
        finally:
            attempt.end.cancel()
            attempt.begun.set()

    async def _find(self, attempt: _Attempt) -> RunningRecord | None:
        """The live shim, if it has one."""
        if not attempt.directory.is_dir() or (attempt.directory / files.EXIT).exists():
            return None
        return await find_shim(attempt.directory)

    async def _start(self, attempt: _Attempt, start: AttemptStart) -> RunningRecord | None:
        """The shim that now runs it; `None` if it has ended already."""
        if start.command is None and not (start.directory / files.ENTRYPOINT).is_file():
            raise _NotStarted(f"there is no entrypoint in {start.directory}")
        problem = ""
        for _ in range(_START_TRIES):
            try:
                zygote = await self._zygotes.get(_zygote_of(start))
                reply = await zygote.launch(self._request(start))
            except ZygoteDied as death:
                # The request may have been carried out: a second one then meets the first one's lock.
                problem = str(death)
                continue
            if "reaped" in reply and not (start.directory / files.RUNNING).exists():
                raise _NotStarted("the attempt's shim was killed before it began")
            if "known" in reply or "ended" in reply or "reaped" in reply:
                return await self._find(attempt)
            if "fault" in reply:
                raise _NotStarted(reply["fault"])
            return RunningRecord.from_fields(reply)
        raise _NotStarted(problem)

    def _request(self, start: AttemptStart) -> StartRequest:
        self._requests += 1
        limits = start.limits
        argv = start.command or self._interpreter(start)
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
        )

    def _interpreter(self, start: AttemptStart) -> tuple[str, ...] | None:
        """The command line of a callable that needs an interpreter of its own; `None` if a fork will do."""
        python = start.python or self._python
        venv = Path(python).parents[1] if start.is_shared else None
        inherited = os.environ if venv is None else environment_of_zygotes(venv)
        has_zygote = start.is_shared or python == self._python
        if has_zygote and _read_at_start(start.environment) == _read_at_start(inherited):
            return None
        # -P: a file of the working directory must not stand in for a module of the job runtime.
        arguments = (str(start.directory), json.dumps(start.import_path))
        return (python, "-P", "-m", "fluster.cluster.attempt.main", *arguments)


def _zygote_of(start: AttemptStart) -> str | None:
    """Interpreter of the environment whose zygote forks a callable; `None`: the worker's own will do."""
    return start.python if start.is_shared and start.command is None else None


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_AT_START)}


def order(directory: Path, order: bytes) -> bool:
    """Writes to the shim's control FIFO; false if no shim reads it."""
    try:
        descriptor = os.open(directory / files.CONTROL, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # not made yet, or without a reader
        return False
    try:
        os.write(descriptor, order)
    except BlockingIOError:
        return True  # full of orders that say the same
    except BrokenPipeError:
        return False  # the shim has ended since it was opened
    finally:
        os.close(descriptor)
    return True
