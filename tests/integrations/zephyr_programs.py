"""Pipelines that the tests run; each function gets a client and gives what can be written as JSON."""

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zephyr.context
from fray.types import ResourceConfig
from zephyr.context import ZephyrContext
from zephyr.coordinator import ZephyrCoordinator
from zephyr.dataset import Dataset
from zephyr.worker_context import zephyr_worker_ctx

from fluster.integrations.zephyr import FlusterBackend

SMALL = ResourceConfig(cpu=1, ram="512m")
TINY = ResourceConfig(cpu=1, ram="512m")


def context(client: Any, workers: int = 2) -> ZephyrContext:
    return ZephyrContext(
        client=client,
        max_workers=workers,
        resources=SMALL,
        coordinator_resources=TINY,
        chunk_storage_prefix=os.path.abspath("chunks"),
        name="test",
    )


def until(condition: Callable[[], object], within_s: float = 120.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the condition did not come true")
        time.sleep(0.05)


def short(client: Any) -> Any:
    """Every kind of operation on one pool, whose first tasks are handed out by replies that never arrive."""
    used = FlusterBackend(client.cluster, 2, "512MB", storage=os.path.abspath("short"), isolate_shards=False)
    with coordinators(DropsReplies), used as pool:
        began = time.monotonic()
        found: dict[str, Any] = {"mapped": pool.execute(Dataset.from_list([1, 2, 3]).map(lambda n: n * n))}
        found |= {"seconds": time.monotonic() - began, "cuts": pool.context._coordinator.cuts()}
        found |= {**operations(pool), "here": os.getpid()}
    until(lambda: all(job.status.finished() for job in client.cluster.list_jobs()))
    return found


def isolated(client: Any) -> Any:
    """What of it differs when each shard is a program of its own, which takes 3 s of processor."""
    with FlusterBackend(client.cluster, 2, "512MB", storage=os.path.abspath("isolated")) as pool:
        return {
            "where": pool.execute(Dataset.from_list([1, 2]).map(_where)),
            "counted": sorted(pool.execute(skewed())),
            "error": what(lambda: pool.execute(Dataset.from_list([3, 4]).map(_refuse_four))),
            "here": os.getpid(),
        }


def skewed() -> Any:
    """Words, of which nearly all are the same, counted."""
    words = Dataset.from_list([["a"] * 200 + ["b"], ["a"] * 100 + ["c"]]).flat_map(lambda row: row)
    return words.group_by(lambda word: word, reducer=lambda word, group: [word, sum(1 for _ in group)])


def operations(pool: FlusterBackend) -> dict[str, Any]:
    """What pipelines of each kind give."""
    numbers = Dataset.from_list(list(range(6)))
    rows = [{"key": n % 3, "n": n} for n in range(12)]
    by_key = Dataset.from_list([rows[:6], rows[6:]]).flat_map(lambda part: part)
    largest = by_key.group_by(
        lambda row: row["key"],
        reducer=lambda key, group: [key, [row["n"] for row in group]],
        sort_by=lambda row: -row["n"],
    )
    files = pool.execute(by_key.write_parquet(os.path.join(pool.context.chunk_storage_prefix, "{shard:05d}.parquet")))
    pool.context.put("factor", 7)
    shared = numbers.map(lambda n: n * zephyr_worker_ctx().get_shared("factor"))
    return {
        "where": pool.execute(Dataset.from_list([1, 2]).map(_where)),
        "filtered": sorted(pool.execute(numbers.map(lambda n: n * 3).filter(lambda n: n % 2 == 0))),
        "counted": sorted(pool.execute(skewed())),
        "sorted": sorted(pool.execute(largest)),
        "once": sorted(row["key"] for row in pool.execute(by_key.deduplicate(lambda row: row["key"]))),
        "files": len(files),
        "read": sorted(row["n"] for row in pool.execute(Dataset.from_list(files).load_parquet())),
        "shared": sorted(pool.execute(shared)),
        "empty": pool.execute(Dataset.from_list([])),
        "nothing left": pool.execute(numbers.filter(lambda _: False)),
        "many": len(pool.execute(Dataset.from_list([1, 2]).flat_map(lambda _: range(30_000)))),
        **_two_at_once(pool),
        "error": what(lambda: pool.execute(numbers.map(_refuse_four))),
    }


def what(call: Callable[[], object]) -> str:
    """Type and text of what a call raises."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def _where(_: int) -> list[int]:
    time.sleep(0.3)  # one worker does not do both
    return [os.getpid(), os.getppid()]


def _two_at_once(pool: FlusterBackend) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}

    def run(name: str) -> None:
        found[name] = sorted(pool.execute(Dataset.from_list([1, 2, 3]).map(lambda n: n + 1)))

    both = [threading.Thread(target=run, args=(name,)) for name in ("one", "other")]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    return found


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
    with coordinators(NotesItself):
        thread = threading.Thread(target=lambda: done.append(list(context(client).execute(counted).results)))
        thread.start()
        until(lambda: len(list(notes.glob("*.pids"))) == 2)
    shard, worker = map(int, (notes / "0.pids").read_text().split())
    pid = {"shard": shard, "worker": worker, "coordinator": int(Path("coordinator.pid").read_text())}[whom]
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    (notes / "go").touch()
    thread.join(200)
    return {"results": done, "seconds": time.monotonic() - began}


@contextlib.contextmanager
def coordinators(kind: Any) -> Iterator[None]:
    """Zephyr starts coordinators of this class."""
    before = zephyr.context.ZephyrCoordinator
    zephyr.context.ZephyrCoordinator = kind
    try:
        yield
    finally:
        zephyr.context.ZephyrCoordinator = before


class NotesItself(ZephyrCoordinator):  # type: ignore[misc] # where Zephyr is not installed
    """Says which process it is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        Path("coordinator.pid").write_text(str(os.getpid()))
        super().__init__(*args, **kwargs)


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

    def stop_workers(self, drain_timeout: float = 5.0) -> None:
        super().stop_workers(0.1)  # nothing runs any more: no need to wait for each to say so

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
