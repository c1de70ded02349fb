"""What a cluster keeps on disk is its user's alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fluster import LocalCluster


def test_nobody_else_may_read_anything_in_a_state_directory(tmp_path: Path) -> None:
    state = tmp_path / "state"
    mask = os.umask(0)
    try:
        with LocalCluster(state_dir=state) as cluster:
            cluster.submit(bytes, 1_000_000).result(timeout=30)
    finally:
        os.umask(mask)
    found = [path for path in [state, *state.rglob("*")] if path.is_file() or path.is_dir()]
    assert {"controller.log", "fluster.db", "admin.token", "uploading"} <= {path.name for path in found}
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode for path in found if not _is_the_jobs_own(path)}
    assert {name: stat.filemode(mode) for name, mode in modes.items() if mode & 0o077} == {}


def _is_the_jobs_own(path: Path) -> bool:
    """Below an attempt's directory, which is closed itself."""
    return not {"work", "tmp"}.isdisjoint(path.relative_to(path.anchor).parts[path.parts.index("state") :])
