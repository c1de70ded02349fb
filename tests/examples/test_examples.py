"""The examples run as a user would run them, and print what they found."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.packages import make_needed_wheels, make_wheel

ROOT = Path(__file__).parents[2]


def run(home: Path, name: str, *arguments: str) -> str:
    """What an example prints."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("FLUSTER_")}
    ran = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=home,
        env={**variables, "HOME": str(home), "XDG_CONFIG_HOME": str(home / "config")},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stdout


def test_requests_go_round_the_servers_and_new_weights_to_all(tmp_path: Path) -> None:
    printed = run(tmp_path, "inference_pool.py", "--servers", "2", "--requests", "100")
    assert "100 requests, by server: [50, 50]" in printed
    assert "new weights on 2 servers: versions [2, 2]" in printed
    assert "f(10) on each server: [29.0, 29.0]" in printed


def test_players_and_a_coordinator_learn_which_lever_is_best(tmp_path: Path) -> None:
    printed = run(tmp_path, "rl.py", "--rollouts", "2", "--rounds", "40")
    assert "2 players pulled 1600 times" in printed
    assert "the best lever is number 2" in printed
    assert re.search(r"won in the last round, of 20: \[\d+, \d+\]", printed)


@pytest.mark.parametrize("numpy", [False, True])
def test_workers_fetch_large_parameters_and_bring_changes(
    tmp_path: Path, numpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if numpy:
        pytest.importorskip("numpy")
    else:
        (tmp_path / "hidden" / "numpy").mkdir(parents=True)
        (tmp_path / "hidden" / "numpy" / "__init__.py").write_text("raise ModuleNotFoundError('hidden')\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hidden"))
    printed = run(tmp_path, "parameter_store.py", "--megabytes", "100", "--workers", "2")
    assert "version 1 of 100 MB is there" in printed
    assert len(re.findall(r"fetched at [\d.]+ GB/s, brought back at [\d.]+ GB/s", printed)) == 2
    assert "what each worker changed: [1, 2]" in printed


def test_a_package_is_built_for_the_first_job_and_there_for_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_needed_wheels(tmp_path)
    make_wheel(tmp_path, "moo", "1.0", {"moo.py": ""})
    for name, value in {"UV_OFFLINE": "1", "UV_FIND_LINKS": str(tmp_path), "UV_COMPILE_BYTECODE": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    printed = run(tmp_path, "own_packages.py", "--package", "moo", "--module", "moo")
    assert "moo is here: False" in printed
    assert re.search(r"first job, .* built in .*; it imported .*/moo\.py", printed)
    assert re.search(r"second job, .* was there, .*; it imported .*/moo\.py", printed)
