"""The first program people run: it counts right, and what it says to type next works."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fluster import LocalCluster
from fluster.cluster.context import read_token_file

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "examples/wordcount.py"
# Counting keeps all cores busy for seconds, on a machine that has other work for much longer.
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def wordcount(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    yield importlib.import_module("wordcount")
    sys.modules.pop("wordcount", None)


def environ(home: Path, **more: str) -> dict[str, str]:
    places = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), "XDG_STATE_HOME": str(home / "state")}
    return {**{name: value for name, value in os.environ.items() if not name.startswith("FLUSTER_")}, **places, **more}


def useful_commands(stdout: str) -> list[str]:
    """The block at the end, without what is said about each."""
    block = stdout.partition("Useful commands\n")[2]
    return [line.partition("  #")[0].strip() for line in block.splitlines()]


def run(command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=100)


def test_a_gang_counts_what_a_single_process_counts(wordcount: Any) -> None:
    alone = wordcount.count_words(wordcount.source_files())
    with LocalCluster(cpu=2, memory="8GB") as cluster:
        _, together = wordcount.run(cluster, 4, wordcount.PlainView())
    assert together.words == alone.words
    assert (together.files, together.size_bytes) == (alone.files, alone.size_bytes)
    assert alone.size_bytes > 5_000_000
    assert {"self", "def", "the", "return"} <= {word for word, _ in alone.words.most_common(10)}


def test_every_file_is_the_share_of_exactly_one_task(wordcount: Any) -> None:
    files = wordcount.source_files()
    assert len(files) == len(set(files))
    shares = [files[task::4] for task in range(4)]
    assert sorted(path for share in shares for path in share) == sorted(files)
    sizes = [sum(path.stat().st_size for path in share) for share in shares]
    assert max(sizes) < 2 * min(sizes)


def test_a_word_is_three_letters_or_more_whatever_their_case(wordcount: Any, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"The THE the_x is it\xff not2be don't snake_case CamelCase")
    words = wordcount.count_words([tmp_path / "a.py"]).words
    assert words == {"the": 3, "not": 1, "don": 1, "snake": 1, "case": 1, "camelcase": 1}


def test_the_program_says_what_it_found_and_what_it_says_to_type_next_works(tmp_path: Path) -> None:
    variables = environ(tmp_path)
    ran = run([sys.executable, str(PROGRAM), "--tasks", "2"], variables)
    assert ran.returncode == 0, ran.stderr
    words = re.findall(r"^  ([a-z]{3,}) +[0-9,]+$", ran.stdout, re.MULTILINE)
    assert len(words) == 10
    assert re.search(r"counted by 2 tasks in [0-9.]+ s\.", ran.stdout)
    assert "[task 1]" in ran.stderr

    first, *others = useful_commands(ran.stdout)
    said = subprocess.run(first, shell=True, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60)
    assert said.stdout.startswith("hello from j")
    assert shlex.split(others[0])[-1] == "up"
    # Counting once more would take as long as the rest of this test.
    others = [f"{command} --help" if "wordcount" in command else command for command in others]
    try:
        for command in others:
            typed = subprocess.run(command, shell=True, cwd=ROOT, env=variables, capture_output=True, timeout=100)
            assert typed.returncode == 0, (command, typed.stderr)
    finally:
        run([sys.executable, "-m", "fluster", "down"], variables)


def test_on_a_cluster_that_stays_the_commands_are_about_the_job(tmp_path: Path) -> None:
    with LocalCluster(cpu=2, memory="8GB") as cluster:
        token = read_token_file(cluster._daemon.token_file)
        variables = environ(tmp_path, FLUSTER_CLUSTER_ADDRESS=cluster.address, FLUSTER_TOKEN=token)
        ran = run([sys.executable, str(PROGRAM), "--tasks", "1"], variables)
        assert ran.returncode == 0, ran.stderr
        for command in useful_commands(ran.stdout)[:4]:
            typed = subprocess.run(command, shell=True, cwd=ROOT, env=variables, capture_output=True, timeout=60)
            assert typed.returncode == 0, (command, typed.stderr)
            assert typed.stdout
