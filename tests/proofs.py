"""The tests that show promises by breaking things again and again, or by whole deployments: seconds each.

`make test` leaves them out, `make proofs` runs them, and continuous integration does both.
"""

from __future__ import annotations

from pathlib import Path

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
    # Machines and jobs that are containers, other libraries, whole programs.
    "backend/test_docker_backend.py",
    "cli/test_up.py",
    "cli/test_up_docker.py",
    "e2e/test_compose.py",
    "e2e/test_docker_cluster.py",
    "e2e/test_job_users.py",
    "e2e/test_wordcount.py",
    "examples/",
    "integrations/",
    "worker/test_docker_runtime.py",
)


def is_proof(test: Path, name: str) -> bool:
    """Whether a test of this file, with its parameters in the name, is one."""
    return test.relative_to(_TESTS).as_posix().startswith(_PROOFS) or "[docker-" in name
