"""Which directories an operator can show to containers."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from fluster.cluster.docker.mounts import Mount, check_mounts


def test_a_mount_is_a_directory_where_containers_see_it_and_whether_they_may_write() -> None:
    assert Mount.parse("/data") == Mount(Path("/data"), PurePosixPath("/data"))
    assert Mount.parse("/data/x:/mnt/x") == Mount(Path("/data/x"), PurePosixPath("/mnt/x"))
    assert Mount.parse("/data:/mnt/x:ro") == Mount(Path("/data"), PurePosixPath("/mnt/x"), read_only=True)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "/data:", ":/data", "/data:rw", "/data:/x:rw", "/data:/x:ro:z"),
        *("data", "./data", "/data:x", "~/data", "/data/../etc:/x", "/data:/x/..", "/data:/x/../usr"),
        *("/", "/data:/", "/data:/usr", "/data:/usr/lib/python3", "/data:/etc/passwd", "/data:/var", "/data:/proc/1"),
        *("/data:/var/lib/fluster", "/data:/var/lib/fluster/worker", "/var/lib", "/data:/fluster/site", "/data:/dev"),
    ],
)
def test_what_is_relative_or_hides_what_containers_need_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="mount"):
        Mount.parse(text)


def test_a_mount_must_be_there_and_mounts_do_not_hide_one_another(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("missing", "file"):
        with pytest.raises(ValueError, match="no directory of this machine"):
            check_mounts([Mount.parse(f"{tmp_path / name}:/data")], [])
    with pytest.raises(ValueError, match="two mounts"):
        check_mounts([Mount.parse(f"{tmp_path}:/data"), Mount.parse(f"{tmp_path}:/data/below:ro")], [])
    check_mounts([Mount.parse(f"{tmp_path}:/data"), Mount.parse(f"{tmp_path}:/other:ro")], [])


def test_no_mount_shows_the_engines_socket_or_a_state_directory_by_whatever_path(tmp_path: Path) -> None:
    state, beside = tmp_path / "all" / "state", tmp_path / "all" / "beside"
    (state / "blobs").mkdir(parents=True)
    beside.mkdir()
    (tmp_path / "link").symlink_to(state)
    check_mounts([Mount.parse(f"{beside}:/data")], [state])
    for path in (state, state.parent, state / "blobs", tmp_path / "link"):
        with pytest.raises(ValueError, match="would show"):
            check_mounts([Mount.parse(f"{path}:/data")], [state])
    with pytest.raises(ValueError, match="would show"):
        check_mounts([Mount.parse("/run:/data")], [Path("/run/docker.sock")])
