"""The worker's end of a zygote: starts it, sends it requests, matches replies, and notices its death."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluster.cluster.attempt import proc
from fluster.cluster.attempt.request import StartRequest, hierarchies_to_json
from fluster.cluster.context import with_absolute_python_path
from fluster.cluster.worker.cgroup import WorkerCgroups
from fluster.cluster.worker.pidfd import end_of_process
from fluster.cluster.worker.variables import venv_variables

READY_TIMEOUT_S = 30.0
_END_TIMEOUT_S = 5.0
_LONGEST_REPLY = 1 << 16


class ZygoteDied(Exception):
    """It ended before it answered; whether the attempt was started is for its files to say."""


class Zygote:
    """One zygote process. Made by `Zygote.start`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._replies = asyncio.StreamReader(limit=_LONGEST_REPLY)
        self._pipes: list[asyncio.BaseTransport] = []
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._forks: set[int] = set()
        self._shims: set[int] = set()
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, python: str, cgroups: WorkerCgroups, lifeline_fd: int | None = None, *, venv: Path | None = None
    ) -> Zygote:
        """A zygote that is warm; of an environment, nothing leads it to the daemon's packages.

        Raises:
            ZygoteDied: It could not be started, or ended or hung while it imported the job runtime.
        """
        zygote = cls(_spawn(python, cgroups, lifeline_fd, environment_of_zygotes(venv)))
        try:
            await zygote._connect()
            async with asyncio.timeout(READY_TIMEOUT_S):
                await asyncio.shield(zygote._ready)
        except BaseException as error:
            await zygote.close()
            if isinstance(error, TimeoutError):
                raise ZygoteDied(f"{python} did not load the job runtime within {READY_TIMEOUT_S:g} s") from error
            raise
        return zygote

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def threads(self) -> int:
        """How many it had when it was ready: more than one, and a fork lacks what the others would do."""
        return int(self._ready.result()["threads"])

    @property
    def alive(self) -> bool:
        """Whether requests still make sense."""
        return self._reader is not None and not self._reader.done()

    async def launch(self, request: StartRequest) -> dict[str, Any]:
        """What the attempt's shim, or the zygote on its behalf, answers.

        Raises:
            ZygoteDied: No answer will come.
        """
        if not self.alive:
            raise ZygoteDied("the zygote has ended")
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[request.number] = answer
        self._requests.write(request.to_frame())
        try:
            return await answer
        finally:
            self._waiting.pop(request.number, None)

    async def close(self) -> None:
        """Ends the zygote; its shims go on, as children of the nearest subreaper."""
        self._requests.close()  # which the zygote takes as the order to end
        try:
            async with asyncio.timeout(_END_TIMEOUT_S):
                await _ended(self._process)
        except TimeoutError:
            self._process.kill()
            await _ended(self._process)
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)
        for pipe in self._pipes:
            pipe.close()
        self._fail_waiting()

    async def _connect(self) -> None:
        loop, process = asyncio.get_running_loop(), self._process
        assert process.stdin is not None
        assert process.stdout is not None
        self._requests, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, process.stdin)
        reading, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(self._replies), process.stdout)
        self._pipes += [self._requests, reading]
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        """Until the last process that could answer is gone: a zygote that died leaves shims that still may."""
        with contextlib.suppress(ValueError):  # a line too long: not one of ours
            while line := await self._replies.readline():
                self._heed(json.loads(line))
        await _ended(self._process)
        await self._collect()
        self._fail_waiting()

    async def _collect(self) -> None:
        """The zygote's children are this process's now: those without an attempt end by themselves, at once."""
        for pid in self._forks:
            with contextlib.suppress(TimeoutError, ProcessLookupError):
                async with asyncio.timeout(_END_TIMEOUT_S):
                    await end_of_process(pid)
        for pid in self._forks | self._shims:
            proc.reap(pid)

    def _heed(self, reply: dict[str, Any]) -> None:
        if "ready" in reply and not self._ready.done():
            self._ready.set_result(reply)
        if "forked" in reply:
            self._forks.add(reply["forked"])
        if "shim" in reply:
            self._forks.discard(reply["shim"])
            self._shims.add(reply["shim"])
        for known in (self._forks, self._shims):
            known.discard(reply.get("reaped", 0))
        answer = self._waiting.get(reply.get("number", 0))
        if answer is not None and not answer.done():
            answer.set_result(reply)

    def _fail_waiting(self) -> None:
        status = self._process.returncode
        for answer in (self._ready, *self._waiting.values()):
            if not answer.done():
                answer.set_exception(ZygoteDied(f"the zygote (pid {self.pid}) ended with status {status}"))
        self._ready.exception()  # seen: nobody may be waiting for it


def environment_of_zygotes(venv: Path | None = None) -> dict[str, str]:
    """This process's environment without what names this worker, and with room for an attempt's marker.

    Of a zygote of an environment: as its attempts have it.
    """
    if venv is not None:
        inherited = venv_variables(os.environ, venv)
    else:
        # It runs in another directory than this process.
        environment = with_absolute_python_path(os.environ)
        inherited = {name: value for name, value in environment.items() if not name.startswith("FLUSTER_")}
    return {**inherited, proc.MARKER: "-" * proc.MARKER_ROOM}


def _spawn(
    python: str, cgroups: WorkerCgroups, lifeline_fd: int | None, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    arguments = ["--cgroups", json.dumps(hierarchies_to_json(cgroups.parents))]
    if lifeline_fd is not None:
        arguments += ["--lifeline-fd", str(lifeline_fd)]
    try:
        return subprocess.Popen(
            # -P: a file of the current directory must not stand in for a module of the job runtime.
            [python, "-P", "-m", "fluster.cluster.attempt.zygote", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env=environment,
            pass_fds=() if lifeline_fd is None else (lifeline_fd,),
            start_new_session=True,
        )
    except OSError as error:
        raise ZygoteDied(f"cannot start a zygote of {python}: {error.strerror}") from error


async def _ended(process: subprocess.Popen[bytes]) -> None:
    """Waits for the process and collects it."""
    while process.poll() is None:
        await end_of_process(process.pid)
