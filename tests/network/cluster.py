"""A real cluster whose parts are hosts of one network, and jobs that testify when they ran."""

from __future__ import annotations

import contextlib
import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.e2e import lab
from tests.e2e.outside import Server
from tests.network import programs
from tests.network.hosts import Host, Network
from tests.network.machines import Machine

from fluster import Cluster, Entrypoint, JobRequest, JobStatus, ResourceConfig, RetryPolicy
from fluster.cluster.ids import JobId
from fluster.rpc.gen.fluster.cluster.v1 import controller_pb as pb

WITHIN_S = 30.0
_BRISK = str(Path(__file__).with_name("brisk.py"))


class Site:
    """`controller serve` on one host, `worker serve` on others, and a client on one more.

    Args:
        directory: Where everybody has a directory.
        lease_s: Of workers.
        workers: Those that were started by hand.
        backend: What the controller gets its other workers from, as the first words of its command line.

    Attributes:
        client: The administrator's; usable from within `visited`.
    """

    client: Cluster
    controller: Host

    def __init__(
        self, directory: Path, lease_s: float, *, workers: Sequence[str] = ("a", "b"), backend: Sequence[str] = ()
    ) -> None:
        self.lease_s = lease_s
        self._directory = directory
        self._names = workers
        self._backend = backend
        self._hosts: dict[str, Host] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.network = stack.enter_context(Network())
            self.controller = stack.enter_context(self.network.host("controller"))
            self._here = stack.enter_context(self.network.host("client"))
            # The network is trusted, for it is ours alone.
            options = ["--host", self.controller.address, "--worker-lease", str(self.lease_s)]
            options.append("--insecure-plaintext-network")
            server = Server(self._directory / "state", *options, program=(_BRISK, *self._backend))
            stack.callback(server.__exit__)
            with self.network.at(self.controller):
                server.start()
            self.client = stack.enter_context(server.client())
            with self.network.at(self._here):
                for name in self._names:
                    stack.enter_context(self.worker(stack.enter_context(self.network.host(name)), cpu=1))
                self._wait_for_workers()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @contextmanager
    def visited(self) -> Iterator[None]:
        """The test is on the client's host; faults are gone at its end, and so are its jobs."""
        with self.network.at(self._here):
            try:
                yield
            finally:
                self.heal()
                for status in (JobStatus.PENDING, JobStatus.RUNNING):
                    for info in self.client.list_jobs(status=status):
                        self.client.terminate(info.job_id)
                self.client._rpc.close_idle()

    def heal(self) -> None:
        """No fault any more, and the workers that were started by hand answer."""
        for host in (*self._hosts.values(), self.controller):
            self.network.heal(host)
        self._wait_for_workers()

    @contextmanager
    def worker(self, host: Host, *, cpu: int) -> Iterator[Machine]:
        """A worker of the host's name, joined by a token; at the end nothing of it is left."""
        request = pb.CreateTokenRequest(request_id=uuid.uuid4().hex, kind=pb.TokenKind.JOIN, uses=1, ttl_s=60)
        token = self.client._call("CreateToken", request, pb.CreateTokenResponse).token
        words = ["--cpu", str(cpu), "--controller", self.client.address]
        machine = Machine(self.network, host, self._directory / host.name, words, token)
        self._hosts[host.name] = host
        machine.boot()
        try:
            yield machine
        finally:
            del self._hosts[host.name]
            machine.end()

    @property
    def workers(self) -> list[Host]:
        """Hosts with a worker."""
        return list(self._hosts.values())

    def host_of(self, job_id: JobId) -> Host:
        """Where its one task runs."""
        (task,) = self.client.poll(job_id).tasks
        assert task.worker_id is not None
        return self._hosts[task.worker_id]

    def ready(self) -> set[str]:
        """Workers that answer."""
        return {each.worker_id for each in self.client.workers() if each.status == "ready"}

    def _wait_for_workers(self) -> None:
        names = set(self._names)
        lab.wait_until(lambda: names <= self.ready(), f"workers {names} are ready", WITHIN_S)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a job: its process, and from when to when it was alive at least."""

    process: lab.Process
    began_ns: int
    alive_ns: int


@dataclass(frozen=True, slots=True)
class Beats:
    """A job that writes down when it runs; see `programs.beat`."""

    directory: Path

    @classmethod
    def at(cls, directory: Path) -> Self:
        directory.mkdir()
        return cls(directory)

    def request(self, *, max_preemptions: int, endpoint: str | None = None) -> JobRequest:
        """One that may be lost so often."""
        entrypoint = (
            Entrypoint.from_callable(programs.beat, self.directory)
            if endpoint is None
            else Entrypoint.from_callable(programs.beat_as, self.directory, endpoint)
        )
        retry = RetryPolicy(max_failures=0, max_preemptions=max_preemptions, backoff_s=0.01, max_backoff_s=0.1)
        return JobRequest("beats", entrypoint, lab.SMALL, retry=retry)

    def runs(self) -> list[Run]:
        """All there have been, in order."""
        found = []
        for path in self.directory.glob("*.*"):
            began, pid = path.name.split(".")
            with contextlib.suppress(ValueError):  # written in a moment
                found.append(Run(lab.Process.of(int(pid)), int(began), int(path.read_text())))
        return sorted(found, key=lambda run: run.began_ns)

    def alive_since(self, moment_ns: int) -> bool:
        """Whether it has been, at a moment or after it."""
        runs = self.runs()
        return bool(runs) and runs[-1].alive_ns >= moment_ns

    def wait_for_run(self, number: int = 1) -> Run:
        """That run, from 1."""
        return lab.wait_until(
            lambda: self.runs()[number - 1] if len(self.runs()) >= number else None, f"run {number}", WITHIN_S
        )

    def let_end(self) -> None:
        """Makes it return how many lines it printed."""
        (self.directory / "gate").touch()

    def check_no_overlap(self, *, runs: int) -> None:
        """So many there were, each over before the next began."""
        found = self.runs()
        assert len(found) == runs
        for former, latter in itertools.pairwise(found):
            assert former.alive_ns < latter.began_ns
            assert former.process.pid != latter.process.pid


def cut(site: Site, worker: Host) -> None:
    """Nothing reaches it or comes from it."""
    site.network.cut(worker)


def lose_what_it_says(site: Site, worker: Host) -> None:
    """It hears the controller, and the controller does not hear it."""
    site.network.lose(worker, site.controller)


def lose_what_it_is_told(site: Site, worker: Host) -> None:
    """The controller hears it, and it does not hear the controller."""
    site.network.lose(site.controller, worker)


FAULTS = [cut, lose_what_it_says, lose_what_it_is_told]


def on_cpus(cpu: int, function: Callable[..., object], *args: object) -> JobRequest:
    """A job that only a worker with so many cores takes, and that is not tried again."""
    retry = RetryPolicy(max_failures=0, max_preemptions=0)
    return JobRequest(
        function.__name__,
        Entrypoint.from_callable(function, *args),
        ResourceConfig.with_cpu(cpu=cpu, memory="100MB"),
        retry=retry,
    )
