"""fray's own tests of clients and actors, from its source distribution, run against Fluster's client."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from tests.integrations.zephyr_python import HERE, LONG, variables, zephyr_python

ONE_PROCESS = {
    "test_client.py::test_submit_with_adopt_existing_false_default": "says that LocalClient knows no names",
    "test_client.py::test_submit_with_adopt_existing_true": "says that LocalClient knows no names",
    "test_actor.py::test_remote_actor_keeps_explicit_client": "compares clients by identity",
    "test_actor.py::test_actor_group_create_and_wait_ready": "has actors be there as soon as they are asked for",
    "test_actor.py::test_actor_group_construction_failure_removes_ready_actors": "shares a list with actors",
}


@LONG
@pytest.mark.timeout(300)
def test_frays_own_tests_pass_where_they_do_not_assume_one_process() -> None:
    python = zephyr_python()
    found = sorted(Path(python).parents[1].glob("sdist/*/tests/test_client.py"))
    if not found:
        pytest.skip("needs fray's source distribution beside Zephyr's environment: `tools/zephyr-env` gets it")
    tests = found[0].parent
    files = ["--rootdir=.", "test_client.py", "test_actor.py"]
    left_out = [f"--deselect={each}" for each in ONE_PROCESS]
    ran = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "contract_plugin", *left_out, *files],
        cwd=tests,
        env=variables(PYTHONPATH=f"{variables()['PYTHONPATH']}:{HERE}"),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    passed, deselected = re.search(r"(\d+) passed, (\d+) deselected", ran.stdout).groups()  # type: ignore[union-attr]
    assert int(passed) >= 20
    assert int(deselected) == len(ONE_PROCESS)
