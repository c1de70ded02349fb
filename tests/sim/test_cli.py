"""`python -m fluster.testing.sim`: its summary, and how a failing seed is seen again."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from fluster.testing.sim.cli import main
from fluster.testing.sim.mutants import MUTANTS


def test_the_summary_says_what_was_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "0-1", "--hours", "0.05", "--workers", "6"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"seeds +2, 0 broken", said)
    for line in ("simulated", "speed", "events", "faults", "attempts", "lost with their machine"):
        assert line in said


def test_a_failing_seed_says_which_rule_and_how_to_see_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "0-9", "--mutant", "endpoint-kept"]) == 1
    said = capsys.readouterr().out
    assert "endpoints are of live attempts" in said
    again = re.search(r"^replay: python -m fluster\.testing\.sim (.+)$", said, re.MULTILINE)
    assert again is not None
    first = said.splitlines()[0]

    assert main(again[1].split()) == 1
    replayed = capsys.readouterr().out
    assert replayed.splitlines()[0] == first
    assert "TaskStarted" in replayed


def test_mutants_have_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list-mutants"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(MUTANTS)


def test_an_unknown_mutant_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--mutant", "no-such"])
    assert "no mutant 'no-such'" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error_to_read() -> None:
    words = [sys.executable, "-m", "fluster.testing.sim", "--list-mutants"]
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=30)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (1, "")
