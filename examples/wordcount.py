"""Counts the words of every Python source file of the standard library, with a gang of tasks on a cluster.

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fluster import (
    Cluster,
    Entrypoint,
    JobId,
    JobRequest,
    JobStatus,
    LocalCluster,
    LogLine,
    ResourceConfig,
    current_cluster,
)

WORD = re.compile(r"[a-z]{3,}")
NOT_OURS = {"site-packages", "dist-packages"}
"""Directories below the standard library that hold what was installed besides."""
SAY_EVERY_S = 0.2
DONE = re.compile(r"([\d.]+) of ([\d.]+) MB")


@dataclass
class Count:
    """What was counted."""

    words: Counter[str]
    files: int = 0
    size_bytes: int = 0


# What each task does.


def source_files() -> list[Path]:
    """Every Python source file of the running interpreter's standard library, the largest first."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in root.rglob("*.py") if path.is_file() and not NOT_OURS.intersection(path.parts)]
    return sorted(files, key=lambda path: (-path.stat().st_size, path))


def count_words(files: Sequence[Path]) -> Count:
    """Counts the words of these files and prints how far it is."""
    count = Count(Counter())
    total_bytes = sum(path.stat().st_size for path in files)
    said_at = time.monotonic()
    for path in files:
        content = path.read_bytes()
        count.words.update(WORD.findall(content.decode("utf-8", errors="replace").lower()))
        count.files += 1
        count.size_bytes += len(content)
        if time.monotonic() - said_at > SAY_EVERY_S or count.files == len(files):
            said_at = time.monotonic()
            print(f"{count.size_bytes / 1e6:.1f} of {total_bytes / 1e6:.1f} MB, {count.files} files", flush=True)
    return count


def count_share() -> Count:
    """What one task of the gang does: every n-th file, so that all get large ones and small ones."""
    task, tasks = int(os.environ["FLUSTER_TASK_INDEX"]), int(os.environ["FLUSTER_NUM_TASKS"])
    return count_words(source_files()[task::tasks])


# What the launcher does.


def launch(cluster: Cluster, tasks: int) -> JobId:
    """Launches the gang. Half a core each lets four tasks start together on a machine with two."""
    resources = ResourceConfig.with_cpu(cpu=0.5, memory="512MB", replicas=tasks)
    return cluster.launch(JobRequest("wordcount", Entrypoint.from_callable(count_share), resources))


def merge(counts: Sequence[Count]) -> Count:
    """All of them as one."""
    whole = Count(Counter())
    for count in counts:
        whole.words.update(count.words)
        whole.files += count.files
        whole.size_bytes += count.size_bytes
    return whole


def run(cluster: Cluster, tasks: int, view: View) -> tuple[JobId, Count]:
    """Launches the gang, shows what it prints, and merges what its tasks return."""
    job_id = launch(cluster, tasks)
    view.say(f"job {job_id}: a gang of {tasks} tasks")
    wait_for_start(cluster, job_id, view)
    for line in cluster.logs(job_id, follow=True):
        view.show(line)
    return job_id, merge([cluster.result(job_id, task=task) for task in range(tasks)])


def wait_for_start(cluster: Cluster, job_id: JobId, view: View) -> None:
    """Says what the job waits for, until it runs or has ended."""
    said = None
    while (info := cluster.poll(job_id)).status is JobStatus.PENDING:
        if info.pending_reason not in (None, said):
            said = info.pending_reason
            view.say(f"waiting: {said}")
        time.sleep(0.05)


def main(argv: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(description="Counts the words of the standard library on a cluster.")
    parser.add_argument("--tasks", type=int, default=4, help="how many tasks count (default: 4)")
    tasks = parser.parse_args(argv).tasks
    if tasks < 1:
        parser.error("--tasks must be at least 1")
    started = time.monotonic()
    cluster = current_cluster()
    start_s = time.monotonic() - started
    with open_view(tasks) as view:
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

    def show(self, line: LogLine) -> None:
        """What a task printed."""


class PlainView:
    """Lines, for files and pipes."""

    def say(self, text: str) -> None:
        """A line."""
        print(text, file=sys.stderr, flush=True)

    def show(self, line: LogLine) -> None:
        """What a task printed, with its index."""
        self.say(f"[task {line.task}] {line.data}")


@contextmanager
def open_view(tasks: int) -> Iterator[View]:
    """Bars that move, above them what the tasks print; plain lines where nobody can see that."""
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
        yield PlainView()
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ModuleNotFoundError:
        yield PlainView()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
    screen = Console(stderr=True, highlight=False)
    # Drawing must not take the cores that count.
    with Progress(*columns, TimeElapsedColumn(), console=screen, refresh_per_second=5) as progress:
        bars = [progress.add_task(f"task {task}", total=1, said="") for task in range(tasks)]

        class BarView:
            def say(self, text: str) -> None:
                progress.console.print(text, style="dim", markup=False)

            def show(self, line: LogLine) -> None:
                progress.console.print(f"[task {line.task}] {line.data}", markup=False)
                if found := DONE.match(line.data):
                    progress.update(bars[line.task], completed=float(found[1]), total=float(found[2]), said=found[0])

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
            (f"{fluster} status {job_id}", "how the job and its tasks ended"),
            (f"{fluster} logs {job_id} --task 0", "what its first task printed"),
            (f"{fluster} events {job_id}", "what happened to it, step by step"),
            (f"{fluster} workers", "the machines"),
            (f"{again} --tasks 8", "count again, with more tasks"),
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
