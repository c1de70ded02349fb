"""The small process beside each attempt in a container: starts it, writes what it prints, and sees to its end.

It does for a container what `fluster.cluster.attempt.shim` does for a process tree, with the same files: it outlives
its worker, and the next one finds it by them. Nobody but it talks to the container.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fluster.cluster.attempt import files, proc, record
from fluster.cluster.attempt.launch import COMMAND_NOT_EXECUTABLE, COMMAND_NOT_FOUND, StartError
from fluster.cluster.attempt.lease import LeaseFile
from fluster.cluster.docker.engine import Engine
from fluster.errors import FlusterError

SPEC = "container.json"
"""What to run: a `ContainerSpec`. An attempt that has it is, or was, a container."""
STARTED = "started"
"""The container runs, or did."""
_LOOK_S = 1.0
_DAEMON_FIRST_S = 0.5
_DRAIN_S = 10.0
_NEVER = float("inf")
_INIT_FAILED = "[FATAL tini"
"""What the first process of a container says when it cannot execute the second."""
_SIGNALS = range(129, 160)
"""Exit codes by which the first process of a container tells that a signal ended the one it watches."""


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """One attempt's container.

    Attributes:
        config: What the engine is told to create.
        interpreter: What runs a callable; empty for a command.
        lease: File that says until when it may run; empty: for as long as it likes.
        grace_s: Between SIGTERM and SIGKILL when its time or the lease is over.
    """

    name: str
    socket: str
    config: dict[str, Any]
    interpreter: str
    memory_bytes: int | None
    time_s: float | None
    lease: str
    grace_s: float

    def write(self, directory: Path) -> None:
        """Puts it into the attempt's directory, without variables: secrets among them are for the job alone."""
        config = {key: value for key, value in self.config.items() if key != "Env"}
        files.write_json(directory / SPEC, asdict(replace(self, config=config)))

    def to_json(self) -> bytes:
        """All of it, for the shim."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def read(cls, directory: Path) -> ContainerSpec | None:
        """What an attempt's directory says; `None`: it is no container's."""
        fields = files.read_json(directory / SPEC)
        return None if fields is None else cls(**fields)


def main(arguments: list[str]) -> None:
    """Runs the attempt of a directory to its end, unless somebody else does or did.

    Args:
        arguments: The directory, and a lifeline's descriptor. What to run is on stdin.
    """
    directory = Path(arguments[0])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    spec = ContainerSpec(**json.load(sys.stdin))
    lock = files.take_lock(directory)  # held until this process ends
    over = (files.EXIT, files.ABANDONED, files.RUNNING)
    if lock is None or any((directory / name).exists() for name in over):
        return
    lifeline = int(arguments[1]) if len(arguments) > 1 else None
    asyncio.run(_Watch(directory, spec, lifeline).run())


class _Watch:
    """One container from its first moment to its last."""

    def __init__(self, directory: Path, spec: ContainerSpec, lifeline: int | None) -> None:
        self._directory = directory
        self._spec = spec
        self._lifeline = lifeline
        self._engine = Engine(Path(spec.socket))
        self._exit_file = record.ExitFile.reserve(directory)
        self._lease = LeaseFile(Path(spec.lease)) if spec.lease else None
        self._kill_at = self._time_over = _NEVER
        self._started_at: float | None = None
        self._start_error: StartError | None = None
        self._stop_requested = self._timed_out = self._lease_ended = self._ended = False
        self._peak_bytes = 0
        self._control = _open_control(directory)

    async def run(self) -> None:
        """Returns when nothing of it is left and its exit record is written."""
        self._note_running()
        state: dict[str, Any] = {}
        try:
            await self._engine.remove(self._spec.name)  # of a shim that was killed before it had begun
            await self._engine.create(self._spec.name, self._spec.config)
            async with self._engine.attached(self._spec.name) as frames:
                state = await self._live(frames)
        except FlusterError as error:
            self._start_error = StartError(f"the container could not be started: {error}", fluster_fault=True)
        await self._remove()
        self._take_result()
        self._write_record(state)

    def _note_running(self) -> None:
        self._started_at = time.time()
        running = record.running_fields(os.getpid(), self._started_at, [])
        files.write_json(self._directory / files.RUNNING, running)

    async def _live(self, frames: AsyncIterator[tuple[int, bytes]]) -> dict[str, Any]:
        """What the engine says of its end."""
        await self._engine.start(self._spec.name)
        (self._directory / STARTED).touch()
        if self._spec.time_s is not None:
            self._time_over = time.monotonic() + self._spec.time_s
        output = asyncio.create_task(self._copy(frames))
        end = asyncio.create_task(self._engine.wait(self._spec.name))
        asyncio.get_running_loop().add_reader(self._control, self._obey)
        if self._lifeline is not None:
            asyncio.get_running_loop().add_reader(self._lifeline, self._desert, self._lifeline)
        try:
            while not end.done():
                await self._turn(end)
            self._ended = True
            async with asyncio.timeout(_DRAIN_S):
                await output
        except TimeoutError:
            pass  # somebody outside holds its streams open
        finally:
            output.cancel()
            end.cancel()
        found = await self._engine.inspect(self._spec.name)
        return found["State"] if found is not None else {}

    async def _turn(self, end: asyncio.Task[int]) -> None:
        now = time.monotonic()
        await asyncio.wait([end], timeout=max(0.0, min(_LOOK_S, self._time_over - now, self._kill_at - now)))
        if end.done():
            return
        if time.monotonic() >= self._time_over:
            self._time_over, self._timed_out = _NEVER, True
            await self._end_within(self._spec.grace_s)
        if self._lease is not None and not self._lease_ended:
            await self._check_lease(self._lease)
        if time.monotonic() >= self._kill_at:
            self._kill_at = time.monotonic() + _LOOK_S
            await self._engine.signal(self._spec.name, "SIGKILL")
        await self._sample()

    async def _copy(self, frames: AsyncIterator[tuple[int, bytes]]) -> None:
        """What it prints, to its two files."""
        names = {1: files.STDOUT, 2: files.STDERR}
        with contextlib.ExitStack() as stack:
            out = {
                number: stack.enter_context(open(self._directory / name, "ab", buffering=0))
                for number, name in names.items()
            }
            async for stream, piece in frames:
                with contextlib.suppress(OSError):  # a full disk must not end the job
                    out[stream].write(piece)

    def _obey(self) -> None:
        for grace in record.graces(os.read(self._control, 4096).decode(errors="replace")):
            self._stop_requested |= not self._ended
            self._ending = asyncio.ensure_future(self._end_within(grace))

    def _desert(self, lifeline: int) -> None:
        """Whoever everything here belongs to is gone."""
        asyncio.get_running_loop().remove_reader(lifeline)
        self._ending = asyncio.ensure_future(self._end_within(0.0))

    async def _end_within(self, grace_s: float) -> None:
        first, self._kill_at = self._kill_at == _NEVER, min(self._kill_at, time.monotonic() + grace_s)
        if grace_s <= 0:
            await self._engine.signal(self._spec.name, "SIGKILL")
        elif first:
            await self._engine.signal(self._spec.name, "SIGTERM")

    async def _check_lease(self, lease: LeaseFile) -> None:
        left_s = lease.left_s()
        if left_s is not None and left_s <= -_DAEMON_FIRST_S:
            self._lease_ended = not self._stop_requested
            self._stop_requested = True
            await self._end_within(max(0.0, self._spec.grace_s + left_s + _DAEMON_FIRST_S))

    async def _sample(self) -> None:
        """The most memory it used, as far as a look a second sees it."""
        with contextlib.suppress(FlusterError):
            self._peak_bytes = max(self._peak_bytes, await self._engine.memory_bytes(self._spec.name))

    async def _remove(self) -> None:
        """Without a bound: while something of it runs, the attempt is not over."""
        pause = 0.1
        while True:
            try:
                await self._engine.remove(self._spec.name)
                return
            except FlusterError:
                await asyncio.sleep(pause)
                pause = min(2 * pause, 5.0)

    def _take_result(self) -> None:
        """Moves what the attempt gave to where its worker looks, if it is a file and not a way to some other one."""
        with contextlib.suppress(OSError):
            path = self._directory / files.BOX / files.RESULT
            if stat.S_ISREG(os.lstat(path).st_mode):
                os.replace(path, self._directory / files.RESULT)

    def _write_record(self, state: dict[str, Any]) -> None:
        code = int(state.get("ExitCode", 0))
        out_of_memory = bool(state.get("OOMKilled")) and code != 0
        status = code - 128 if code in _SIGNALS else code << 8
        peak = self._spec.memory_bytes if out_of_memory and self._spec.memory_bytes else self._peak_bytes
        self._exit_file.write(
            record.exit_fields(
                status=status,
                out_of_memory=out_of_memory,
                timed_out=self._timed_out,
                stop_requested=self._stop_requested,
                problem=self._start_error or self._unloaded(code, out_of_memory),
                peak_memory_bytes=peak,
                started_at=self._started_at,
                finished_at=time.time(),
                lease_ended=self._lease_ended,
            )
        )

    def _unloaded(self, code: int, out_of_memory: bool) -> StartError | None:
        """A command that could not be executed; an interpreter that ended before it had loaded the job runtime."""
        if code in (COMMAND_NOT_FOUND, COMMAND_NOT_EXECUTABLE) and _INIT_FAILED in files.last_lines(
            self._directory / files.STDERR
        ):
            return _not_executed(self._spec, code)
        if not self._spec.interpreter or code == 0 or out_of_memory or self._timed_out or self._stop_requested:
            return None
        if (self._directory / files.BOX / files.LOADED).exists():
            return None
        return record.unusable_interpreter(self._spec.interpreter, self._directory, COMMAND_NOT_EXECUTABLE)


def _not_executed(spec: ContainerSpec, code: int) -> StartError:
    """In the words of a process that could not be."""
    program, image = spec.config["Entrypoint"][0], spec.config["Image"]
    if code == COMMAND_NOT_FOUND:
        return StartError(f"the command {program!r} was not found in the image {image}", code)
    return StartError(f"the command {program!r} cannot be executed in the image {image}", code)


def _open_control(directory: Path) -> int:
    """The FIFO with the worker's orders, also those of a worker that comes later."""
    path = directory / files.CONTROL
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


if __name__ == "__main__":
    proc.name_this_process("fluster-shim")
    main(sys.argv[1:])
