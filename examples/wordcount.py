"""Counts the words of every Python source file of the standard library, with a pool of workers on a cluster.

    python examples/wordcount.py [--tasks 4]

Runs unchanged on any cluster: the configured one, or one it starts on this machine and ends with itself. A word is
three or more letters from a to z in a row; upper case counts as lower.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fluster import Cluster, JobId, LocalCluster, ResourceConfig, current_cluster
from fluster.pool import WorkerPool

WORD = re.compile(r"[a-z]{3,}")
NOT_OURS = {"site-packages", "dist-packages"}
"""Directories below the standard library that hold what was installed besides."""
SHARES_EACH = 8
"""Parts of the work for each worker: many enough that all are busy until the end."""


@dataclass
class Count:
    """What was counted."""

    words: Counter[str]
    files: int = 0
    size_bytes: int = 0


# What the workers do.


def source_files() -> list[Path]:
    """Every Python source file of the running interpreter's standard library, the largest first."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in root.rglob("*.py") if path.is_file() and not NOT_OURS.intersection(path.parts)]
    return sorted(files, key=lambda path: (-path.stat().st_size, path))


def count_words(files: Sequence[Path]) -> Count:
    """Counts the words of these files."""
    count = Count(Counter())
    for path in files:
        content = path.read_bytes()
        count.words.update(WORD.findall(content.decode("utf-8", errors="replace").lower()))
        count.files += 1
        count.size_bytes += len(content)
    return count


def count_share(files: Sequence[Path]) -> tuple[str, Count]:
    """Counts a part, prints that, and says which worker did it."""
    count = count_words(files)
    print(f"{count.size_bytes / 1e6:.1f} MB, {count.files} files", flush=True)
    return os.environ["FLUSTER_JOB_NAME"].removeprefix("wordcount-"), count


# What the launcher does.


def merge(counts: Iterable[Count]) -> Count:
    """All of them as one."""
    whole = Count(Counter())
    for count in counts:
        whole.words.update(count.words)
        whole.files += count.files
        whole.size_bytes += count.size_bytes
    return whole


def run(cluster: Cluster, tasks: int, view: View) -> tuple[JobId, Count]:
    """Has workers count, and merges what they return as it comes; also gives the job of the first one."""
    # Half a core each lets four of them start together on a machine with two.
    resources = ResourceConfig.with_cpu(cpu=0.5, memory="512MB")
    # Each worker is a job of one task.
    with WorkerPool(cluster, tasks, resources, name_prefix="wordcount") as pool:
        job_id = cluster.list_jobs(name_prefix="wordcount-0", limit=1)[0].job_id
        view.say(f"job {job_id} and others: a pool of {tasks} workers")
        wait_for_start(pool, view)
        # Asked of a worker: its machine has the files that it counts.
        files = pool.submit(source_files).result()
        shares = [files[share :: tasks * SHARES_EACH] for share in range(tasks * SHARES_EACH)]
        return job_id, merge(shown(pool.imap(count_share, [share for share in shares if share], ordered=False), view))


def shown(results: Iterable[tuple[str, Count]], view: View) -> Iterator[Count]:
    """The counts, each shown when it comes."""
    for worker, count in results:
        view.show(worker, count)
        yield count


def wait_for_start(pool: WorkerPool, view: View) -> None:
    """Waits for all workers, but not for ever: those that are there can do the work."""
    try:
        pool.wait_for_workers(timeout=20)
    except TimeoutError as error:
        view.say(f"waiting: {error}")


def main(argv: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(description="Counts the words of the standard library on a cluster.")
    parser.add_argument("--tasks", type=int, default=4, help="how many workers count (default: 4)")
    tasks = parser.parse_args(argv).tasks
    if tasks < 1:
        parser.error("--tasks must be at least 1")
    started = time.monotonic()
    cluster = current_cluster()
    start_s = time.monotonic() - started
    with open_view() as view:
        view.say(f"the cluster at {cluster.address} is there after {start_s:.1f} s")
        started = time.monotonic()
        job_id, count = run(cluster, tasks, view)
        took_s = time.monotonic() - started
    print_count(count, took_s, tasks)
    print_useful_commands(job_id, stays=not isinstance(cluster, LocalCluster))
    cluster.close()
    return 0


# What is shown.


class View(Protocol):
    """Where progress goes."""

    def say(self, text: str) -> None:
        """A line."""

    def show(self, worker: str, count: Count) -> None:
        """What a worker counted."""


class PlainView:
    """Lines, for files and pipes."""

    def say(self, text: str) -> None:
        """A line."""
        print(text, file=sys.stderr, flush=True)

    def show(self, worker: str, count: Count) -> None:
        """What a worker counted."""
        self.say(f"[task {worker}] {count.size_bytes / 1e6:.1f} MB, {count.files} files")


@contextmanager
def open_view() -> Iterator[View]:
    """A bar that moves for each worker; plain lines where nobody can see that."""
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
        yield PlainView()
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ModuleNotFoundError:
        yield PlainView()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.1f} MB"))
    screen = Console(stderr=True, highlight=False)
    # Drawing must not take the cores that count.
    with Progress(*columns, TimeElapsedColumn(), console=screen, refresh_per_second=5) as progress:
        bars: dict[str, Any] = {}

        class BarView:
            def say(self, text: str) -> None:
                progress.console.print(text, style="dim", markup=False)

            def show(self, worker: str, count: Count) -> None:
                if worker not in bars:
                    bars[worker] = progress.add_task(f"task {worker}", total=None)
                progress.update(bars[worker], advance=count.size_bytes / 1e6)

        yield BarView()


def print_count(count: Count, took_s: float, tasks: int) -> None:
    """The ten most frequent words, and how long it took."""
    top = count.words.most_common(10)
    width = max(len(word) for word, _ in top)
    print(f"\nThe ten most frequent of {len(count.words):,} words in {count.files:,} files:")
    for word, times in top:
        print(f"  {word:{width}}  {times:>9,}")
    print(f"\n{count.size_bytes / 1e6:.1f} MB counted by {tasks} tasks in {took_s:.1f} s.")


def print_useful_commands(job_id: JobId, *, stays: bool) -> None:
    """What to type next: commands that work now, from this directory."""
    fluster, python = command_of("fluster"), command_of("python")
    again = f"{python} {shlex.quote(path_from_here(Path(__file__)))}"
    if stays:
        commands = [
            (f"{fluster} status {job_id}", "how the first worker's job ended"),
            (f"{fluster} logs {job_id} --task 0", "what it printed"),
            (f"{fluster} events {job_id}", "what happened to it, step by step"),
            (f"{fluster} workers", "the machines"),
            (f"{again} --tasks 8", "count again, with more workers"),
        ]
    else:
        commands = [
            (
                f"{fluster} run -- sh -c 'echo hello from $FLUSTER_JOB_ID'",
                "a command as a job, on a cluster of its own",
            ),
            (f"{fluster} up", "start a cluster that stays"),
            (again, "count again, on that one"),
            (f"{fluster} jobs", "what there is on it"),
            (f"{fluster} down", "end it"),
        ]
    width = max(len(command) for command, _ in commands)
    print("\nUseful commands")
    for command, meaning in commands:
        print(f"  {command:{width}}  # {meaning}")


def command_of(name: str) -> str:
    """How to call a program of this environment from here: by name where the shell finds the same, else by path."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        path = Path(sys.executable)
        return shlex.quote(str(path)) if name == "python" else f"{shlex.quote(str(path))} -m {name}"
    found = shutil.which(name)
    if found is not None and os.path.samefile(os.path.dirname(found), path.parent):
        return name
    return shlex.quote(path_from_here(path))


def path_from_here(path: Path) -> str:
    """The short form for what is below the current directory."""
    here = os.path.relpath(path)
    return os.path.abspath(path) if here.startswith("..") else here


if __name__ == "__main__":
    sys.exit(main())
