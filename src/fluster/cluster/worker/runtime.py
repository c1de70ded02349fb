"""What a worker needs of whatever runs its attempts: start, adopt, observe, stop, logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fluster.cluster.worker.docker_runtime import DockerRuntime as DockerRuntime
    from fluster.cluster.worker.process_runtime import ProcessRuntime as ProcessRuntime
    from fluster.cluster.worker.veil import Veil

TIME_LIMIT_GRACE_S = 10.0
"""Between SIGTERM and SIGKILL when an attempt's time is over, unless a runtime is told otherwise."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one attempt; `None` means unlimited."""

    cpu: float = 1.0
    memory_bytes: int | None = None
    pids: int = 4096
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class AttemptStart:
    """One attempt, ready to be started: the environment is built, the files are in place.

    Attributes:
        uid: The attempt's uid; starting the same uid again is harmless and gives the same process.
        directory: The attempt's own directory; holds `entrypoint` when there is no `command`.
        command: The program and its arguments, or `None` to call the pickled `entrypoint`.
        environment: The whole environment of the process.
        working_directory: Where the process starts.
        import_path: Put first on `sys.path` of a callable, in this order.
        python: Interpreter of a callable; `None` means the worker's own, in a container `python3`.
        is_shared: That interpreter is of an environment built here: nothing leads it to the worker's packages.
        image: Of the container it runs in; `None`: it asks for none.
        read_only: Directories of this machine that a container sees as well, where they are.
        gpus: Indices of those handed out.
        user: A process of which user it is to be; `None`: the worker's own.
        groups: That this user is in.
    """

    uid: str
    directory: Path
    command: tuple[str, ...] | None
    environment: Mapping[str, str]
    working_directory: Path
    import_path: tuple[str, ...] = ()
    python: str | None = None
    is_shared: bool = False
    limits: Limits = field(default_factory=Limits)
    image: str | None = None
    read_only: tuple[str, ...] = ()
    gpus: tuple[int, ...] = ()
    user: int | None = None
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How the attempt's process ended, as its shim saw it; nothing of its tree is left.

    Attributes:
        exit_code: 0-255 of the process; `None` if a signal ended it or nothing ran.
        signal: Number of the signal that ended it.
        out_of_memory: The memory limit ended it.
        timed_out: Its time limit ended it.
        stop_requested: `Runtime.stop` was called before the process ended.
        start_error: Why nothing ran (command missing, not executable, no such directory).
        fluster_fault: Nothing ran and the user could not have prevented it.
        peak_memory_bytes: Highest memory of the whole tree; 0 where unknown.
        started_at, finished_at: Unix seconds.
        lease_ended: It was stopped because its worker's lease had run out and no daemon was there to see to it.
    """

    exit_code: int | None
    signal: int | None
    out_of_memory: bool
    timed_out: bool
    stop_requested: bool
    start_error: str | None
    fluster_fault: bool
    peak_memory_bytes: int
    started_at: float | None
    finished_at: float
    lease_ended: bool = False


@dataclass(frozen=True, slots=True)
class Running:
    """The attempt's process exists.

    Attributes:
        pid: Of the attempt's first process.
        started_at: Unix seconds.
    """

    pid: int
    started_at: float


@dataclass(frozen=True, slots=True)
class Gone:
    """Nothing runs and there is no exit record.

    Attributes:
        why: For users.
    """

    why: str = "what watched over its process was killed"


Observation = Running | ExitRecord | Gone


@dataclass(frozen=True, slots=True)
class LogFiles:
    """The attempt's two append-only files.

    Attributes:
        veil: Hides its secrets from whoever is shown what they hold.
    """

    stdout: Path
    stderr: Path
    veil: Veil | None = None


class ImageFailed(Exception):
    """An image cannot be had, or does not hold what an attempt needs of it.

    Attributes:
        fluster_fault: The user could not have prevented it: the network, the engine.
    """

    def __init__(self, message: str, *, fluster_fault: bool = False) -> None:
        super().__init__(message)
        self.fluster_fault = fluster_fault


class Images(Protocol):
    """What a runtime of containers knows of images.

    Attributes:
        image: Of attempts that ask for none.
    """

    image: str

    async def provide_image(self, image: str) -> str:
        """Fetches an image unless it is here; its digest. Raises `ImageFailed`."""
        ...

    async def python_version(self, image: str, python: str) -> str:
        """`3.11` of an interpreter in an image. Raises `ImageFailed`."""
        ...


class Runtime(Protocol):
    """Runs attempts as process trees. All methods are called on one event loop."""

    @property
    def name(self) -> str:
        """`process` or `docker`."""
        ...

    @property
    def images(self) -> Images | None:
        """What it knows of images; `None`: it has no containers."""
        ...

    @property
    def enforcement(self) -> str:
        """What holds memory and pid limits here: `v2`, `v1` or `none` (sampled)."""
        ...

    async def prepare(self) -> None:
        """Gets warm: what the first `start` would otherwise wait for (zygote of the worker's interpreter)."""
        ...

    async def start(self, attempt: AttemptStart) -> Observation:
        """Starts the attempt; returns once its process exists, has ended, or could not be started."""
        ...

    async def adopt(self, uid: str, directory: Path) -> Observation:
        """Finds an attempt started by an earlier worker; ends what is left of a tree whose shim is gone."""
        ...

    async def observe(self, uid: str) -> Observation:
        """The present state of a started or adopted attempt."""
        ...

    async def wait(self, uid: str) -> ExitRecord | Gone:
        """Returns within milliseconds of the attempt's end; any number of callers."""
        ...

    async def stop(self, uid: str, grace_s: float = 10.0) -> None:
        """SIGTERM to the tree now, SIGKILL after `grace_s`; returns at once; repeating may only shorten the grace."""
        ...

    def logs(self, uid: str) -> LogFiles:
        """Where the attempt's output goes."""
        ...

    async def forget(self, uid: str) -> None:
        """Drops what is kept of an ended attempt (not its directory)."""
        ...

    async def close(self) -> None:
        """Lets go of everything of the worker's own (zygotes, watchers); running attempts go on."""
        ...


def get_runtime(name: str = "auto") -> Runtime:
    """The runtime of that name; `auto`: processes, and containers for attempts that ask for an image.

    Raises:
        ValueError: There is no runtime of that name.
    """
    from fluster.cluster.worker.docker_runtime import DockerRuntime
    from fluster.cluster.worker.either_runtime import EitherRuntime
    from fluster.cluster.worker.process_runtime import ProcessRuntime

    match name:
        case "auto":
            return EitherRuntime(ProcessRuntime(), DockerRuntime())
        case "process":
            return ProcessRuntime()
        case "docker":
            return DockerRuntime()
    raise ValueError(f"no runtime {name!r}; there are 'auto', 'process' and 'docker'")


def __getattr__(name: str) -> object:
    """`ProcessRuntime` and `DockerRuntime` on first use: they are built on the types above."""
    if name == "DockerRuntime":
        from fluster.cluster.worker.docker_runtime import DockerRuntime

        return DockerRuntime
    if name == "ProcessRuntime":
        from fluster.cluster.worker.process_runtime import ProcessRuntime

        return ProcessRuntime
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
