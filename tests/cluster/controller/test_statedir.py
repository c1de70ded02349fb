"""The state directory: private, held by one controller, with secrets that are made once."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fluster.cluster.controller import statelock
from fluster.cluster.controller.statedir import StateDir, StateDirError
from fluster.cluster.controller.statelock import StateDirBusy

HOLDER = """
import signal, sys
from pathlib import Path
from fluster.cluster.controller.statedir import StateDir
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
held = StateDir.open(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(directory: Path, manner: str = "polite") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory), manner],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_it_makes_is_for_its_owner_alone(tmp_path: Path) -> None:
    with StateDir.open(tmp_path / "a" / "state") as state:
        assert mode(state.path) == 0o700
        assert {mode(file) for file in state.path.iterdir()} == {0o600}
        assert state.admin_token_file.read_text().strip() == state.admin_token
        assert state.free_bytes() > 0


def test_the_secrets_are_made_once(tmp_path: Path) -> None:
    with StateDir.open(tmp_path / "one") as first:
        token, key = first.admin_token, first.cluster_key
    with StateDir.open(tmp_path / "one") as again:
        assert (again.admin_token, again.cluster_key) == (token, key)
    with StateDir.open(tmp_path / "two") as other:
        assert other.admin_token != token
        assert other.cluster_key != key
        assert len(key) == 32


@pytest.mark.parametrize("name", ["admin.token", "cluster.key"])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, name: str) -> None:
    StateDir.open(tmp_path / "state").close()
    (tmp_path / "state" / name).chmod(0o640)
    with pytest.raises(StateDirError, match=f"{name} can be read by others; run `chmod 600 "):
        StateDir.open(tmp_path / "state")
    (tmp_path / "state" / name).chmod(0o600)
    StateDir.open(tmp_path / "state").close()


@pytest.mark.parametrize("name", ["admin.token", "cluster.key"])
@pytest.mark.parametrize("content", [b"", b"fla_short", b"\xff\x00", b"x" * 10_000])
def test_a_secret_that_is_none_is_refused_and_kept(tmp_path: Path, name: str, content: bytes) -> None:
    StateDir.open(tmp_path / "state").close()
    (tmp_path / "state" / name).write_bytes(content)
    with pytest.raises(StateDirError, match=f"{name} holds no") as refused:
        StateDir.open(tmp_path / "state")
    assert (tmp_path / "state" / name).read_bytes() == content
    assert "fla_" not in str(refused.value)


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize("swap", [_link, _fifo])
def test_a_secret_is_a_plain_file(tmp_path: Path, swap: Callable[[Path], None]) -> None:
    StateDir.open(tmp_path / "state").close()
    swap(tmp_path / "state" / "admin.token")
    with pytest.raises(StateDirError, match=r"admin.token (cannot be read|is no plain file)"):
        StateDir.open(tmp_path / "state")


def test_an_empty_directory_is_made_private(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    with StateDir.open(tmp_path / "state") as state:
        assert mode(state.path) == 0o700


def test_a_directory_of_others_is_not_changed_and_refused_when_they_can_write(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    path.mkdir()
    (path / "thesis.txt").touch()
    path.chmod(0o777)
    with pytest.raises(StateDirError, match="can be written by others; run `chmod go-w "):
        StateDir.open(path)
    assert mode(path) == 0o777
    path.chmod(0o755)
    with StateDir.open(path):
        assert mode(path) == 0o755


def test_a_file_is_no_state_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StateDirError, match="cannot be used as state directory"):
            StateDir.open(path)


def test_a_second_controller_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with holder(tmp_path / "state") as process:
        with pytest.raises(StateDirBusy, match=f"pid {process.pid} on .* since 20.*--take-over") as refused:
            StateDir.open(tmp_path / "state")
        assert refused.value.holder is not None
        assert refused.value.holder.pid == process.pid
        assert process.poll() is None


def test_the_same_process_is_a_second_controller_too(tmp_path: Path) -> None:
    with StateDir.open(tmp_path / "state"):
        with pytest.raises(StateDirBusy):
            StateDir.open(tmp_path / "state")
        with pytest.raises(StateDirBusy, match="this very process"):
            StateDir.open(tmp_path / "state", take_over=True)
    StateDir.open(tmp_path / "state").close()


def test_a_killed_holder_leaves_the_directory_free(tmp_path: Path) -> None:
    with holder(tmp_path / "state") as process:
        process.kill()
        process.wait(10)
        StateDir.open(tmp_path / "state").close()


def test_a_processes_children_do_not_hold_the_directory(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path / "state")
    with subprocess.Popen(["sleep", "30"], close_fds=False) as child:
        state.close()
        StateDir.open(tmp_path / "state").close()
        child.kill()


def test_a_holder_that_says_it_is_ending_is_waited_for(tmp_path: Path) -> None:
    ending = StateDir.open(tmp_path / "state")
    ending.note_ending()
    closing = threading.Timer(0.2, ending.close)
    closing.start()
    with StateDir.open(tmp_path / "state"), pytest.raises(StateDirBusy):
        StateDir.open(tmp_path / "state")
    closing.join()


def test_a_holder_that_never_ends_is_refused_though_it_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statelock, "ENDING_WAIT_S", 0.2)
    with StateDir.open(tmp_path / "state") as state:
        state.note_ending()
        with pytest.raises(StateDirBusy):
            StateDir.open(tmp_path / "state")


def test_taking_over_ends_the_holder(tmp_path: Path) -> None:
    with holder(tmp_path / "state") as process, StateDir.open(tmp_path / "state", take_over=True):
        assert process.wait(10) == -signal.SIGTERM


def test_taking_over_kills_a_holder_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statelock, "TERM_GRACE_S", 0.2)
    with holder(tmp_path / "state", "stubborn") as process, StateDir.open(tmp_path / "state", take_over=True):
        assert process.wait(10) == -signal.SIGKILL


def test_taking_over_a_free_directory_is_opening_it(tmp_path: Path) -> None:
    StateDir.open(tmp_path / "state", take_over=True).close()
    StateDir.open(tmp_path / "state", take_over=True).close()


@pytest.mark.parametrize("fact", [{"started": 1}, {"boot_id": "of another machine"}, {"started": None}])
def test_nobody_is_ended_who_is_not_surely_the_holder(tmp_path: Path, fact: dict[str, object]) -> None:
    """Another process with that pid, another machine that shares the disk, a system that does not tell start times."""
    with holder(tmp_path / "state") as process:
        record = tmp_path / "state" / "controller.lock"
        record.write_text(json.dumps(json.loads(record.read_text()) | fact))
        with pytest.raises(StateDirBusy, match="stop it where it runs"):
            StateDir.open(tmp_path / "state", take_over=True)
        assert process.poll() is None


def test_a_lock_without_a_readable_record_is_still_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statelock, "_RECORD_WAIT_S", 0.1)
    with holder(tmp_path / "state") as process:
        (tmp_path / "state" / "controller.lock").write_text("{")
        with pytest.raises(StateDirBusy, match="an unknown process"):
            StateDir.open(tmp_path / "state", take_over=True)
        assert process.poll() is None
