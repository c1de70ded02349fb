"""A process runtime for a test, and attempts for it."""

import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from fluster.cluster.attempt import proc
from fluster.cluster.worker.cgroup import find_cgroups
from fluster.cluster.worker.process_runtime import ProcessRuntime
from fluster.cluster.worker.runtime import AttemptStart, ExitRecord, Gone
from fluster.rpc.gen.fluster.cluster.v1.types_pb import Outcome, RemoteError

_names = (f"test-{os.getpid()}-{number}" for number in itertools.count())


_numbers = itertools.count()


@dataclass(frozen=True)
class Ended:
    """All there is to know of an attempt that ran to its end."""

    record: ExitRecord
    directory: Path

    @property
    def stdout(self) -> str:
        return (self.directory / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.directory / "stderr").read_text()

    @property
    def value(self) -> Any:
        outcome = self._outcome()
        assert outcome.kind is not None
        assert outcome.kind.field == "value", outcome
        return cloudpickle.loads(outcome.kind.value)

    @property
    def error(self) -> RemoteError:
        outcome = self._outcome()
        assert outcome.kind is not None
        assert outcome.kind.field == "error", outcome
        return outcome.kind.value

    @property
    def has_result(self) -> bool:
        return (self.directory / "result").exists()

    def _outcome(self) -> Outcome:
        return Outcome.from_binary((self.directory / "result").read_bytes())


@dataclass
class Lab:
    runtime: ProcessRuntime
    root: Path
    _uids: set[str] = field(default_factory=set)

    def attempt(
        self,
        target: Callable[..., object] | None = None,
        *args: object,
        command: tuple[str, ...] | None = None,
        uid: str | None = None,
        environment: dict[str, str] | None = None,
        **fields: Any,
    ) -> AttemptStart:
        """An attempt of a function (defined inside another one, so that it is pickled by value) or a command."""
        # Of this machine's only one: what is left of an attempt is found by its uid, wherever it hides.
        uid = uid or f"attempt-{os.getpid()}-{next(_numbers)}"
        directory = self.root / uid
        directory.mkdir(exist_ok=True)
        if command is None:
            (directory / "entrypoint").write_bytes(cloudpickle.dumps((target, args, {})))
        self._uids.add(uid)
        return AttemptStart(
            uid=uid,
            directory=directory,
            command=command,
            environment={**os.environ, **(environment or {})},
            working_directory=fields.pop("working_directory", directory),
            **fields,
        )

    async def run(self, *arguments: Any, **fields: Any) -> Ended:
        attempt = self.attempt(*arguments, **fields)
        await self.runtime.start(attempt)
        record = await self.runtime.wait(attempt.uid)
        assert isinstance(record, ExitRecord)
        return Ended(record, attempt.directory)

    async def finish(self, uid: str) -> ExitRecord | Gone:
        await self.runtime.stop(uid, 0.0)
        return await self.runtime.wait(uid)

    async def close(self) -> None:
        for uid in self._uids:
            with contextlib.suppress(LookupError):
                await self.finish(uid)
        await self.runtime.close()


@pytest.fixture
def lab(tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[Lab]]:
    @contextlib.asynccontextmanager
    async def make(*, enforcement: str = "auto", **options: Any) -> AsyncIterator[Lab]:
        name = options.pop("name", None) or next(_names)
        found = find_cgroups(name, enforcement=enforcement)
        if enforcement != "auto" and found.enforcement != enforcement:
            pytest.skip(f"needs control groups {enforcement}; this machine gives {found.enforcement}")
        root = options.pop("root", tmp_path)
        made = Lab(ProcessRuntime(name, cgroups=options.pop("cgroups", found), **options), root)
        try:
            yield made
        finally:
            await made.close()
        eventually(lambda: not any(parent.path.exists() for parent in found.parents))

    return make


def eventually(condition: Callable[[], bool], *, within_s: float = 10.0) -> None:
    """Waits for what another process is about to do."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


@pytest.fixture
def until() -> Callable[..., None]:
    return eventually


def is_there(pid: int) -> bool:
    """Whether a process of that number exists and is more than a zombie."""
    started = proc.start_time(pid)
    return started is not None and proc.is_running(pid, started)


@pytest.fixture
def alive() -> Callable[[int], bool]:
    return is_there
