"""Control groups: what is found, what is written, what is read, and that every mixture of them kills."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fluster.cluster.attempt.cgroup import AttemptCgroup, Bounds, Hierarchy, remove_tree
from fluster.cluster.worker import cgroup as detection
from fluster.cluster.worker.cgroup import WorkerCgroups, find_cgroups

BOUNDS = Bounds(cpu=2.5, cpu_quota=True, memory_bytes=300_000_000, pids=77)


@pytest.fixture
def found() -> Iterator[WorkerCgroups]:
    groups = find_cgroups(f"test-{os.getpid()}-found")
    if groups.enforcement == "none":
        pytest.skip("needs control groups that this user may make")
    yield groups
    groups.remove_leftovers()
    assert not any(parent.path.exists() for parent in groups.parents)


def _read(groups: AttemptCgroup, controller: str, name: str) -> str:
    (directory,) = [each.path for each in groups.hierarchies if controller in each.controllers]
    return (directory / name).read_text().strip()


def test_finding_leaves_nothing_behind() -> None:
    groups = find_cgroups(f"test-{os.getpid()}-search")
    assert not any(parent.path.exists() for parent in groups.parents)


def test_none_can_be_asked_for() -> None:
    groups = find_cgroups("any", enforcement="none")
    assert groups == WorkerCgroups(())
    assert groups.enforcement == "none"


def test_limits_are_set_as_asked(found: WorkerCgroups) -> None:
    groups = AttemptCgroup.below(found.parents)
    groups.limit(BOUNDS)
    try:
        assert _read(groups, "pids", "pids.max") == "77"
        if found.enforcement == "v2":
            assert int(_read(groups, "memory", "memory.max")) == pytest.approx(300_000_000, abs=4096)
            assert _read(groups, "cpu", "cpu.weight") == "250"
            assert _read(groups, "cpu", "cpu.max") == "250000 100000"
        else:
            assert int(_read(groups, "memory", "memory.limit_in_bytes")) == pytest.approx(300_000_000, abs=4096)
            assert _read(groups, "cpu", "cpu.shares") == "2560"
            assert _read(groups, "cpu", "cpu.cfs_quota_us") == "250000"
    finally:
        assert groups.remove()


def test_without_a_quota_idle_cores_may_be_used(found: WorkerCgroups) -> None:
    groups = AttemptCgroup.below(found.parents)
    groups.limit(Bounds(cpu=1.0, cpu_quota=False, memory_bytes=None, pids=77))
    try:
        name, unlimited = ("cpu.max", "max 100000") if found.enforcement == "v2" else ("cpu.cfs_quota_us", "-1")
        assert _read(groups, "cpu", name) == unlimited
    finally:
        assert groups.remove()


async def test_an_attempt_is_inside_and_its_shim_is_not(lab: Any, until: Any) -> None:
    def look() -> str:
        with open("/proc/self/cgroup") as mine, open(f"/proc/{__import__('os').getppid()}/cgroup") as shims:
            return mine.read() + "shim\n" + shims.read()

    async with lab() as it:
        if it.runtime.enforcement == "none":
            pytest.skip("needs control groups")
        mine, _, shims = (await it.run(look)).value.partition("shim\n")
    assert "/fluster-test-" in mine
    assert "/fluster-test-" not in shims


@pytest.mark.root
@pytest.mark.parametrize("kind", ["cgroup.kill", "freezer", "memory"])
async def test_any_mixture_of_hierarchies_ends_a_fork_storm(lab: Any, until: Any, tmp_path: Path, kind: str) -> None:
    mounts = list(detection._mounts())
    directory = f"fluster-test-{os.getpid()}-{kind}"
    found = (
        detection._find_killer([mount for mount in mounts if mount.version == 2], directory)
        if kind == "cgroup.kill"
        else detection._find_v1_controller(mounts, directory, (kind,))
    )
    if found is None:
        pytest.skip(f"no usable {kind} hierarchy here")
    storm = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(3):
    os.fork()
os.setsid()
open(os.path.join(sys.argv[1], str(os.getpid())), "w").close()
for _ in range(500):
    if os.fork():
        os._exit(0)
while True:
    signal.pause()
"""
    pids = tmp_path / "pids"
    pids.mkdir()
    async with lab(cgroups=WorkerCgroups((found,))) as it:
        attempt = it.attempt(
            command=("sh", "-c", '"$0" -S -c "$1" "$2" & exec sleep 60', sys.executable, storm, str(pids))
        )
        await it.runtime.start(attempt)
        until(lambda: len(list(pids.iterdir())) == 8)
        await it.runtime.stop(attempt.uid, 0.0)
        await asyncio.wait_for(it.runtime.wait(attempt.uid), 5)
        left = [line for line in _environments() if f"FLUSTER_ATTEMPT_UID={attempt.uid}".encode() in line]
    assert left == []
    assert not found.path.exists()


def _environments() -> Iterator[list[bytes]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                yield Path("/proc", name, "environ").read_bytes().split(b"\0")
            except OSError:
                continue


def test_an_attempt_that_divided_its_cgroup_is_removed_with_its_divisions(found: WorkerCgroups) -> None:
    groups = AttemptCgroup.below(found.parents)
    for hierarchy in groups.hierarchies:
        (hierarchy.path / "inner" / "deeper").mkdir(parents=True)
    assert groups.pids() == set()
    assert groups.remove()
    assert groups.remove(), "removing again is harmless"


def test_processes_of_inner_cgroups_are_found_and_killed(found: WorkerCgroups, until: Any) -> None:
    groups = AttemptCgroup.below((found.parents[0],))
    inner = groups.hierarchies[0].path / "inner"
    inner.mkdir()
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        (inner / "cgroup.procs").write_text(str(sleeper.pid))
        assert groups.pids() == {sleeper.pid}
        assert not groups.remove(tries=1)
        groups.kill()
        assert sleeper.wait() == -9
    assert groups.remove()


def test_leftovers_of_killed_shims_are_removed_and_living_ones_kept(found: WorkerCgroups) -> None:
    dead, living = AttemptCgroup.below(found.parents), AttemptCgroup.below(found.parents)
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        for hierarchy in living.hierarchies:
            (hierarchy.path / "cgroup.procs").write_text(str(sleeper.pid))
        found.remove_leftovers()
        assert not any(each.path.exists() for each in dead.hierarchies)
        assert all(each.path.exists() for each in living.hierarchies)
        sleeper.kill()
    found.remove_leftovers()


@pytest.fixture
def v2(tmp_path: Path) -> AttemptCgroup:
    """The files of a v2 cgroup, for machines whose controllers belong to v1."""
    directory = tmp_path / "attempt"
    directory.mkdir()
    for name in ("memory.max", "memory.swap.max", "cpu.weight", "cpu.max", "pids.max"):
        (directory / name).touch()
    (directory / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n")
    (directory / "memory.peak").write_text("4096000\n")
    return AttemptCgroup((Hierarchy(directory, 2, ("memory", "pids", "cpu")),))


def test_v2_limits_are_written_in_its_own_words(v2: AttemptCgroup) -> None:
    v2.limit(BOUNDS)
    directory = v2.hierarchies[0].path
    written = {path.name: path.read_text() for path in directory.iterdir()}
    assert written["memory.max"] == "300000000"
    assert written["memory.swap.max"] == "0"
    assert written["cpu.weight"] == "250"
    assert written["cpu.max"] == "250000 100000"
    assert written["pids.max"] == "77"


def test_v2_tells_kills_for_memory_and_the_peak(v2: AttemptCgroup) -> None:
    assert v2.oom_kills() == 1
    assert v2.peak_memory_bytes() == 4096000
    (v2.hierarchies[0].path / "memory.peak").unlink()
    assert v2.peak_memory_bytes() == 0, "older kernels do not say"


def test_v2_is_taken_where_controllers_are_delegated(tmp_path: Path) -> None:
    service = tmp_path / "system.slice" / "fluster.service"
    service.mkdir(parents=True)
    for directory, enabled in (
        (tmp_path, "cpu memory pids"),
        (tmp_path / "system.slice", "memory pids"),
        (service, ""),
    ):
        (directory / "cgroup.procs").write_text("1\n")
        (directory / "cgroup.controllers").write_text("cpu io memory pids\n")
        (directory / "cgroup.subtree_control").write_text(f"{enabled}\n")
    assert detection._delegated(tmp_path) == ("memory", "pids", "cpu")
    assert detection._delegated(tmp_path / "system.slice") == ("memory", "pids")
    mount = detection._Mount(2, (), tmp_path, service)
    assert list(detection._upwards(mount)) == [service, service.parent, tmp_path]


def test_a_worker_inside_an_attempt_does_not_look_above_that_attempts_cgroup(tmp_path: Path) -> None:
    attempt = tmp_path / "fluster-outer" / "0123456789abcdef"
    mount = detection._Mount(2, (), tmp_path, attempt)
    assert list(detection._upwards(mount)) == [attempt]


def test_a_path_outside_of_what_is_mounted_is_its_top() -> None:
    assert detection._place("/sys/fs/cgroup", "/", "/a/b") == Path("/sys/fs/cgroup/a/b")
    assert detection._place("/sys/fs/cgroup", "/docker/x", "/docker/x/y") == Path("/sys/fs/cgroup/y")
    assert detection._place("/sys/fs/cgroup", "/docker/x", "/elsewhere") == Path("/sys/fs/cgroup")


def test_removing_what_is_not_there_is_harmless(tmp_path: Path) -> None:
    assert remove_tree(tmp_path / "nothing")
