"""Pipelines that the tests run; each function gets a client and gives what can be written as JSON."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fray.types import ResourceConfig
from zephyr.context import ZephyrContext
from zephyr.coordinator import ZephyrCoordinator
from zephyr.dataset import Dataset
from zephyr.runners import InlineRunner
from zephyr.stage_io import ZephyrWorkerError
from zephyr.worker_context import zephyr_worker_ctx

from fluster.integrations.zephyr import FlusterBackend

SMALL = ResourceConfig(cpu=1, ram="512m")
TINY = ResourceConfig(cpu=1, ram="512m")


def context(client: Any, workers: int = 2, runner: Any = None) -> ZephyrContext:
    return ZephyrContext(
        client=client,
        max_workers=workers,
        resources=SMALL,
        coordinator_resources=TINY,
        chunk_storage_prefix=os.path.abspath("chunks"),
        name="test",
        stage_runner_factory=runner,
    )


def until(condition: Callable[[], object], within_s: float = 120.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the condition did not come true")
        time.sleep(0.05)


def backend(client: Any) -> Any:
    """The plan's own backend: a skewed group, and where its rows were made."""
    used = FlusterBackend(client.cluster, max_parallelism=2, memory_per_worker="512MB", storage=os.path.abspath("c"))
    words = Dataset.from_list([["a"] * 200 + ["b"], ["a"] * 100 + ["c"]]).flat_map(lambda row: row)
    counted = used.execute(words.group_by(lambda word: word, reducer=lambda word, group: [word, sum(1 for _ in group)]))
    where = used.execute(Dataset.from_list([1, 2]).map(lambda _: [os.getpid(), os.getppid()]))
    return {"counted": sorted(counted), "where": where, "here": os.getpid()}


def one_pool(client: Any) -> Any:
    """Every kind of operation, on one pool."""
    found: dict[str, Any] = {}
    with context(client, runner=InlineRunner) as pool:  # a program for each shard takes 2 s
        numbers = Dataset.from_list(list(range(6)))
        run = pool.execute(numbers.map(lambda n: n * 3).filter(lambda n: n % 2 == 0))
        found["mapped"] = sorted(run.results)
        rows = [{"key": n % 3, "n": n} for n in range(12)]
        by_key = Dataset.from_list([rows[:6], rows[6:]]).flat_map(lambda part: part)
        largest = by_key.group_by(
            lambda row: row["key"],
            reducer=lambda key, group: {"key": key, "n": [r["n"] for r in group]},
            sort_by=lambda row: -row["n"],
        )
        found["sorted"] = sorted((row["key"], row["n"]) for row in pool.execute(largest).results)
        once = by_key.deduplicate(lambda row: row["key"])
        found["once"] = sorted(row["key"] for row in pool.execute(once).results)
        written = pool.execute(by_key.write_parquet(os.path.abspath("parquet") + "/part-{shard:05d}.parquet")).results
        found["files"] = len(written)
        read = Dataset.from_list(list(written)).load_parquet()
        found["read"] = sorted(row["n"] for row in pool.execute(read).results)
        pool.put("factor", 7)
        shared = numbers.map(lambda n: n * zephyr_worker_ctx().get_shared("factor"))
        found["shared"] = sorted(pool.execute(shared).results)
        found["empty"] = list(pool.execute(Dataset.from_list([])).results)
        found["nothing left"] = list(pool.execute(numbers.filter(lambda _: False)).results)
        found["many"] = len(pool.execute(Dataset.from_list([1, 2]).flat_map(lambda _: range(30_000))).results)
        both = [threading.Thread(target=_count_into, args=(pool, found, name)) for name in ("one", "other")]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        try:
            pool.execute(numbers.map(_refuse_four))
        except ZephyrWorkerError as error:
            found["error"] = "four is refused" in str(error)
    return found


def _count_into(pool: ZephyrContext, found: dict[str, Any], name: str) -> None:
    run = pool.execute(Dataset.from_list([1, 2, 3]).map(lambda n: n + 1))
    found[name] = sorted(run.results)


def _refuse_four(n: int) -> int:
    if n == 4:
        raise ValueError("four is refused")
    return n


def _note_and_wait(path: str, n: int) -> int:
    """Says who it is, and goes on once the test has killed whom it kills."""
    notes = Path(path)
    (notes / f"{n}.new").write_text(f"{os.getpid()} {os.getppid()}")
    (notes / f"{n}.new").rename(notes / f"{n}.pids")
    until(lambda: (notes / "go").exists())
    return n


def killed(client: Any, whom: str) -> Any:
    """The result of a pipeline of which a process is killed while all its shards run."""
    notes = Path(f"notes-{whom}").absolute()
    notes.mkdir()
    path = str(notes)
    done: list[Any] = []
    rows = Dataset.from_list([0, 1]).map(lambda n: _note_and_wait(path, n))
    counted = rows.group_by(lambda n: n % 1, reducer=lambda _, group: sorted(group))
    thread = threading.Thread(target=lambda: done.append(list(context(client).execute(counted).results)))
    thread.start()
    until(lambda: len(list(notes.glob("*.pids"))) == 2)
    shard, worker = map(int, (notes / "0.pids").read_text().split())
    pid = {"shard": shard, "worker": worker}.get(whom) or _coordinator(client)
    os.kill(pid, signal.SIGKILL)
    (notes / "go").touch()
    thread.join(200)
    return {"results": done, "attempts": _attempts(client)}


def _coordinator(client: Any) -> int:
    """The process of the coordinator that runs."""
    (job,) = [
        job
        for job in client.cluster.list_jobs()
        if job.name.rpartition("-")[0].endswith("coordinator") and not job.status.finished()
    ]
    found = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit() and _job_of(each) == job.job_id]
    return max(found, key=lambda pid: "attempt.main" in Path(f"/proc/{pid}/cmdline").read_text())


def _job_of(process: Path) -> str:
    try:
        variables = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((each[15:].decode() for each in variables if each.startswith(b"FLUSTER_JOB_ID=")), "")


def _attempts(client: Any) -> dict[str, int]:
    jobs = [client.cluster.poll(job.job_id) for job in client.cluster.list_jobs()[:2]]
    return dict(
        Counter(
            {("workers" if "workers" in job.name else "coordinator"): max(t.attempt for t in job.tasks) for job in jobs}
        )
    )


class DropsReplies(ZephyrCoordinator):  # type: ignore[misc] # where Zephyr is not installed
    """Breaks the connection instead of sending the replies to some calls of `pull_task`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.cut = 0
        self.pulled: Counter[str] = Counter()
        super().__init__(*args, **kwargs)

    def pull_task(self, worker_id: str, available: Any) -> Any:
        answer = super().pull_task(worker_id, available)
        if answer[1] is not None and self.cut < 3:
            self.cut += 1
            _break_connections()
        return answer

    def cuts(self) -> int:
        return self.cut


def _break_connections() -> None:
    """Of all callers of this process's actors, before the reply that is being made is sent."""
    import gc
    import socket

    from fluster.actor.peers import Peer

    for each in gc.get_objects():
        if isinstance(each, Peer):
            try:
                each._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class _Dropping:
    """The client, but for the class of the coordinator."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def create_actor_group(self, actor_class: Any, *args: Any, **kwargs: Any) -> Any:
        return self._client.create_actor_group(DropsReplies, *args, **kwargs)


def replies_lost(client: Any) -> Any:
    """A pipeline whose first tasks are handed out by replies that never arrive."""
    with context(_Dropping(client)) as pool:
        began = time.monotonic()
        results = sorted(pool.execute(Dataset.from_list([1, 2, 3]).map(lambda n: n * n)).results)
        return {"results": results, "cuts": pool._coordinator.cuts(), "seconds": time.monotonic() - began}
