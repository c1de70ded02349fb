"""Counts the words of a million generated rows with Zephyr, and says whether a plain count gives the same.

    python examples/zephyr_wordcount.py [--rows 1000000] [--files 4] [--workers 4] [--storage DIR] [--in-workers]

Run it with Zephyr's interpreter; see docs/zephyr.md for the two environments. It uses the configured cluster, or one
that it starts on this machine and ends with itself: FLUSTER_SERVER_PYTHON names the interpreter of its daemons. Where
workers are containers or other machines, --storage names a directory that this program and they see at one path.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from zephyr.dataset import Dataset

from fluster import Cluster, LocalCluster, current_cluster
from fluster.cluster.config import find_cluster
from fluster.integrations.zephyr import FlusterBackend

WORDS = ["the", "of", "cluster", "worker", "lease", "gang", "attempt", "slice"]
WEIGHTS = [400, 200, 50, 20, 10, 5, 2, 1]
"""Skewed, as words are."""


def write_rows(directory: Path, rows: int, files: int) -> Counter[str]:
    """Writes the input, and counts it plainly on the way."""
    chance, counted = random.Random(1), Counter[str]()
    for number in range(files):
        share = rows // files + (number < rows % files)
        words = chance.choices(WORDS, WEIGHTS, k=share)
        counted.update(words)
        with (directory / f"rows-{number:05d}.jsonl").open("w") as file:
            file.writelines(json.dumps({"row": row, "word": word}) + "\n" for row, word in enumerate(words))
    return counted


def count_group(word: str, rows: Iterator[object]) -> dict[str, object]:
    """How often a word is there."""
    return {"word": word, "count": sum(1 for _ in rows)}


def count_rows(backend: FlusterBackend, directory: Path) -> Counter[str]:
    """The same count, by a pipeline."""
    rows = Dataset.from_files(str(directory / "*.jsonl")).load_jsonl()
    found = backend.execute(rows.group_by(lambda row: row["word"], reducer=count_group))
    return Counter({each["word"]: each["count"] for each in found})


def any_cluster(workers: int) -> AbstractContextManager[Cluster]:
    """The configured one, or one of this machine with a core for each worker and some for the coordinator."""
    if find_cluster() is not None:
        return nullcontext(current_cluster())
    return LocalCluster(cpu=workers + 1)


def main() -> None:
    """Writes, counts twice, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--storage", help="a directory that all workers see; default: a temporary one")
    parser.add_argument("--in-workers", action="store_true", help="shards run in the workers, not as programs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.storage) as name, any_cluster(options.workers) as cluster:
        directory = Path(name)
        if options.storage:
            directory.chmod(0o1777)  # as /tmp is: containers' users are others
        (directory / "input").mkdir()
        plainly = write_rows(directory / "input", options.rows, options.files)
        began = time.monotonic()
        chunks, isolate = str(directory / "chunks"), not options.in_workers
        backend = FlusterBackend(cluster, options.workers, "1GB", storage=chunks, isolate_shards=isolate)
        counted = count_rows(backend, directory / "input")
        print(f"{counted.total()} rows of {options.files} files in {time.monotonic() - began:.1f} s")
    for word, count in counted.most_common(3):
        print(f"{count:>9} {word}")
    print("a plain count gives the same" if counted == plainly else "a plain count gives something else")
    raise SystemExit(counted != plainly)


if __name__ == "__main__":
    main()
