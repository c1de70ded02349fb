"""One controller: opens its state, serves, and closes what it opened."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fluster.cluster.backend.base import JoinsController, VMBackend
from fluster.cluster.clocks import unix_clock
from fluster.cluster.controller import retention
from fluster.cluster.controller.auth import Authenticator, Identity
from fluster.cluster.controller.blobs import BlobStore
from fluster.cluster.controller.context import Controller
from fluster.cluster.controller.core.events import MachinesForgotten
from fluster.cluster.controller.core.state import Settings
from fluster.cluster.controller.directory import StateDirectory
from fluster.cluster.controller.effects import Effects
from fluster.cluster.controller.loading import load_state
from fluster.cluster.controller.logstore import LogStore
from fluster.cluster.controller.loop import Loop
from fluster.cluster.controller.machine import this_machine
from fluster.cluster.controller.names import reachable_host
from fluster.cluster.controller.opencalls import OpenCalls
from fluster.cluster.controller.refusals import ANONYMOUS, Refusals
from fluster.cluster.controller.service import Authorization, ControllerServicer
from fluster.cluster.controller.statedir import StateDir
from fluster.cluster.controller.store import Store
from fluster.cluster.ids import AllocationId, Namespace
from fluster.cluster.tokens import secret_sha256
from fluster.cluster.validation import check_name, shown
from fluster.rpc.connection import Address
from fluster.rpc.errors import WireError
from fluster.rpc.gate import bearer, identity_or_none
from fluster.rpc.gen.fluster.cluster.v1.controller_connect import ControllerServiceASGIApplication
from fluster.rpc.serve import RpcServer, connect_options
from fluster.rpc.trust import AUTHORITY_PATH, pinned

if TYPE_CHECKING:
    from fluster.cluster.controller.tls import ServerTls, TlsConfig

_log = logging.getLogger(__name__)

_AHEAD_S = 1.0

MakeBackend = Callable[["Running"], VMBackend | Mapping[str, VMBackend]]
"""Makes the backend once the controller's address is known; several come by the names that settings give them."""
_MAX_RPC_NAME = 64


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """How a controller is run.

    Attributes:
        port: 0 takes any free one.
        settings: What the core decides by.
        take_over: End another controller that holds the state directory.
        shut_down_before: The cluster was shut down as a whole: none of the machines in the rows is there any more.
        token: The administrator's token instead of the state directory's own.
        tls: How connections are encrypted; `None`: they are not.
    """

    state_dir: Path
    namespace: Namespace = Namespace("default")
    host: str = "127.0.0.1"
    port: int = 0
    settings: Settings = field(default_factory=Settings)
    take_over: bool = False
    shut_down_before: bool = False
    token: str | None = None
    tls: TlsConfig | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """A controller that serves.

    Attributes:
        ca_file: Certificate of the authority that clients have to believe; `None`: there is no such.
        failed: Done when a part of it has failed; the process must not go on.
    """

    address: str
    epoch: int
    token_file: Path
    state_dir: Path
    ca_file: Path | None
    controller: Controller
    failed: asyncio.Future[None]

    def join_token(self, allocation_id: AllocationId) -> str:
        """The token by which the worker of that allocation joins."""
        return pinned(self.controller.auth.allocation_token(allocation_id), self.controller.pin)


class ControllerDaemon:
    """A controller in the running event loop; an async context manager.

    Args:
        config: How it is run.
        backend: Makes the source of machines; `None`: workers join by themselves.
        at_start: What is to be done before anything else, once nobody else can have the state directory.
        at_end: What is to be done after serving, while nobody else can have it.
    """

    def __init__(
        self,
        config: ControllerConfig,
        backend: MakeBackend | None = None,
        *,
        at_start: Callable[[], Awaitable[None]] | None = None,
        at_end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._config = config
        self._make_backend = backend
        self._at_start = at_start
        self._at_end = at_end
        self._closing = AsyncExitStack()

    async def __aenter__(self) -> Running:
        async with AsyncExitStack() as stack:
            running = await self._start(stack)
            self._closing = stack.pop_all()
            return running

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._closing.aclose()

    async def _start(self, stack: AsyncExitStack) -> Running:
        config = self._config
        state_dir = stack.enter_context(StateDir.open(config.state_dir, take_over=config.take_over))
        if self._at_start is not None:
            await self._at_start()
        if self._at_end is not None:
            stack.push_async_callback(self._at_end)
        store = stack.enter_context(Store.open(state_dir.database))
        epoch = store.begin_epoch()
        clock = _clock_after(store.last_at())
        effects: Effects | None = None
        loop = Loop(
            store,
            lambda old: load_state(store, config.settings, clock(), old),
            clock,
            epoch,
            act=lambda: None if effects is None else effects.act(),
        )
        tls = self._tls()
        controller = self._controller(stack, state_dir, store, loop, clock, tls)
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._background(stack, failed, "loop", loop.run())
        if config.shut_down_before:
            await loop.submit(MachinesForgotten())
        await self._background(stack, failed, "retention", retention.run(controller))
        await self._background(stack, failed, "refusals", controller.refusals.run())
        await self._background(stack, failed, "open calls", controller.calls.run())
        stack.push_async_callback(controller.refusals.flush)
        server = RpcServer(
            [_application(controller)],
            lambda headers: controller.auth.authenticate(bearer(headers)),
            host=config.host,
            port=config.port,
            hosts=tls.names if tls is not None else (),
            ssl_context=tls.context if tls is not None else None,
            public={AUTHORITY_PATH: tls.authority.pem.encode()} if tls is not None else {},
            refused=lambda error, path, peer: _note_refused(controller, error, path, peer),
        )
        port = await server.start()
        stack.push_async_callback(server.stop)
        if tls is not None:
            await self._background(stack, failed, "certificate", tls.keep_valid())
        host = reachable_host(config.host)
        address = Address(host, port, tls is not None)
        ca_file = state_dir.path / "ca.pem" if controller.pin is not None else None
        running = Running(
            str(address), epoch, state_dir.admin_token_file, config.state_dir, ca_file, controller, failed
        )
        if self._make_backend is not None:
            backends = _by_name(self._make_backend(running), config.settings)
            for backend in {id(each): each for each in backends.values()}.values():
                stack.push_async_callback(backend.close)
            effects = Effects(loop, backends)
            await self._background(stack, failed, "effects", effects.run())
        stack.callback(state_dir.note_ending)
        return running

    def _tls(self) -> ServerTls | None:
        """What connections are encrypted with; the library for it is loaded only then."""
        if self._config.tls is None:
            return None
        from fluster.cluster.controller.tls import ServerTls

        return ServerTls(self._config.state_dir, self._config.tls, self._config.host)

    def _controller(
        self,
        stack: AsyncExitStack,
        state_dir: StateDir,
        store: Store,
        loop: Loop,
        clock: Callable[[], float],
        tls: ServerTls | None,
    ) -> Controller:
        token = self._config.token or state_dir.admin_token
        directory = StateDirectory(lambda: loop.state)
        auth = Authenticator(state_dir.cluster_key, secret_sha256(token), directory, loop.now)
        blobs = BlobStore(state_dir.blobs, clock=clock)
        logs = LogStore(state_dir.logs)
        stack.callback(logs.close)
        config = self._config
        return Controller(
            loop,
            store,
            blobs,
            logs,
            auth,
            Refusals(loop),
            OpenCalls(auth),
            config.namespace,
            state_dir.cluster_key,
            is_loopback(config.host),
            tls,
        )

    async def _background(
        self, stack: AsyncExitStack, failed: asyncio.Future[None], name: str, work: Awaitable[None]
    ) -> None:
        async def watched() -> None:
            try:
                await work
            except Exception as error:
                _log.critical("the controller's %s failed", name, exc_info=True)
                if not failed.done():
                    failed.set_exception(error)
                    failed.exception()  # retrieved: it is told by whoever waits for it

        task = asyncio.create_task(watched(), name=f"fluster-controller-{name}")

        async def stop() -> None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        stack.push_async_callback(stop)


def _clock_after(last_at: float) -> Callable[[], float]:
    """The controller's clock. It goes on where an earlier one's was when it last wrote something.

    Else moments that are stored, the next attempt of a task among them, would lie hours ahead when the machine's clock
    was set back meanwhile.
    """
    if (ahead_s := last_at - time.time()) > _AHEAD_S:
        _log.warning("this machine's clock is %.0f s behind what was written last; times go on from there", ahead_s)
    return unix_clock(last_at)


def _application(controller: Controller) -> ControllerServiceASGIApplication:
    options = connect_options()
    options["interceptors"] = [*options["interceptors"], Authorization(controller)]
    return ControllerServiceASGIApplication(ControllerServicer(controller), **options)


def _by_name(made: VMBackend | Mapping[str, VMBackend], settings: Settings) -> Mapping[str, VMBackend]:
    if isinstance(made, Mapping):
        return made
    return dict.fromkeys([settings.backend, *(offer.backend for offer in settings.offers)], made)


def _note_refused(controller: Controller, error: WireError, path: str, peer: str) -> None:
    """A request that was refused before any handler saw it."""
    who = identity_or_none(Identity)
    rpc = path.rpartition("/")[2][:_MAX_RPC_NAME]
    actor = ANONYMOUS if who is None else who.actor
    controller.refusals.note(actor, peer, f"{shown(rpc)}: {error.code}: {error.message}")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what is bound to this host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _joining(backend: VMBackend, running: Running) -> VMBackend:
    """The backend, its workers told whom to join if it can tell them."""
    if isinstance(backend, JoinsController):
        backend.join(running.address, running.join_token)
    return backend


class ControllerServer:
    """A controller in a thread of this process, for tests and embedding. Programs use `LocalCluster`.

    Args:
        backend: Source of machines, closed by `shutdown`; `None`: workers join by themselves.
        namespace: Default of clients that name none.
        host: Beyond loopback connections are encrypted, if not otherwise said then by an authority of its own.
        port: 0 takes any free one.
        state_dir: Kept; `None`: a temporary one, gone after `shutdown`.
        token: The administrator's; `None`: made, see `token`.
        settings: What the core decides by; `None`: with a backend one machine like this one is asked of it.
        tls: How connections are encrypted.
    """

    def __init__(
        self,
        backend: VMBackend | None = None,
        namespace: str = "default",
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        state_dir: Path | str | None = None,
        token: str | None = None,
        settings: Settings | None = None,
        tls: TlsConfig | None = None,
    ) -> None:
        if tls is None and not is_loopback(host):
            from fluster.cluster.controller.tls import TlsConfig

            tls = TlsConfig()
        if settings is None:
            settings = Settings() if backend is None else Settings(backend="local", pool=(this_machine(),))
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._state_dir = None if state_dir is None else Path(state_dir)
        name = Namespace(check_name(namespace, "namespace"))
        self._config = ControllerConfig(Path(), name, host, port, settings, token=token, tls=tls)
        self._backend = backend
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], None] = lambda: None
        self._running: Running | None = None
        self._error: BaseException | None = None

    def start(self) -> int:
        """Serves; returns the bound port.

        Raises:
            FlusterError: The state directory is held by another controller, or cannot be used.
            OSError: The port is taken.
        """
        directory = self._state_dir
        if directory is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="fluster-controller-")
            directory = Path(self._temporary.name)
        self._config = replace(self._config, state_dir=directory)
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="fluster-controller", daemon=True)
        self._thread.start()
        started.wait()
        if self._error is not None:
            self.shutdown()
            raise self._error
        return int(self.address.rpartition(":")[2])

    @property
    def address(self) -> str:
        """URL for clients."""
        return self._serving().address

    @property
    def token(self) -> str:
        """The administrator's."""
        return self._config.token or self._serving().token_file.read_text().strip()

    @property
    def ca_file(self) -> Path | None:
        """The authority that clients have to believe; `None`: there is no such."""
        return self._serving().ca_file

    def shutdown(self) -> None:
        """Stops serving; running jobs are left alone. Repeating is harmless."""
        if self._thread is not None:
            self._stop()
            self._thread.join()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def _serving(self) -> Running:
        if self._running is None:
            raise RuntimeError("the controller has not been started; call `start()` first")
        return self._running

    def _run(self, started: threading.Event) -> None:
        try:
            asyncio.run(self._serve(started))
        except BaseException as error:
            self._error = error
        finally:
            started.set()

    async def _serve(self, started: threading.Event) -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(stopped.set)

        self._stop = stop
        backend = self._backend
        make = None if backend is None else (lambda running: _joining(backend, running))
        async with ControllerDaemon(self._config, make) as running:
            self._running = running
            started.set()
            waiting = asyncio.create_task(stopped.wait())
            await asyncio.wait((waiting, running.failed), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if running.failed.done():
                running.failed.result()
