"""What tries to outlive its job is gone by the time the job is known to have ended."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.e2e import lab
from tests.worker.process.test_escape import PRELUDE, PROGRAMS

from fluster import Cause, JobStatus, LocalCluster

TERMINATED = [name for name in PROGRAMS if "exits 0" not in name and "storm" not in name]
LEFT_BEHIND = "a daemon left behind by an attempt that exits 0"


def launch(cluster: LocalCluster, name: str, directory: Path) -> tuple[Path, str]:
    """The job of one of the programs, and the directory in which its processes note themselves."""
    tree = directory / "".join(filter(str.isalnum, name))
    tree.mkdir()
    prelude = PRELUDE.format(tree=str(tree))
    source = f"PRELUDE = {prelude!r}\n{prelude}\n{PROGRAMS[name][1]}"
    return tree, cluster.launch(lab.command(sys.executable, "-S", "-c", source))


def survivors(tree: Path) -> list[int]:
    return [int(path.name) for path in tree.iterdir() if lab.Process.of(int(path.name)).runs]


def test_terminating_jobs_leaves_nothing_of_programs_that_try_to_escape(cluster: LocalCluster, tmp_path: Path) -> None:
    jobs = {name: launch(cluster, name, tmp_path) for name in TERMINATED}
    for name, (tree, _) in jobs.items():
        lab.wait_until(lambda tree=tree, name=name: len(survivors(tree)) >= PROGRAMS[name][0], name)  # type: ignore[misc]
    asked_at = time.monotonic()
    for _, job_id in jobs.values():
        cluster.terminate(job_id)

    for name, (tree, job_id) in jobs.items():
        info = cluster.wait(job_id, timeout=lab.WITHIN_S)
        assert not survivors(tree), name
        assert (info.status, info.cause) == (JobStatus.STOPPED, Cause.TERMINATED), name
    assert time.monotonic() - asked_at < 18.0  # the grace of 10 s, and what ending takes


def test_a_daemon_left_behind_by_a_job_that_exits_0_is_gone_when_the_job_has_succeeded(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    tree, job_id = launch(cluster, LEFT_BEHIND, tmp_path)

    assert cluster.wait(job_id, timeout=lab.WITHIN_S).status is JobStatus.SUCCEEDED
    assert len(list(tree.iterdir())) == 1
    assert not survivors(tree)
