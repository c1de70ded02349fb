"""What a worker's daemon is made of, whether it has joined a controller or not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fluster.cluster.context import read_token_file
from fluster.cluster.worker import files, network
from fluster.cluster.worker.config import WorkerConfig
from fluster.cluster.worker.gpu import GpuInventory
from fluster.cluster.worker.jobusers import UserRange
from fluster.cluster.worker.manager import JobManager
from fluster.cluster.worker.runtime import Runtime
from fluster.cluster.worker.state import WorkerState

if TYPE_CHECKING:
    from fluster.rpc.serve import RpcServer


@dataclass(frozen=True, slots=True)
class Parts:
    """Made before anything else, closed by `stack`.

    Attributes:
        warm: The runtime gets ready.
        users: Whose processes attempts are to be; `None`: the daemon's own user's.
    """

    config: WorkerConfig
    stack: contextlib.AsyncExitStack
    state: WorkerState
    ending: Ending
    runtime: Runtime
    gpus: GpuInventory
    warm: asyncio.Task[Any]
    users: UserRange | None

    def max_jobs(self, default: int) -> int:
        """How many attempts at a time."""
        there = default if self.users is None else min(default, self.users.max_jobs)
        return self.config.max_jobs or there

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that is cancelled when the stack is closed."""
        return spawn(self.stack, work)


def spawn(stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task that is cancelled when the stack is closed."""
    task = asyncio.create_task(work)

    async def cancel() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(cancel)
    return task


class Ending:
    """How a daemon is told to end: a signal, a lifeline, or a state directory that says so already."""

    def __init__(self, config: WorkerConfig) -> None:
        self._told = asyncio.Event()
        self.by_lifeline = False
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told.set)
        if config.lifeline_fd is not None:
            os.set_inheritable(config.lifeline_fd, False)
            loop.add_reader(config.lifeline_fd, self._on_lifeline, config.lifeline_fd)
        if files.is_released(config.state_dir):
            self._told.set()

    async def wait(
        self, manager: JobManager, *parts: asyncio.Task[Any], until: asyncio.Task[Any] | None = None
    ) -> None:
        """Returns when the daemon is told to end or `until` is done; raises what any part of it failed with."""
        told, failed = asyncio.create_task(self._told.wait()), asyncio.create_task(manager.failed())
        ends = {told} if until is None else {told, until}
        pending: set[asyncio.Task[Any]] = {failed, *ends, *parts}
        try:
            while True:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if done & ends:
                    return
        finally:
            told.cancel()
            failed.cancel()

    def _on_lifeline(self, descriptor: int) -> None:
        # Nobody writes to it: readable means that every other end is closed.
        asyncio.get_running_loop().remove_reader(descriptor)
        self.by_lifeline = True
        self._told.set()


class OwnApi:
    """The worker's own service, in the daemon's loop."""

    def __init__(self, config: WorkerConfig, state: WorkerState, manager: JobManager, *, joined: bool) -> None:
        self._config = config
        self._worker_id = state.identity.worker_id
        self._manager = manager
        self._joined = joined
        self._server: RpcServer | None = None
        self.address = ""

    async def start(self, port: int) -> None:
        """Serves on `port`, or on another if that is taken, and writes down where.

        Raises:
            OSError: The host is none of this machine's.
        """
        # The server libraries take a quarter of a second to import: attempts need not wait for them.
        server = await asyncio.to_thread(_import_server)
        token, token_file = self._token()
        for number in dict.fromkeys((port, 0)):
            servicer = server.WorkerServicer(self._manager, worker_id=self._worker_id, joined=self._joined)
            rpc = server.worker_rpc_server(servicer, token, host=self._config.host, port=number, hosts=self._hosts())
            try:
                bound = await rpc.start()
            except OSError:
                if number == 0:
                    raise
                continue
            self._server = rpc
            self.address = network.joined(self._config.host, bound)
            break
        self._file = files.ServiceFile(self._worker_id, self.address, os.getpid(), str(token_file))
        self._file.write(self._config.state_dir)

    def announcement(self) -> str:
        """One line of JSON for whoever started the daemon."""
        return json.dumps(
            {"address": self._file.address, "token_file": self._file.token_file, "worker_id": self._file.worker_id}
        )

    async def stop(self) -> None:
        """Stops serving."""
        if self._server is not None:
            await self._server.stop()

    def _hosts(self) -> list[str]:
        """Names others may use for this machine."""
        return [self._config.advertise_host] if self._config.advertise_host else []

    def _token(self) -> tuple[str, Any]:
        if self._joined or self._config.token_file is None:
            return files.own_token(self._config.state_dir)
        return read_token_file(self._config.token_file), self._config.token_file


def _import_server() -> Any:
    from fluster.cluster.worker import server

    return server
