"""The tests that show promises by breaking things again and again, or by whole deployments: seconds each.

`make test` leaves them out, `make proofs` runs them, and continuous integration does both.
"""

from __future__ import annotations

from pathlib import Path

import pytest

_TESTS = Path(__file__).parent
_PROOFS = (
    # Processes that are killed, disks, clocks and leases at every moment.
    "actor/test_broken_connections.py",
    "actor/test_hammer.py",
    "actor/test_kills.py",
    "cluster/controller/test_crowds.py",
    "cluster/controller/test_store_faults.py",
    "e2e/test_chaos.py",
    "e2e/test_chaos_running.py",
    "e2e/test_clock_jumps.py",
    "e2e/test_crash_points.py",
    "e2e/test_escapees.py",
    "e2e/test_last_lines.py",
    "e2e/test_leases.py",
    "e2e/test_recovery.py",
    "e2e/test_server_restart.py",
    "e2e/test_state_directory.py",
    "network/",
    "worker/process/test_escape.py",
    # What random events, frames and requests lead to.
    "core/test_any_order.py",
    "fuzz/",
    "sim/",
    # Clusters that are started and ended by every test, other libraries, whole programs.
    "cli/test_run_alone.py",
    "cli/test_up.py",
    "e2e/test_current_cluster.py",
    "e2e/test_environments.py",
    "e2e/test_job_users.py",
    "e2e/test_local_cluster.py",
    "e2e/test_server_python.py",
    "e2e/test_wordcount.py",
    "examples/",
    "integrations/",
)


def is_proof(test: pytest.Item) -> bool:
    """Whether it is one: by its file, or because it needs containers."""
    file = test.path.relative_to(_TESTS).as_posix()
    return file.startswith(_PROOFS) or test.get_closest_marker("docker") is not None
